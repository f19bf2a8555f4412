"""Cluttered scenes of the hard world, in integers: the same pixels on every machine.

Objects are pieces, some of which are named parts: a car has wheels and a window. They
cover each other, stand before textures and among nameless things, and are seen by a
camera with its light, colour cast, blur and noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from .worlds import OUTLINES, Array, Scene, arc, points, tight_box

SIZE = 320  # image side, pixels
UNIT = 4096  # of outlines
TURN = 1024  # steps of a full turn
FILLS = ("solid", "striped", "dotted", "checked")
# sine and cosine as 14-bit integers, clockwise on the image
_SIN = np.rint(np.sin(np.arange(TURN) * 2 * np.pi / TURN) * 2**14).astype(np.int64)
_COS = np.roll(_SIN, -TURN // 4)
_Y, _X = np.mgrid[:SIZE, :SIZE]
# sides of objects in pixels: 8 to 250, each about an eighth more than the one before
SIDES = [8]
while SIDES[-1] < 250:
    SIDES.append(min(SIDES[-1] + max(1, SIDES[-1] // 8), 250))
MIN_VISIBLE = 40  # per cent of an object or a part that has a box
MIN_PART = 8  # longer side of the box of a part, pixels
PAINT = {
    "red": (205, 40, 42),
    "orange": (240, 128, 30),
    "yellow": (240, 210, 50),
    "green": (50, 150, 60),
    "teal": (20, 125, 125),
    "blue": (45, 80, 205),
    "purple": (125, 45, 165),
    "pink": (242, 140, 185),
    "brown": (115, 72, 38),
    "beige": (226, 202, 160),
    "white": (240, 240, 240),
    "black": (32, 32, 36),
}
_MORE_PAINT = {"pane": (170, 205, 225), "tyre": (48, 48, 52), "metal": (150, 155, 165)}


class Piece(NamedTuple):
    """A piece of an object.

    Attributes:
        paint: a colour; ``'own'`` and ``'shade'`` are the object's and a darker one.
        part: the class of the piece; empty: it has none.
        outlines: (n, 2) integers each, in 1 / UNIT; overlapping ones cut holes.
    """

    paint: str
    part: str
    outlines: tuple[Array, ...]


def _piece(paint: str, part: str, *outlines: Array | str) -> Piece:
    made = [points(o) if isinstance(o, str) else o for o in outlines]
    whole = tuple(np.rint(o * UNIT).astype(np.int64) for o in made)
    return Piece(paint, part, whole)


def _oval(cx: float, cy: float, rx: float, ry: float) -> Array:
    return arc(1, 0, 360, 28) * (rx, ry) + (cx, cy)


def _box(x1: float, y1: float, x2: float, y2: float) -> Array:
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def _ring(cx: float, cy: float, outer: float, inner: float) -> tuple[Array, Array]:
    return _oval(cx, cy, outer, outer), _oval(cx, cy, inner, inner)


def _wheel(cx: float) -> list[Piece]:
    return [
        _piece("tyre", "wheel", _oval(cx, 0.42, 0.25, 0.25)),
        _piece("metal", "", _oval(cx, 0.42, 0.1, 0.1)),
    ]


_SIMPLE = (
    *("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent"),
    *("arrow", "bowtie", "drop", "arch", "diamond", "bolt", "crown", "hourglass"),
    "chevron",
)
# the pieces of each noun, from the back to the front; y down
NOUNS: dict[str, list[Piece]] = {
    **{name: [_piece("own", "", *OUTLINES[name])] for name in _SIMPLE},
    "car": [
        _piece(
            "own",
            "",
            "-1,.42 -1,.02 -.6,-.06 -.35,-.52 .35,-.52 .65,-.06 1,.06 1,.42",
        ),
        _piece("pane", "window", "-.3,-.42 .28,-.42 .46,-.06 -.48,-.06"),
        *_wheel(-0.55),
        *_wheel(0.55),
    ],
    "truck": [
        _piece("own", "", _box(-1, -0.75, 0.35, 0.42)),
        _piece("shade", "", ".38,-.35 .72,-.35 1,.02 1,.42 .38,.42"),
        _piece("pane", "window", ".46,-.26 .68,-.26 .84,0 .46,0"),
        *_wheel(-0.55),
        *_wheel(0.6),
    ],
    "bus": [
        _piece("own", "", _box(-1, -0.6, 1, 0.42)),
        *[_piece("pane", "window", _box(x, -0.42, x + 0.4, -0.02))
          for x in (-0.86, -0.33, 0.2)],
        _piece("tyre", "door", _box(0.68, -0.42, 0.92, 0.4)),
        *_wheel(-0.6),
        *_wheel(0.45),
    ],
    "boat": [
        _piece("brown", "", _box(-0.06, -1, 0.06, 0.4)),
        _piece("white", "sail", ".1,-.95 .85,.22 .1,.22"),
        _piece("own", "", "-1,.35 1,.35 .65,.85 -.65,.85"),
    ],
    "rocket": [
        _piece("orange", "", "-.2,.6 .2,.6 0,1"),
        _piece("metal", "fin", "-.3,.05 -.8,.75 -.3,.62"),
        _piece("metal", "fin", ".3,.05 .8,.75 .3,.62"),
        _piece("own", "", "0,-1 .2,-.78 .35,-.4 .35,.65 -.35,.65 -.35,-.4 -.2,-.78"),
        _piece("pane", "window", _oval(0, -0.3, 0.19, 0.19)),
    ],
    "cottage": [
        _piece("own", "", _box(-0.75, -0.15, 0.75, 0.9)),
        _piece("brown", "roof", "0,-.95 1,-.1 -1,-.1"),
        _piece("tyre", "door", _box(-0.45, 0.25, -0.08, 0.9)),
        _piece("pane", "window", _box(0.18, 0.15, 0.56, 0.5)),
    ],
    "tower": [
        _piece(
            "own",
            "",
            "-.42,1 -.42,-.7 -.5,-.7 -.5,-1 -.27,-1 -.27,-.84 -.12,-.84 -.12,-1 "
            ".12,-1 .12,-.84 .27,-.84 .27,-1 .5,-1 .5,-.7 .42,-.7 .42,1",
        ),
        _piece("tyre", "door", _box(-0.16, 0.55, 0.16, 1)),
        _piece("pane", "window", _box(-0.14, -0.5, 0.14, -0.15)),
    ],
    "tree": [
        _piece("brown", "trunk", "-.14,.2 .14,.2 .2,1 -.2,1"),
        _piece("own", "", _oval(-0.35, 0.02, 0.42, 0.38)),
        _piece("own", "", _oval(0.35, 0.02, 0.42, 0.38)),
        _piece("own", "", _oval(0, -0.45, 0.48, 0.5)),
    ],
    "flower": [
        _piece("green", "stem", "-.06,-.2 .06,-.2 .09,1 -.03,1"),
        _piece("green", "", "0,.7 .45,.35 .4,.62"),
        *[_piece("own", "", _oval(0.34 * x, 0.34 * y - 0.4, 0.27, 0.27))
          for x, y in arc(1, 0, 288, 5)],
        _piece("yellow", "", _oval(0, -0.4, 0.19, 0.19)),
    ],
    "cactus": [
        _piece(
            "own",
            "",
            "-.2,.65 -.2,.1 -.65,.1 -.65,-.5 -.42,-.5 -.42,-.15 -.2,-.15 -.2,-.9 "
            "0,-1 .2,-.9 .2,-.35 .42,-.35 .42,-.7 .65,-.7 .65,-.1 .2,-.1 .2,.65",
        ),
        _piece("brown", "", "-.42,.6 .42,.6 .3,1 -.3,1"),
    ],
    "mushroom": [
        _piece("beige", "stem", "-.2,.1 .2,.1 .28,.95 -.28,.95"),
        _piece("own", "", arc(0.95, 180, 360, 24, 0, 0.15)),
    ],
    "fish": [
        _piece("own", "", ".4,0 1,-.5 .85,0 1,.5"),
        _piece("shade", "fin", "-.35,-.25 .25,-.3 .1,-.72"),
        _piece("own", "", _oval(-0.2, 0, 0.78, 0.42)),
        _piece("white", "eye", _oval(-0.6, -0.08, 0.13, 0.13)),
        _piece("black", "", _oval(-0.62, -0.08, 0.06, 0.06)),
    ],
    "bird": [
        _piece("own", "", ".45,.05 1,-.1 1,.25 .5,.35"),
        _piece("own", "", _oval(0.08, 0.2, 0.6, 0.42)),
        _piece("orange", "", "-.72,-.38 -1,-.22 -.7,-.16"),
        _piece("own", "", _oval(-0.48, -0.28, 0.32, 0.32)),
        _piece("shade", "wing", "-.15,.05 .5,0 .55,.3 .15,.5"),
        _piece("white", "eye", _oval(-0.56, -0.34, 0.11, 0.11)),
        _piece("black", "", _oval(-0.58, -0.34, 0.05, 0.05)),
    ],
    "cat": [
        _piece("own", "", "-.85,-.95 -.2,-.6 -.75,.1"),
        _piece("own", "", ".85,-.95 .2,-.6 .75,.1"),
        _piece("own", "", _oval(0, 0.1, 0.85, 0.75)),
        _piece("yellow", "eye", _oval(-0.34, -0.05, 0.16, 0.2)),
        _piece("yellow", "eye", _oval(0.34, -0.05, 0.16, 0.2)),
        _piece("black", "", _oval(-0.34, -0.05, 0.05, 0.16)),
        _piece("black", "", _oval(0.34, -0.05, 0.05, 0.16)),
        _piece("pink", "", "-.12,.28 .12,.28 0,.42"),
    ],
    "cup": [
        _piece("shade", "handle", *_ring(0.5, 0.05, 0.42, 0.24)),
        _piece("own", "", "-.75,-.65 .55,-.65 .4,.75 -.6,.75"),
        _piece("shade", "", _oval(-0.1, -0.65, 0.65, 0.13)),
    ],
    "bottle": [
        _piece(
            "own",
            "",
            "-.13,-.8 .13,-.8 .13,-.45 .36,-.15 .36,1 -.36,1 -.36,-.15 -.13,-.45",
        ),
        _piece("metal", "lid", _box(-0.18, -1, 0.18, -0.76)),
        _piece("white", "", _box(-0.36, 0.15, 0.36, 0.6)),
    ],
    "teapot": [
        _piece("shade", "handle", *_ring(-0.65, 0.1, 0.38, 0.22)),
        _piece("shade", "spout", ".4,.35 .85,-.45 1,-.35 .6,.6"),
        _piece("own", "", _oval(0, 0.2, 0.65, 0.58)),
        _piece("metal", "lid", "-.38,-.3 .38,-.3 .1,-.48 .08,-.66 -.08,-.66 -.1,-.48"),
    ],
    "hammer": [
        _piece("brown", "handle", _box(-0.12, -0.5, 0.12, 1)),
        _piece("own", "", "-.7,-.92 .45,-.92 .8,-.62 .45,-.42 -.7,-.42"),
    ],
    "umbrella": [
        _piece("brown", "handle", "-.05,0 .05,0 .05,.85 .3,.85 .3,.95 -.05,.95"),
        _piece(
            "own",
            "",
            np.r_[
                arc(1, 180, 360, 24, 0, 0.1),
                arc(0.25, 0, -180, 8, 0.75, 0.1),
                arc(0.25, 0, -180, 8, 0.25, 0.1),
                arc(0.25, 0, -180, 8, -0.25, 0.1),
                arc(0.25, 0, -180, 8, -0.75, 0.1),
            ],
        ),
    ],
    "lamp": [
        _piece("metal", "", _box(-0.06, -0.1, 0.06, 0.85)),
        _piece("metal", "", "-.4,1 -.3,.85 .3,.85 .4,1"),
        _piece("own", "", "-.3,-1 .3,-1 .7,-.05 -.7,-.05"),
    ],
    "key": [
        _piece("own", "", _box(-0.3, -0.1, 1, 0.1)),
        _piece("own", "", _box(0.8, 0, 0.98, 0.4)),
        _piece("own", "", _box(0.5, 0, 0.66, 0.32)),
        _piece("own", "", *_ring(-0.58, 0, 0.42, 0.2)),
    ],
    "balloon": [
        _piece("white", "", "0,.3 .05,.6 -.02,.8 .05,1 .01,1 -.06,.8 .01,.6 -.04,.3"),
        _piece("own", "", _oval(0, -0.38, 0.5, 0.62)),
        _piece("own", "", "0,.15 .12,.38 -.12,.38"),
    ],
    "kite": [
        _piece(
            "tyre",
            "tail",
            "-.05,.2 .1,.45 -.02,.7 .12,1 0,1 -.14,.7 -.02,.45 -.1,.25",
        ),
        _piece("own", "", "0,-1 .55,-.4 0,.3 -.55,-.4"),
        _piece("shade", "", "0,-1 .03,-.4 0,.3 -.03,-.4"),
        _piece("shade", "", "-.55,-.4 0,-.44 .55,-.4 0,-.36"),
    ],
}  # fmt: skip
PARTS = tuple(dict.fromkeys(p.part for n in NOUNS.values() for p in n if p.part))


class _Placed(NamedTuple):
    """An object on its way to the canvas.

    Attributes:
        window: rows and columns of the canvas around it.
        alphas: for each piece (h, w) uint8, how much of each pixel it covers.
        cover: (h, w) bool, the pixels of all of it.
    """

    window: tuple[slice, slice]
    alphas: list[Array]
    cover: Array


class _Canvas:
    """A scene while it is drawn.

    Attributes:
        pixels: (SIZE, SIZE, 3) int32 RGB.
        owner: (SIZE, SIZE) number of the visible object from 1; 0: nothing named.
        part: (SIZE, SIZE) number of the visible part from 1; 0: none.
        areas: of each object, as drawn, pixels; 0 is of the background.
        seen: what of them is visible, pixels.
        parts: owner, class and area of each part, as drawn.
    """

    def __init__(self, pixels: Array) -> None:
        self.pixels = pixels
        self.owner = np.zeros((SIZE, SIZE), np.int16)
        self.part = np.zeros((SIZE, SIZE), np.int16)
        self.areas, self.seen = [0], np.array([SIZE * SIZE])
        self.parts: list[tuple[int, str, int]] = []

    def may_hide(self, rng: np.random.Generator, placed: _Placed) -> bool:
        """Whether enough of all that is there stays visible, often more than needed."""
        least = int(rng.integers(MIN_VISIBLE, 101, 2).max())
        hidden = self._pixels(placed)
        left = (self.seen - hidden) * 100 >= np.array(self.areas) * least
        return bool((left | (hidden == 0))[1:].all())

    def _pixels(self, placed: _Placed) -> Array:
        """What of each object is where another one comes, pixels."""
        covered = self.owner[placed.window][placed.cover]
        return np.bincount(covered, minlength=len(self.areas))

    def add(self, placed: _Placed, pieces: list[Piece]) -> None:
        """Name the pixels of an object and of its parts."""
        number, area = len(self.areas), int(placed.cover.sum())
        self.hide(placed, number)
        self.areas.append(area)
        self.seen = np.append(self.seen, area)
        part = self.part[placed.window]
        first = len(self.parts)
        for piece, alpha in zip(pieces, placed.alphas):
            # a nameless piece before a part, such as a pupil, belongs to it
            if piece.part:
                self.parts.append((number, piece.part, 0))
                part[alpha > 127] = len(self.parts)
            elif piece.paint in ("own", "shade"):
                part[alpha > 127] = 0
        areas = np.bincount(part[placed.cover], minlength=len(self.parts) + 1)[1:]
        for i in range(first, len(self.parts)):
            self.parts[i] = (number, self.parts[i][1], int(areas[i]))

    def hide(self, placed: _Placed, owner: int = 0) -> None:
        """Its pixels are of that object, and of no other or its parts."""
        self.seen = self.seen - self._pixels(placed)
        self.owner[placed.window][placed.cover] = owner
        self.part[placed.window][placed.cover] = 0


def draw_scene(
    rng: np.random.Generator,
    choose: Callable[[np.random.Generator, list[int]], int],
    classes: tuple[str, ...],
) -> Scene:
    """5 to 25 objects of 8 to 250 px and their parts; about 30 ms.

    Args:
        rng: of :func:`.worlds.scene_rng`.
        choose: the label of the next object, given those before.
        classes: names; an object's is "colour noun", a part's is its own.
    """
    canvas = _Canvas(_background(rng))
    labels: list[int] = []
    places: list[tuple[int, int, int]] = []
    wanted = 5 + int(rng.integers(0, 21, 2).min())
    # the larger ones rather behind the smaller ones; the mean of two draws is often
    # a middle size
    sides = [SIDES[i] for i in rng.integers(len(SIDES), size=(wanted, 2)).sum(1) // 2]
    order = [side * int(rng.integers(2, 9)) for side in sides]
    for _, side in sorted(zip(order, sides), reverse=True):
        for _ in range(rng.integers(0, 3)):
            _add_clutter(rng, canvas)
        # it becomes smaller until it has a place
        for attempt in range(40):
            x, y = _place(rng, side, places if attempt < 20 else [])
            label = choose(rng, labels)
            color, noun = classes[label].split()
            placed = _lay(rng, NOUNS[noun], x, y, side)
            if placed.cover.sum() >= 12 and canvas.may_hide(rng, placed):
                canvas.add(placed, NOUNS[noun])
                _paint_object(rng, canvas.pixels, placed, NOUNS[noun], color, side)
                labels.append(label)
                places.append((x, y, side))
                break
            side = max(side * 15 // 16, SIDES[0])
    for _ in range(rng.integers(0, 4)):
        _add_clutter(rng, canvas)
    image = _camera(rng, canvas.pixels)
    quality = int(rng.integers(30, 91))
    return _scene(image, canvas, labels, classes, quality)


def _scene(
    image: Array,
    canvas: _Canvas,
    labels: list[int],
    classes: tuple[str, ...],
    quality: int,
) -> Scene:
    """What is visible of objects and parts, as masks and boxes."""
    found, masks, unboxed = [], [], set()
    for number, label in enumerate(labels, 1):
        found.append(label)
        masks.append(canvas.owner == number)
    seen = np.bincount(canvas.part.ravel(), minlength=len(canvas.parts) + 1)[1:]
    for number, (_, name, area) in enumerate(canvas.parts, 1):
        label = classes.index(name)
        # small or hidden ones are nobody's work to draw a box around
        mask = canvas.part == number
        x1, y1, x2, y2 = tight_box(mask)
        hidden = seen[number - 1] * 100 < area * MIN_VISIBLE or area == 0
        if hidden or max(x2 - x1, y2 - y1) < MIN_PART:
            unboxed.add(label)
            continue
        found.append(label)
        masks.append(mask)
    boxes = np.array([tight_box(m) for m in masks], np.float32)
    return Scene(
        image, np.array(found), boxes, np.stack(masks), frozenset(unboxed), quality
    )


def _place(
    rng: np.random.Generator, side: int, places: list[tuple[int, int, int]]
) -> tuple[int, int]:
    """A centre: anywhere, or near an object that is there."""
    margin = side * 2 // 5
    x, y = (int(v) for v in rng.integers(margin, SIZE - margin, 2))
    if places and rng.integers(2):
        near_x, near_y, other = places[int(rng.integers(len(places)))]
        reach = (side + other) // 2
        dx, dy = (int(v) for v in rng.integers(-reach, reach + 1, 2))
        x, y = near_x + dx, near_y + dy
    low, high = margin, SIZE - 1 - margin
    return min(max(x, low), high), min(max(y, low), high)


def _lay(
    rng: np.random.Generator, pieces: list[Piece], x: int, y: int, side: int
) -> _Placed:
    """An object turned, mirrored and squeezed, `side` pixels long, about (x, y)."""
    reach = TURN // 4 if rng.integers(8) == 0 else TURN // 20
    angle = int(rng.integers(-reach, reach + 1)) % TURN
    mirror = 1 - 2 * int(rng.integers(2))
    wide, high = (int(v) for v in rng.integers(190, 257, 2))
    cos, sin = int(_COS[angle]), int(_SIN[angle])
    turned = []
    for piece in pieces:
        for outline in piece.outlines:
            px, py = outline[:, 0] * wide * mirror >> 8, outline[:, 1] * high >> 8
            turned.append(np.stack([px * cos - py * sin, px * sin + py * cos], 1) >> 14)
    # from units of outlines to sixteenths of a pixel
    every = np.concatenate(turned)
    low, high_end = every.min(0), every.max(0)
    long = int((high_end - low).max())
    middle = (low + high_end) >> 1
    place = np.array([x, y]) * 16
    outlines = [(t - middle) * (side * 16) // long + place for t in turned]
    return _rasterise(outlines, [len(p.outlines) for p in pieces])


def _rasterise(outlines: list[Array], counts: list[int]) -> _Placed:
    """Outlines in sixteenths of a pixel, so many for each piece, as pixels."""
    every = np.concatenate(outlines)
    left, top = (max(int(v), 0) for v in (every.min(0) >> 4) - 1)
    right, bottom = (min(int(v), SIZE) for v in (every.max(0) >> 4) + 3)
    left, top = min(left, SIZE - 1), min(top, SIZE - 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    alphas, first = [], 0
    for count in counts:
        alpha = np.zeros((bottom - top, right - left), np.uint8)
        own = [
            (o - (left * 16, top * 16)).astype(np.int32)
            for o in outlines[first : first + count]
        ]
        cv2.fillPoly(alpha, own, 255, cv2.LINE_AA, 4)
        alphas.append(alpha)
        first += count
    cover = np.max(alphas, 0) > 127
    return _Placed(np.s_[top:bottom, left:right], alphas, cover)


def _paint_object(
    rng: np.random.Generator,
    pixels: Array,
    placed: _Placed,
    pieces: list[Piece],
    color: str,
    side: int,
) -> None:
    """Paint the pieces in their colours, shaded, with the object's pattern."""
    own = _vary(rng, PAINT[color], 14)
    dark, light = _surface(rng, placed.window, side)
    for piece, alpha in zip(pieces, placed.alphas):
        if piece.paint in ("own", "shade"):
            paint = own * (256 if piece.paint == "own" else 170) >> 8
            gain = light * (256 - dark) >> 8
        else:
            paint = _vary(rng, {**PAINT, **_MORE_PAINT}[piece.paint], 14)
            gain = light
        _blend(pixels[placed.window], alpha, paint, gain)


