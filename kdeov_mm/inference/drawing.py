"""Boxes, label maps and names drawn on images, and files of such drawings."""

import functools
import logging
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import get_cachedir
from matplotlib.font_manager import findfont, fontManager
from matplotlib.ft2font import FT2Font
from mmdet.structures import DetDataSample
from mmengine.logging import print_log
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import write_whole
from .results import Result
from .sources import ImageSource

FONT = findfont("DejaVu Sans")
_said: set[str] = set()  # names of which it was said that they cannot be drawn
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")  # that OpenCV writes


@functools.cache
def _letters(font: str) -> frozenset[int]:
    """The characters that a font has; none of one that cannot be read."""
    try:
        return frozenset(FT2Font(font).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _missing(text: str, font: str) -> set[str]:
    """The characters of a text that a font cannot draw."""
    # neither blanks nor marks that change others have a form of their own
    kinds = {c: unicodedata.category(c) for c in text}
    visible = {
        c for c, k in kinds.items() if k[0] not in "ZM" and k not in ("Cc", "Cf")
    }
    return {c for c in visible if ord(c) not in _letters(font)}


@functools.lru_cache(4096)
def font_of(text: str) -> str | None:
    """A font file that can draw a text; None: this machine has none."""
    # the font of last resort draws any character as a box with its block's name
    fonts = (f for f in fontManager.ttflist if "Last Resort" not in f.name)
    others = sorted({f.fname for f in fonts})
    return next((f for f in (FONT, *others) if not _missing(text, f)), None)


def readable(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """A text as it is drawn, and a font of so many pixels that draws it.

    Where no font has its letters, they are written as their numbers, so that names
    stay different, and that is said once.
    """
    font = font_of(text)
    if font is None:
        say_undrawn([text], FONT)
        gone = _missing(text, FONT)
        text = "".join(f"U+{ord(c):04X} " if c in gone else c for c in text)
    return text, ImageFont.truetype(font or FONT, size)


def say_undrawn(names: Sequence[str], font: str | None = None) -> None:
    """Log, once for each letter, what cannot be drawn with a font, or with any."""
    for name in names:
        if font is None and font_of(name) is not None:
            continue
        gone = "".join(sorted(_missing(name, font or FONT) - _said))
        if gone:
            _said.update(gone)
            print_log(
                f"{name!r} cannot be drawn: no font has {gone!r}. Install one, e.g. "
                "fonts-noto-cjk, and remove matplotlib's cache of fonts "
                f"({get_cachedir()}). Results in files have the names as they are.",
                "current",
                logging.WARNING,
            )


def draw(
    image: np.ndarray,
    sample: DetDataSample,
    names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    marked: Collection[str] = (),
    mark: str = " (novel)",
    score_threshold: float = 0.3,
    min_side: int = 800,
    max_side: float = float("inf"),
) -> np.ndarray:
    """Draw ground truth (left, where the sample has it) and predictions.

    Args:
        image: (H, W, 3) uint8 RGB.
        sample: boxes in pixels of ``image``; labels index ``names``.
        names: class names.
        palette: an RGB colour per class.
        marked: names to write with ``mark``.
        score_threshold: predictions below are not drawn.
        min_side: pixels that the longer side of a small image grows to.
        max_side: pixels that the longer side of a large image shrinks to.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    # small images grow, so that names can be read
    longer = max(image.shape[:2])
    factor = float(np.clip(longer, min_side, max_side)) / longer
    size = [max(round(n * factor), 1) for n in image.shape[1::-1]]
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    # a panel for ground truth, one for predictions
    panels = []
    for key in ("gt_instances", "pred_instances"):
        if key not in sample:
            continue
        found = sample.get(key).cpu()
        # what is drawn last lies on top: the best
        if "scores" in found:
            found = found[found.scores >= score_threshold]
            found = found[found.scores.argsort()]
        titles = [names[i] + (mark if names[i] in marked else "") for i in found.labels]
        if "scores" in found:
            titles = [f"{t} {s:.2f}" for t, s in zip(titles, found.scores)]
        colors = [tuple(map(int, palette[i])) for i in found.labels]
        boxes = torch.as_tensor(found.bboxes) * factor
        panels.append(_draw_boxes(resized.copy(), boxes, titles, colors))
    return np.concatenate(panels, 1)


def _draw_boxes(
    image: Image.Image,
    boxes: Tensor,
    titles: list[str],
    colors: list[tuple[int, ...]],
) -> np.ndarray:
    """Draw boxes (n, 4), xyxy pixels, and their titles on the image."""
    pen, (width, height) = ImageDraw.Draw(image), image.size
    # lines and letters grow with the image, so they are seen when it is shown smaller
    scale = max((width * height) ** 0.5 / 700, 1)
    for (x1, y1, x2, y2), color in zip(boxes.tolist(), colors):
        box = (x1, y1, max(x1, x2), max(y1, y2))
        pen.rectangle(box, outline=color, width=round(3 * scale))
    # titles after all boxes, which would cross them out
    for (x, y, *_), title in zip(boxes.tolist(), titles):
        title, font = readable(title, round(14 * scale))
        _, _, right, bottom = pen.textbbox((0, 0), title, font)
        # above the box where there is room, else inside it, never outside the image
        x = max(min(x, width - right), 0)
        y = y - bottom if y >= bottom else max(min(y, height - bottom), 0)
        pen.rectangle((x, y, x + right, y + bottom), fill="black")
        pen.text((x, y), title, "white", font)
    return np.asarray(image)


def draw_labels(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    alpha: float = 0.55,
    min_side: int = 800,
    max_side: float = float("inf"),
    legend: bool = True,
) -> np.ndarray:
    """Colour an image's pixels by their word, with a legend below.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W), numbers of ``names``; below 0: not coloured.
        names: class names.
        palette: an RGB colour per class.
        alpha: how much of the colour, in [0, 1].
        min_side, max_side: as :func:`draw`.
        legend: write the words that are there below the image.

    Returns:
        (H', W', 3) uint8 RGB, higher by the legend.
    """
    longer = max(image.shape[:2])
    factor = float(np.clip(longer, min_side, max_side)) / longer
    width, height = (max(round(n * factor), 1) for n in image.shape[1::-1])
    numbers, areas = np.unique(labels[labels >= 0], return_counts=True)
    # a large image shrinks before it is coloured, a small one grows after it
    if factor < 1:
        image = np.asarray(Image.fromarray(image).resize((width, height)))
        sparse = Image.fromarray(labels.astype(np.int32))
        labels = np.asarray(sparse.resize((width, height), Image.Resampling.NEAREST))
    colors = np.asarray(palette, np.float32)[labels.clip(0)]
    share = alpha * (labels >= 0)[..., None]
    mixed = (image * (1 - share) + colors * share).round().astype(np.uint8)
    picture = Image.fromarray(mixed).resize((width, height), Image.Resampling.NEAREST)
    if not legend:
        return np.asarray(picture)
    # the words that are there, the largest first, in as many lines as they need
    size = max(round(14 * (width * height) ** 0.5 / 700), 14)
    places, x, y, line = [], 0, 0, 2 * size
    for number in numbers[(-areas).argsort(kind="stable")].tolist():
        title, font = readable(names[number], size)
        advance = round(font.getlength(title)) + 3 * size
        if x and x + advance > width:
            x, y = 0, y + line
        places.append((number, title, font, x, y))
        x += advance
    canvas = Image.new("RGB", (width, height + (y + line if places else 0)), "white")
    canvas.paste(picture)
    pen = ImageDraw.Draw(canvas)
    for number, title, font, x, y in places:
        top = height + y + size // 2
        color = tuple(map(int, palette[number]))
        box = (x + size // 2, top, x + size // 2 + size, top + size)
        pen.rectangle(box, color, "black")
        place = (x + 2 * size, top + size // 2)
        pen.text(place, title, "black", font, anchor="lm")
    return np.asarray(canvas)


class Drawings:
    """A folder of drawings: an image by its name, a video's frames as one ``.mp4``.

    Files are written atomically. Use it in a ``with``.

    Args:
        folder: made as needed.
        every: of a video, one frame in so many is drawn; it plays as long.
    """

    def __init__(self, folder: Path, every: int = 1) -> None:
        self.folder = folder
        self.every = every
        self._video: Path | None = None  # that is being written
        self._writer = cv2.VideoWriter()

    def __enter__(self) -> "Drawings":
        return self

    def __exit__(self, *error: object) -> None:
        self.finish(keep=error[0] is None)

    def place(self, source: ImageSource) -> Path:
        """Where a source's drawing is written."""
        path = self.folder / source.name
        suffixes = (".mp4",) if source.is_video else IMAGE_SUFFIXES
        if path.suffix.lower() in suffixes:
            return path
        return path.with_name(path.name + suffixes[0])

    def add(self, result: Result, drawing: np.ndarray) -> None:
        """Write a result's drawing (H, W, 3) uint8 RGB.

        Raises:
            OSError: it cannot be written.
        """
        path = self.place(result.source)
        # frames come in order: another source ends a video
        if self._video != path:
            self.finish()
        path.parent.mkdir(parents=True, exist_ok=True)
        bgr = np.ascontiguousarray(drawing[..., ::-1])  # OpenCV takes BGR
        if not result.source.is_video:
            write_whole(path, cv2.imencode(path.suffix, bgr)[1].tobytes())
            return
        if not self._video:
            # left-out frames do not make it shorter; 25 where the file does not say
            fps = (result.source.video_info().fps or 25) / self.every
            # of odd sizes the codec drops the last row or column
            size, codec = drawing.shape[1::-1], cv2.VideoWriter.fourcc(*"mp4v")
            if not self._writer.open(str(_scratch(path)), codec, fps, size):
                raise OSError(f"cannot write the video {path}, {size} px, {fps} fps")
            self._video = path
        self._writer.write(bgr)

    def finish(self, keep: bool = True) -> None:
        """Complete the video that was begun, if any; or remove it."""
        if self._video:
            self._writer.release()
            if keep:
                _scratch(self._video).replace(self._video)
            else:
                _scratch(self._video).unlink(missing_ok=True)
        self._video = None


def _scratch(video: Path) -> Path:
    """Where a video is written until it is whole."""
    return video.with_suffix(".part.mp4")
