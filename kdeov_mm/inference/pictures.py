"""Images and words -> boxes, names, drawings."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.font_manager import findfont
from mmdet.structures import DetDataSample
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor


def read_image(path: str | Path) -> np.ndarray:
    """Read any picture as (H, W, 3) uint8 BGR, mm's channel order.

    Gray, palette, 16-bit and transparent pictures are converted (transparency
    on white), EXIF orientation is applied.

    Raises:
        OSError: the file is missing, no picture, or ends early; names it.
    """
    try:
        with Image.open(path) as file:
            return to_bgr(file)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read image {path}: {error}") from error


def to_bgr(picture: Image.Image) -> np.ndarray:
    """Any PIL picture as (H, W, 3) uint8 BGR; see :func:`read_image`."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits of gray
        gray = np.asarray(picture).astype(np.float64) / 257
        picture = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture)
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])


def check_pixels(picture: np.ndarray, order: str) -> np.ndarray:
    """An array (H, W, 3) or, of gray, (H, W), as (H, W, 3).

    Args:
        picture: uint8.
        order: of the channels, RGB or BGR, as the caller takes them.

    Raises:
        ValueError: another shape, no pixels, or no uint8.
    """
    if picture.ndim == 2:
        picture = np.stack([picture] * 3, -1)
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or not picture.size:
        raise ValueError(
            f"expected an array (H, W, 3) of uint8, {order}, got "
            f"{picture.shape} of {picture.dtype}"
        )
    return picture


def draw(
    image: np.ndarray,
    sample: DetDataSample,
    names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    marked: Collection[str] = (),
    mark: str = " (novel)",
    score_threshold: float = 0.3,
    side: int = 800,
) -> np.ndarray:
    """Draw ground truth (left, where the sample has it) and predictions.

    Args:
        image: (H, W, 3) uint8 RGB.
        sample: boxes in pixels of ``image``; labels index ``names``.
        names: class names.
        palette: an RGB colour per class.
        marked: names to write with ``mark``.
        score_threshold: predictions below are not drawn.
        side: the longer side of the picture, in pixels, that small images grow to;
            larger ones keep their size.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    factor = max(side / max(image.shape[:2]), 1)
    large = np.asarray(
        Image.fromarray(image).resize(
            [max(round(n * factor), 1) for n in image.shape[1::-1]],
            Image.Resampling.BICUBIC,
        )
    )
    panels = []
    for key in ("gt_instances", "pred_instances"):
        if key not in sample:
            continue
        found = sample.get(key).cpu()
        if "scores" in found:
            found = found[found.scores >= score_threshold]
            found = found[found.scores.argsort()]  # the best on top
        titles = [names[i] + (mark if names[i] in marked else "") for i in found.labels]
        if "scores" in found:
            titles = [f"{t} {s:.2f}" for t, s in zip(titles, found.scores)]
        colors = [tuple(map(int, palette[i])) for i in found.labels]
        boxes = torch.as_tensor(found.bboxes) * factor
        panels.append(_draw_boxes(large, boxes, titles, colors))
    return np.concatenate(panels, 1)


def _draw_boxes(
    image: np.ndarray,
    boxes: Tensor,
    titles: list[str],
    colors: list[tuple[int, ...]],
) -> np.ndarray:
    """A copy of the image with boxes (n, 4), xyxy pixels, and their titles."""
    picture = Image.fromarray(image)
    pen, (width, height) = ImageDraw.Draw(picture), picture.size
    scale = max((width * height) ** 0.5 / 700, 1)
    font = ImageFont.truetype(findfont("DejaVu Sans"), round(14 * scale))
    for (x1, y1, x2, y2), color in zip(boxes.tolist(), colors):
        box = (x1, y1, max(x1, x2), max(y1, y2))
        pen.rectangle(box, outline=color, width=round(3 * scale))
    for (x, y, *_), title in zip(boxes.tolist(), titles):
        _, _, right, bottom = pen.textbbox((0, 0), title, font)
        x = max(min(x, width - right), 0)
        y = y - bottom if y >= bottom else max(min(y, height - bottom), 0)
        pen.rectangle((x, y, x + right, y + bottom), fill="black")
        pen.text((x, y), title, "white", font)
    return np.asarray(picture)