def _vary(rng: np.random.Generator, paint: tuple[int, ...], reach: int) -> Array:
    """A colour (3,), a little different each time."""
    return np.array(paint) + rng.integers(-reach, reach + 1, 3)


def _blend(window: Array, alpha: Array, paint: Array, gain: Array) -> None:
    """Lay a colour (3,) times a gain (h, w) of 256ths on pixels (h, w, 3)."""
    x, y, width, height = cv2.boundingRect(alpha)
    inner = np.s_[y : y + height, x : x + width]
    window, alpha, gain = window[inner], alpha[inner], gain[inner]
    opaque = alpha.astype(np.int32) + (alpha >> 7)  # 0 to 256
    surface = paint.astype(np.int32) * gain[..., None] >> 8
    window += (surface - window) * opaque[..., None] >> 8


def _surface(
    rng: np.random.Generator, window: tuple[slice, slice], side: int
) -> tuple[Array, Array]:
    """How dark the pattern and how light the shading is, (h, w) in 256ths."""
    x, y = _X[window].astype(np.int32), _Y[window].astype(np.int32)
    # one side is lighter than the other
    lean_x, lean_y = (int(v) for v in rng.integers(-70, 71, 2))
    x0, y0 = int(x[0, x.shape[1] // 2]), int(y[y.shape[0] // 2, 0])
    light = 256 + ((x - x0) * lean_x + (y - y0) * lean_y) // side
    # two in three objects have no pattern
    fill = FILLS[max(int(rng.integers(-5, len(FILLS))), 0)]
    dark = _pattern(rng, fill, x, y, side) * int(rng.integers(50, 120))
    return dark, light


def _pattern(
    rng: np.random.Generator, fill: str, x: Array, y: Array, side: int
) -> Array:
    """Where a pattern is dark at pixels x, y (h, w): 0 or 1."""
    # u and v are coordinates along and across a random direction, in 16ths of a pixel
    angle = int(rng.integers(TURN))
    cos, sin = int(_COS[angle]), int(_SIN[angle])
    u, v = (x * cos + y * sin) >> 10, (y * cos - x * sin) >> 10
    pitch = max(side * 16 // int(rng.integers(4, 8)), 48)
    if fill == "solid":
        return np.zeros_like(x)
    if fill == "striped":
        return u // (pitch // 2) & 1
    if fill == "checked":
        return (u // (pitch // 2) + v // (pitch // 2)) & 1
    du, dv = u % pitch - pitch // 2, v % pitch - pitch // 2
    return (du * du + dv * dv < (pitch * 5 // 16) ** 2).astype(np.int32)


def _add_clutter(rng: np.random.Generator, canvas: _Canvas) -> None:
    """A nameless thing: a ragged blob, one with a hole, or a stick."""
    side = SIDES[int(rng.integers(len(SIDES) - 8))]
    x, y = (int(v) * 16 for v in rng.integers(0, SIZE, 2))
    if rng.integers(3):
        corners = int(rng.integers(5, 11))
        turns = np.arange(corners) * TURN // corners + int(rng.integers(TURN))
        reach = rng.integers(side * 3, side * 9, corners)
    else:
        turns = np.array([-30, 30, TURN // 2 - 30, TURN // 2 + 30])
        turns = turns + int(rng.integers(TURN))
        reach = np.full(4, side * 10)
        turns[[0, 2]] += int(rng.integers(20))
    turns %= TURN
    rim = np.stack([_COS[turns] * reach, _SIN[turns] * reach], 1) >> 14
    outlines = [rim + (x, y)]
    if rng.integers(4) == 0:
        outlines.append((rim >> 1) + (x, y))
    placed = _rasterise(outlines, [len(outlines)])
    if not canvas.may_hide(rng, placed):
        return
    canvas.hide(placed)
    paint = _any_color(rng)
    dark, light = _surface(rng, placed.window, side)
    window = canvas.pixels[placed.window]
    _blend(window, placed.alphas[0], paint, light * (256 - dark) >> 8)


def _any_color(rng: np.random.Generator) -> Array:
    """A colour (3,), mostly a grayish one."""
    gray, spread = int(rng.integers(30, 226)), int(rng.choice([10, 30, 90]))
    return (gray + rng.integers(-spread, spread + 1, 3)).clip(0, 255)


def _background(rng: np.random.Generator) -> Array:
    """One texture, or two that meet at a slanted line: (SIZE, SIZE, 3) int32."""
    pixels = _texture(rng)
    if rng.integers(2):
        slope, level = int(rng.integers(-60, 61)), int(rng.integers(70, 251))
        edge = level + ((_X - SIZE // 2) * slope >> 8)
        below = edge < _Y
        pixels = np.where(below[..., None], _texture(rng), pixels)
    return pixels


def _texture(rng: np.random.Generator) -> Array:
    """Clouds, leaves, planks or bricks: (SIZE, SIZE, 3) int32."""
    paint, kind = _any_color(rng), int(rng.integers(4))
    contrast = int(rng.integers(20, 90))
    if kind < 2:
        # noise of one coarse or of three fine grains
        grains = [int(rng.integers(3, 14))] if kind == 0 else [20, 53, 160]
        level = np.sum([_clouds(rng, grain) for grain in grains], 0) // len(grains)
    else:
        # boards of some shades along and across a direction, dark lines between them
        angle = int(rng.integers(TURN)) if kind == 2 else int(rng.integers(-40, 41))
        cos, sin = int(_COS[angle % TURN]), int(_SIN[angle % TURN])
        x, y = _X.astype(np.int32) + SIZE, _Y.astype(np.int32) + SIZE
        u, v = (x * cos + y * sin) >> 14, (y * cos - x * sin) >> 14
        high = int(rng.integers(9, 60))
        wide = SIZE * 4 if kind == 2 else high * int(rng.integers(1, 4))
        row = v // high
        column = (u + (row & 1) * (wide // 2)) // wide
        shades = rng.integers(0, 256, (16, 16))
        level = shades[row & 15, column & 15] + (_clouds(rng, 80) - 128) // 3
        gap = (v % high < 2) | ((u + (row & 1) * (wide // 2)) % wide < 2)
        level = np.where(gap, level - 120, level)
    shade = (level - 128) * contrast >> 7
    return (paint + shade[..., None]).astype(np.int32)


def _clouds(rng: np.random.Generator, grain: int) -> Array:
    """Soft noise of grain x grain values: (SIZE, SIZE) int32 in 0 to 255."""
    coarse = rng.integers(0, 256, (grain, grain), np.uint8)
    size = (SIZE, SIZE)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR_EXACT).astype(
        np.int32
    )


def _camera(rng: np.random.Generator, pixels: Array) -> Array:
    """Light from a side, a cast, haze, blur and noise: (SIZE, SIZE, 3) uint8."""
    lean_x, lean_y = (int(v) for v in rng.integers(-80, 81, 2))
    x, y = _X.astype(np.int32) - SIZE // 2, _Y.astype(np.int32) - SIZE // 2
    light = int(rng.integers(170, 275)) + (x * lean_x + y * lean_y) // SIZE
    cast = rng.integers(228, 285, 3).astype(np.int32)
    pixels = (pixels.clip(0, 255) * light[..., None] >> 8) * cast >> 8
    # haze lifts the dark
    haze = int(rng.integers(0, 60))
    pixels += (190 - pixels) * haze >> 8
    pixels = pixels.astype(np.int16)
    for _ in range(int(rng.choice([0, 0, 0, 1, 1, 2, 4]))):
        pixels = _blurred(pixels)
    # the sum of four bytes is nearly normal
    grain = rng.integers(0, 256, (4, SIZE, SIZE), np.uint8).sum(0, dtype=np.int16)
    pixels += ((grain - 510) * int(rng.integers(0, 12)) >> 7)[..., None]
    return pixels.clip(0, 255).astype(np.uint8)


def _blurred(pixels: Array) -> Array:
    """Each pixel mixed with its neighbours, 1 : 2 : 1, down and across."""
    for _ in range(2):
        mixed = 2 * pixels + 2
        mixed[1:] += pixels[:-1]
        mixed[:-1] += pixels[1:]
        mixed[0] += pixels[0]
        mixed[-1] += pixels[-1]
        pixels = (mixed >> 2).swapaxes(0, 1)
    return pixels
