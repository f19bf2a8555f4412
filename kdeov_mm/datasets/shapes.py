"""The built-in world: scenes of coloured shapes, written as real benchmarks are.

An object is fill x colour x shape, "striped purple heart": 3 x 10 x 12 = 360
classes. Two colours and two shapes are held out: the 120 classes with one of
them are *novel*, no box of theirs is in the base training file. Of the other
240 classes 40 are *combo*: new combinations of seen concepts, without boxes
too. The remaining 200 are *base*.

A second world has 1203 classes, as many frequent, common and rare ones as LVIS:
5 x 14 x 18 concepts, of which the rare classes have a held-out one. A third, to
fine-tune on, has boxes of 8 classes whose colours and shapes the first lacks. The
hard one is that of :mod:`.shapes_hard`.
"""

import hashlib
import math
from itertools import product

import cv2
import numpy as np

from .shapes_hard import WORLD_HARD
from .worlds import OUTLINES, SIZE, Array, Scene, World, tight_box
from .worlds import scene_rng as scene_rng

FILLS = ("solid", "striped", "dotted")
COLORS = {
    "red": (214, 40, 40),
    "orange": (245, 133, 24),
    "yellow": (246, 217, 45),
    "green": (44, 160, 60),
    "cyan": (62, 211, 220),
    "blue": (38, 80, 215),
    "purple": (128, 40, 172),
    "pink": (248, 140, 190),
    "brown": (118, 72, 34),
    "white": (245, 245, 245),
}
SHAPES = (
    *("circle", "square", "triangle", "star", "heart", "cross"),
    *("ring", "crescent", "arrow", "bowtie", "drop", "arch"),
)
# of the second world alone
MORE_FILLS = ("checked", "split")
MORE_COLORS = {
    "lime": (150, 235, 60),
    "teal": (10, 125, 125),
    "magenta": (225, 25, 160),
    "beige": (230, 205, 160),
}
_PAINT = {**COLORS, **MORE_COLORS}
MORE_SHAPES = ("diamond", "house", "bolt", "crown", "hourglass", "chevron")
HELD_OUT_1203 = ("purple", "teal", "beige", "ring", "chevron")
HELD_OUT_COLORS = ("purple", "orange")
HELD_OUT_SHAPES = ("ring", "star")

CLASSES = tuple(" ".join(n) for n in product(FILLS, COLORS, SHAPES))
NOVEL_CLASSES = tuple(
    n for n in CLASSES if {*HELD_OUT_COLORS, *HELD_OUT_SHAPES} & {*n.split()}
)
# every sixth combination of seen concepts, spread over all of them
_SEEN_COLORS = [c for c in COLORS if c not in HELD_OUT_COLORS]
_SEEN_SHAPES = [s for s in SHAPES if s not in HELD_OUT_SHAPES]
COMBO_CLASSES = tuple(
    f"{fill} {color} {shape}"
    for (i, fill), (j, color), (k, shape) in product(
        enumerate(FILLS), enumerate(_SEEN_COLORS), enumerate(_SEEN_SHAPES)
    )
    if (2 * i + j + k) % 6 == 0
)
BASE_CLASSES = tuple(n for n in CLASSES if n not in {*NOVEL_CLASSES, *COMBO_CLASSES})
PALETTE = tuple(COLORS[n.split()[1]] for n in CLASSES)
FREQUENCY = {
    **dict.fromkeys(BASE_CLASSES, "f"),
    **dict.fromkeys(COMBO_CLASSES, "c"),
    **dict.fromkeys(NOVEL_CLASSES, "r"),
}


_GROUPS_360 = dict(base=BASE_CLASSES, combo=COMBO_CLASSES, novel=NOVEL_CLASSES)
WORLD_360 = World(CLASSES, _GROUPS_360, FREQUENCY, PALETTE)


