"""What the built-in worlds share: their form, their scenes, and outlines to draw."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

Array = np.ndarray
SIZE = 160  # image side of the first worlds, pixels


@dataclass(frozen=True, eq=False)
class World:
    """Which classes are drawn, what is known of them, and how often they appear.

    Attributes:
        classes: names, e.g. "fill colour shape".
        groups: group -> its classes; ``base`` is what has boxes in training.
        frequency: name -> LVIS's ``'f'``, ``'c'`` or ``'r'``.
        palette: RGB of each class.
        odds: (K,) how often a training scene draws each class; None for all alike.
        odds_in_val: validation scenes draw by the odds, too.
        repeats: how often an object is of the class of the one before.
        max_alike: of how many classes per object that differ from it in one concept an
            image says that they are absent; None for all.
        synonyms: name -> other names of the class.
        kinds: label -> the label of the kind that it is a member of.
        by_kind: how often an annotator gives the kind instead, in percent.
        draw: another :func:`.shapes.draw_scene`, without ``world``.
        describe: captions of the labels of a scene; None: of the first worlds.
        size: side of the images, pixels.
        edition: it counts up when the same classes are drawn in another way.
    """

    classes: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    frequency: dict[str, str]
    palette: tuple[tuple[int, int, int], ...]
    odds: Array | None = None
    odds_in_val: bool = False
    repeats: float = 0.0
    max_alike: int | None = None
    synonyms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kinds: dict[int, int] = field(default_factory=dict)
    by_kind: int = 0
    draw: "Callable[[np.random.Generator, bool], Scene] | None" = None
    describe: Callable[[np.random.Generator, list[int]], list[str]] | None = None
    size: int = SIZE
    edition: int = 1


class Scene(NamedTuple):
    """A drawn image and what is in it.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        labels: (n,) indices into the world's classes.
        boxes: (n, 4) float32, xyxy in pixels, tight around the visible part.
        masks: (n, S, S) bool, the visible part.
        unboxed: labels of which more is in the image than boxes say.
        quality: of its JPEG file.
    """

    image: Array
    labels: Array
    boxes: Array
    masks: Array
    unboxed: frozenset[int] = frozenset()
    quality: int = 95


def scene_rng(seed: int, split: int, index: int) -> np.random.Generator:
    """The random numbers of one image; images do not depend on each other."""
    return np.random.default_rng([seed, split, index])


def tight_box(mask: Array) -> tuple[int, int, int, int]:
    """Around the pixels of a mask (h, w): xyxy."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return x, y, x + width, y + height


def points(text: str) -> Array:
    """``"x,y x,y ..."`` as (n, 2)."""
    return np.array([point.split(",") for point in text.split()], float)


def arc(
    radius: float, start: float, end: float, steps: int, cx: float = 0, cy: float = 0
) -> Array:
    """Points of a circle's arc, degrees clockwise from the right."""
    t = np.radians(np.linspace(start, end, steps))
    return np.stack([cx + radius * np.cos(t), cy + radius * np.sin(t)], 1)


def _heart() -> Array:
    # the heart curve, scaled to the square
    t = np.linspace(0, 2 * math.pi, 60)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 16.5, -(y + 2.5) / 15.5], 1)


def _star() -> Array:
    # five tips and five dents in turn
    tips, dents = arc(1, -90, 270, 6)[:-1], arc(0.42, -54, 306, 6)[:-1]
    return np.stack([tips, dents], 1).reshape(-1, 2)


# outlines in [-1, 1]^2, y down; overlapping outlines cut holes
OUTLINES: dict[str, list[Array]] = {
    "circle": [arc(0.95, 0, 360, 40)],
    "square": [points("-.85,-.85 .85,-.85 .85,.85 -.85,.85")],
    "triangle": [points("0,-.95 .98,.85 -.98,.85")],
    "star": [_star()],
    "heart": [_heart()],
    "cross": [
        points(
            "-.3,-1 .3,-1 .3,-.3 1,-.3 1,.3 .3,.3 "
            ".3,1 -.3,1 -.3,.3 -1,.3 -1,-.3 -.3,-.3"
        )
    ],
    "ring": [arc(1, 0, 360, 40), arc(0.5, 0, 360, 40)],
    "crescent": [np.r_[arc(1, 50, 310, 50, 0.2), arc(0.85, 296, 64, 50, 0.47)]],
    "arrow": [points("-1,-.3 .1,-.3 .1,-.85 1,0 .1,.85 .1,.3 -1,.3")],
    "bowtie": [points("-1,-.8 0,-.2 1,-.8 1,.8 0,.2 -1,.8")],
    "drop": [np.concatenate([arc(0.62, -20, 200, 40, cy=0.36), [(0, -1)]])],
    "arch": [np.r_[arc(1, 180, 360, 40, 0, 0.45), arc(0.45, 360, 180, 30, 0, 0.45)]],
    "diamond": [points("0,-1 .62,0 0,1 -.62,0")],
    "house": [points("0,-1 1,-.15 .7,-.15 .7,.9 -.7,.9 -.7,-.15 -1,-.15")],
    "bolt": [points(".25,-1 -.65,.15 -.08,.15 -.3,1 .65,-.25 .08,-.25")],
    "crown": [points("-.95,.8 -.95,-.7 -.45,.05 0,-.9 .45,.05 .95,-.7 .95,.8")],
    "hourglass": [points("-.8,-1 .8,-1 .2,0 .8,1 -.8,1 -.2,0")],
    "chevron": [points("-.9,-.15 0,-.9 .9,-.15 .9,.75 0,.05 -.9,.75")],
}
