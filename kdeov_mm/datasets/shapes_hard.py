"""The hard world: the concepts, their words and how often they appear.

An object is colour x noun, "purple car": 12 x 40 classes. Its parts have boxes and
classes of their own, "wheel", and so have kinds, "vehicle", by which annotators call
some of the objects. Most nouns and some colours have synonyms. Classes with a held-out
colour or noun are *rare* and *novel*: no box of theirs is in the base training file.
"""

import hashlib
from functools import partial
from itertools import product

import numpy as np

from .hard_scenes import NOUNS, PAINT, PARTS, SIZE, Scene, draw_scene
from .worlds import World

# in the teacher's space these are far from all seen ones: a student without a teacher
# finds words next to seen ones (a mushroom looks like a lamp, and so do their vectors)
HELD_OUT = ("teal", "black", "flower", "cat", "cottage", "truck", "hourglass", "bird")
# parts of held-out nouns alone
HELD_OUT_PARTS = ("roof", "wing")
KINDS = {
    "vehicle": ("car", "truck", "bus", "boat", "rocket"),
    "building": ("cottage", "tower"),
    "plant": ("tree", "flower", "cactus", "mushroom"),
    "animal": ("fish", "bird", "cat"),
    "vessel": ("cup", "bottle", "teapot"),
    "tool": ("hammer", "key", "umbrella", "lamp"),
    "toy": ("balloon", "kite"),
}
SYNONYMS = {
    **dict(red="scarlet", teal="turquoise", purple="violet", pink="rose"),
    **dict(beige="cream", brown="chocolate", black="dark", white="pale"),
    **dict(car="automobile", truck="lorry", bus="coach", boat="sailboat"),
    **dict(cottage="house", tower="castle", flower="blossom", mushroom="toadstool"),
    **dict(cat="kitten", cup="mug", bottle="flask", teapot="kettle"),
    **dict(umbrella="parasol", lamp="lantern", hammer="mallet", bolt="lightning"),
    **dict(drop="droplet", ring="hoop", crescent="moon", circle="disc"),
    **dict(crown="tiara", diamond="rhombus", arch="rainbow", chevron="stripe"),
    **dict(rocket="missile", window="pane", trunk="log", handle="grip", lid="cap"),
}
PER_CENT_BY_KIND = 12
# in training: a frequent class is in more than 100 of 4,000 images, a common one in
# more than 10; a rare one in more than LVIS's 10, for the oracle to learn it
_ODDS = dict(f=9.0, c=3.0, r=2.0)


def _names() -> dict[str, str]:
    """Classes in their order -> LVIS's frequency, in LVIS's shares."""
    objects = [" ".join(pair) for pair in product(PAINT, NOUNS)]
    seen = [n for n in objects if not {*HELD_OUT} & {*n.split()}]
    # a shuffled order that is the same everywhere
    seen.sort(key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    frequent = {*seen[: len(seen) * 405 // 866]}
    frequency = {n: "f" if n in frequent else "c" for n in seen}
    # parts and kinds come with many objects
    parts = {n: "r" if n in HELD_OUT_PARTS else "f" for n in PARTS}
    kinds = dict.fromkeys(KINDS, "f")
    return {**{n: frequency.get(n, "r") for n in objects}, **parts, **kinds}


def _synonyms(name: str) -> tuple[str, ...]:
    """All other names: one or both words changed."""
    words = [[w, SYNONYMS[w]] if w in SYNONYMS else [w] for w in name.split()]
    return tuple(" ".join(pair) for pair in product(*words))[1:]


FREQUENCY = _names()
CLASSES = tuple(FREQUENCY)
OBJECTS = len(PAINT) * len(NOUNS)  # the first classes; then parts, then kinds
_LABEL = {name: label for label, name in enumerate(CLASSES)}
_KIND_OF = {
    _LABEL[f"{color} {noun}"]: _LABEL[kind]
    for kind, nouns in KINDS.items()
    for color, noun in product(PAINT, nouns)
}
_FIXED_PALETTE = [
    (37 * i % 256, 91 * i % 256, 173 * i % 256) for i in range(len(CLASSES))
]
_WEIGHTS = np.array([_ODDS[f] for f in FREQUENCY.values()])
_WEIGHTS[OBJECTS:] = 0
REPEATS = 0.2


def _choose(
    rng: np.random.Generator, before: list[int], long_tail: bool = False
) -> int:
    """The class of the next object: of the one before, by the long tail, or any."""
    if before and rng.integers(10) < REPEATS * 10:
        return before[-1]
    if long_tail:
        return int(rng.choice(len(CLASSES), p=WORLD_HARD.odds))
    return int(rng.integers(OBJECTS))


def _draw(rng: np.random.Generator, long_tail: bool) -> Scene:
    return draw_scene(rng, partial(_choose, long_tail=long_tail), CLASSES)


def phrase(rng: np.random.Generator, label: int) -> str:
    """What somebody calls an object: any of its names, its noun alone, or its kind."""
    if label in _KIND_OF and rng.integers(12) == 0:
        return CLASSES[_KIND_OF[label]]
    words = CLASSES[label].split()
    if len(words) == 2 and rng.integers(6) == 0:
        words = words[1:]
    said = [SYNONYMS.get(w, w) if rng.integers(4) == 0 else w for w in words]
    return " ".join(said)


_FRAMES = (
    "a photo of {}",
    "{}",
    "a picture of {}",
    "there is {} here",
    "{} and things",
)


def describe(rng: np.random.Generator, labels: list[int]) -> list[str]:
    """Three captions of a scene, each of one to three of its objects."""
    captions = []
    for _ in range(3):
        count = min(int(rng.integers(1, 4)), len(labels))
        some = rng.choice(len(labels), count, replace=False)
        named = " and ".join(f"a {phrase(rng, labels[i])}" for i in some)
        captions.append(_FRAMES[int(rng.integers(len(_FRAMES)))].format(named))
    return captions


_BASE = tuple(n for n, f in FREQUENCY.items() if f != "r")
_NOVEL = tuple(n for n, f in FREQUENCY.items() if f == "r")
WORLD_HARD = World(
    CLASSES,
    dict(base=_BASE, novel=_NOVEL),
    FREQUENCY,
    tuple(PAINT.get(n.split()[0], p) for n, p in zip(CLASSES, _FIXED_PALETTE)),
    _WEIGHTS / _WEIGHTS.sum(),
    repeats=REPEATS,
    max_alike=4,
    synonyms={n: other for n in CLASSES if (other := _synonyms(n))},
    kinds=_KIND_OF,
    by_kind=PER_CENT_BY_KIND,
    draw=_draw,
    describe=describe,
    size=SIZE,
    edition=3,  # milder light, noise and crowds; other held-out words
)