def _world_1203() -> World:
    """LVIS's size: 405 frequent, 461 common and 337 rare classes of 1203.

    Rare classes have a held-out concept, of which the words say least: in the
    teacher's space each is close to a seen one (teal to green, chevron to arch), so
    that a student without a teacher cannot tell its objects by elimination. Of the
    5 x 14 x 18 combinations as many are kept as LVIS has classes.
    """
    every = product((*FILLS, *MORE_FILLS), _PAINT, (*SHAPES, *MORE_SHAPES))
    names = [" ".join(n) for n in every]
    # a shuffled order that is the same everywhere
    shuffled = sorted(names, key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    seen = [n for n in shuffled if not {*HELD_OUT_1203} & {*n.split()}]
    rare = [n for n in shuffled if {*HELD_OUT_1203} & {*n.split()}][:337]
    groups = dict(r=rare, c=seen[405 : 405 + 461], f=seen[:405])
    frequency = {n: key for key, members in groups.items() for n in members}
    # the order of classes is that of the concepts
    classes = tuple(n for n in names if n in frequency)
    # a training scene draws frequent classes three times as often as rare ones
    odds = np.array([dict(f=3.0, c=2.0, r=1.0)[frequency[n]] for n in classes])
    base = tuple(n for n in classes if frequency[n] != "r")
    novel = tuple(n for n in classes if frequency[n] == "r")
    return World(
        classes,
        dict(base=base, novel=novel),
        {n: frequency[n] for n in classes},
        tuple(_PAINT[n.split()[1]] for n in classes),
        odds / odds.sum(),
        repeats=0.2,
    )


WORLD_1203 = _world_1203()
NEW_CLASSES = (
    *("solid lime diamond", "striped teal house", "dotted magenta bolt"),
    *("solid beige crown", "striped lime hourglass", "dotted teal chevron"),
    *("solid magenta diamond", "dotted beige house"),
)


def _world_8() -> World:
    """A domain of its own: every second object is of 8 classes that are new.

    The others are of the 360, as things that nobody labels are in anyone's pictures.
    """
    classes = (*NEW_CLASSES, *CLASSES)
    new, old = len(NEW_CLASSES), len(CLASSES)
    return World(
        classes,
        dict(base=NEW_CLASSES),
        {**dict.fromkeys(NEW_CLASSES, "f"), **FREQUENCY},
        tuple(_PAINT[n.split()[1]] for n in classes),
        np.repeat([0.5 / new, 0.5 / old], [new, old]),
        odds_in_val=True,
    )


WORLDS = {"360": WORLD_360, "1203": WORLD_1203, "8": _world_8(), "hard": WORLD_HARD}
_DARK = np.array((28, 28, 32), np.float32)


def draw_scene(
    rng: np.random.Generator, world: World = WORLD_360, long_tail: bool = False
) -> Scene:
    """2 to 6 objects of 22 to 72 px on a noisy background; about 3 ms.

    A world that draws its scenes in its own way does so.

    Args:
        rng: of :func:`scene_rng`.
        world: what is drawn.
        long_tail: draw classes by the world's odds, as for training scenes.
    """
    if world.draw is not None:
        return world.draw(rng, long_tail)
    # squares are placed, objects drawn in them
    canvas = _background(rng)
    labels: list[int] = []
    masks = np.zeros((0, SIZE, SIZE), bool)
    placed: list[tuple[float, float, float]] = []
    wanted = int(rng.integers(2, 7))
    # places are tried at random; a full scene may stay with fewer objects
    for _ in range(8 * wanted):
        if len(placed) == wanted:
            break
        side = float(rng.uniform(22, 72))
        x, y = rng.uniform(side / 2 + 1, SIZE - side / 2 - 1, 2)
        if any(_overlap((x, y, side), other) > 0.12 for other in placed):
            continue
        # its class: of the object before, by the long tail, or any
        if world.repeats and labels and rng.random() < world.repeats:
            label = labels[-1]
        elif long_tail and world.odds is not None:
            label = int(rng.choice(len(world.classes), p=world.odds))
        else:
            label = int(rng.integers(len(world.classes)))
        # what it covers is no longer visible of the others
        cover = _draw_object(rng, canvas, world.classes[label], x, y, side)
        masks = np.concatenate([masks & ~cover, cover[None]])
        labels.append(label)
        placed.append((x, y, side))
    boxes = np.array([tight_box(m) for m in masks], np.float32)
    # the camera's noise, over all of it
    noise = rng.standard_normal((SIZE, SIZE, 1), np.float32)
    canvas += noise * rng.uniform(2, 8)
    return Scene(canvas.clip(0, 255).astype(np.uint8), np.array(labels), boxes, masks)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over the smaller of two squares (x, y, side)."""
    reach = (a[2] + b[2]) / 2
    width = min(reach - abs(a[0] - b[0]), a[2], b[2])
    height = min(reach - abs(a[1] - b[1]), a[2], b[2])
    return max(width, 0) * max(height, 0) / min(a[2], b[2]) ** 2


def _background(rng: np.random.Generator) -> Array:
    """Soft gray-ish clouds, noise and a few lines: (SIZE, SIZE, 3) float32."""
    # 5 x 5 random values, enlarged: a little colour in much gray
    gray = rng.uniform(80, 200) + rng.normal(0, 25, (5, 5, 1))
    clouds = (gray + rng.normal(0, 9, (5, 5, 3))).astype(np.float32)
    canvas = cv2.resize(clouds, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    # lines, so that an edge alone is no object
    for _ in range(rng.integers(0, 6)):
        start, end = rng.integers(0, SIZE, (2, 2)).tolist()
        shade = float(rng.uniform(40, 210))
        cv2.line(canvas, start, end, (shade, shade, shade), 1, cv2.LINE_AA)
    noise = rng.standard_normal((SIZE, SIZE, 1), np.float32)
    return canvas + noise * rng.uniform(3, 12)


def _draw_object(
    rng: np.random.Generator, canvas: Array, name: str, x: float, y: float, side: float
) -> Array:
    """Paint one object in place; return its mask (SIZE, SIZE) bool."""
    fill, color, shape = name.split()
    # the outlines turned, and as large as the square of that side
    angle = math.radians(rng.uniform(-15, 15))
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    scale = side / 2 / (abs(cos) + abs(sin)) * 1.15
    outlines = [np.asarray(p) @ turn.T * scale + (x, y) for p in OUTLINES[shape]]
    # the pixels around it, as a window (h, w) of the canvas
    points = np.concatenate(outlines)
    left, top = np.floor(points.min(0)).clip(0).astype(int)
    right, bottom = np.ceil(points.max(0)).clip(0, SIZE).astype(int)
    window = np.s_[top:bottom, left:right]
    # drawn four times as large: the mean of 16 pixels is the cover of one
    fine = np.zeros(((bottom - top) * 4, (right - left) * 4), np.uint8)
    grid = [np.round((p - (left, top)) * 4).astype(np.int32) for p in outlines]
    cv2.fillPoly(fine, grid, 255)
    size = (right - left, bottom - top)
    alpha = cv2.resize(fine, size, interpolation=cv2.INTER_AREA)
    alpha = alpha.astype(np.float32)[..., None] / 255  # (h, w, 1) in [0, 1]
    # its colour, a little different each time, and the dark of its pattern
    paint = np.array(_PAINT[color], np.float32) * rng.uniform(0.9, 1.05)
    paint = (paint + rng.normal(0, 6, 3)).astype(np.float32)
    dark = _pattern(rng, fill, side, _X[window], _Y[window])[..., None]
    surface = paint * (1 - dark) + _DARK * dark  # (h, w, 3)
    canvas[window] += alpha * (surface - canvas[window])
    mask = np.zeros((SIZE, SIZE), bool)
    mask[window] = alpha[..., 0] > 0.5
    return mask


def _pattern(
    rng: np.random.Generator, fill: str, side: float, x: Array, y: Array
) -> Array:
    """Where the fill is dark at pixels x, y (h, w): (h, w) in [0, 1]."""
    # u and v are coordinates along and across a random direction
    if fill == "solid":
        return np.zeros(x.shape, np.float32)
    angle = rng.uniform(0, math.pi)
    u = x * math.cos(angle) + y * math.sin(angle)
    # a sine as steep as one pixel per unit, so that edges are antialiased
    if fill == "striped":
        period = max(6.0, side / 5)
        wave = np.sin(2 * math.pi * u / period + rng.uniform(0, 6.28))
        return (wave * period / 3 + 0.5).clip(0, 1)
    if fill == "split":
        return (u - u.mean() + 0.5).clip(0, 1)
    pitch = max(7.0, side / 4.5)
    v = y * math.cos(angle) - x * math.sin(angle)
    # patterns in both directions
    if fill == "checked":
        turn = math.pi / pitch
        wave = np.sin(turn * u + rng.uniform(0, 6.28)) * np.sin(turn * v)
        return (wave * pitch / 3 + 0.5).clip(0, 1)
    # dotted: distances to the nearest point of a grid
    du = (u + rng.uniform(0, pitch)) % pitch - pitch / 2
    dv = (v + rng.uniform(0, pitch)) % pitch - pitch / 2
    return (pitch * 0.32 - np.hypot(du, dv) + 0.5).clip(0, 1)


_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32)
