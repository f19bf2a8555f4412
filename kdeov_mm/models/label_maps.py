"""From scores of a small map to labels of an image, and to its objects."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from torch import Tensor

from ..datasets.segmentation import BACKGROUND
from .distill.base import RegionEmbeds

CHUNK = 2**25  # scores that are in memory at once
POINTS = 100  # pixels that stand for an object, at most


def check_windows(cfg: dict[str, Any], divisor: int) -> None:
    """Refuse windows that leave pixels out, or do not meet the pixels of the maps.

    Raises:
        ValueError: ``window`` or ``stride`` is no multiple of ``divisor``, or the
            stride is larger than the window.
    """
    window: int = cfg.get("window") or divisor
    stride: int = cfg.get("stride") or window
    if window % divisor or stride % divisor or not 0 < stride <= window:
        raise ValueError(
            f"test_cfg: expected window and stride that are multiples of {divisor}, "
            f"the stride no larger, got {window} and {stride}"
        )


def starts(size: int, window: int, step: int) -> list[int]:
    """Where windows begin: every ``step`` pixels, the last at the end of the image."""
    last = max(size - window, 0)
    return [*range(0, last, step), last]


def interpolated(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w) of another size (height, width)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def pixel_regions(
    embeds: Tensor, background: Tensor | None, stride: int
) -> RegionEmbeds:
    """What each pixel of a map is part of: connected pixels that are no background.

    Args:
        embeds: (B, D, h, w), with gradient.
        background: (B, h, w), the probability of background; None: there is none, and
            no part.
        stride: pixels of the input from one to the next of the map.

    Returns:
        The h * w pixels of each image as locations. Of each part 100 pixels at most,
        chosen at random, have its box, all others one of no size; the first of them has
        its mean probability as ``sharpness``, the others 0.
    """
    batch_size, _, height, width = embeds.shape
    boxes = np.zeros((batch_size, height * width, 4), np.float32)
    sharpness = np.zeros((batch_size, height * width), np.float32)
    sure = () if background is None else 1 - background.detach().float().cpu().numpy()
    for i, objects in enumerate(sure):
        mask = (objects > 0.5).astype(np.uint8)
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        x, y, w, h = stats[:, :4].T
        corners = np.stack([x, y, x + w, y + h], 1) * stride
        # some pixels of each part in random order, the first of which stands for it;
        # the first part is the background
        parts = parts.reshape(-1)
        order = np.lexsort((np.random.rand(len(parts)), parts))
        ends = np.bincount(parts).cumsum()
        for part in range(1, len(ends)):
            own = order[ends[part - 1] : ends[part]]
            boxes[i, own[:POINTS]] = corners[part]
            sharpness[i, own[0]] = objects.reshape(-1)[own].mean()
    # centres of the pixels (h * w, 2)
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = (torch.stack([xs, ys], -1).reshape(-1, 2) + 0.5) * stride
    device = embeds.device
    return RegionEmbeds(
        embeds.flatten(2).transpose(1, 2),
        torch.from_numpy(boxes).to(device),
        torch.from_numpy(sharpness).to(device),
        centres.to(device),
    )


class FullSize(NamedTuple):
    """From maps of a padded input to the pixels of the original image.

    Attributes:
        padded: height and width of the input.
        inside: those of the image in it.
        original: those of the original; None: ``inside``.
    """

    padded: Sequence[int]
    inside: Sequence[int]
    original: Sequence[int] | None = None

    def __call__(self, maps: Tensor) -> Tensor:
        """(C, h, w) -> (C, H, W)."""
        height, width = self.inside
        grown = interpolated(maps[None], self.padded)[..., :height, :width]
        return interpolated(grown, (self.original or self.inside)[:2])[0]


def label_pixels(
    logits: Tensor, full_size: FullSize, background: int | None
) -> PixelData:
    """The best class of each pixel of the original image, and its share.

    Classes are enlarged a few at a time: all scores of a large image and a long
    vocabulary would not fit into memory.

    Args:
        logits: (K, h, w), one channel more with a background.
        full_size: to the pixels of the original.
        background: the channel that is background; None: there is none.
    """
    # as many classes at once as the image's size allows
    height, width = (full_size.original or full_size.inside)[:2]
    chunk = max(CHUNK // (height * width), 1)
    # of the first classes, then what others change
    best, label, total = _best(full_size(logits[:chunk]))
    for first in range(chunk, len(logits), chunk):
        value, which, share = _best(full_size(logits[first : first + chunk]))
        label = torch.where(value > best, which + first, label)
        best = torch.maximum(best, value)
        total = torch.logaddexp(total, share)
    if background is not None:
        label = label.masked_fill(label == background, BACKGROUND)
    confidence = (best - total).exp()
    return PixelData(sem_seg=label[None], confidence=confidence[None])


def _best(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of scores (C, H, W) the best, its channel, and the logarithm of their sum."""
    value, which = maps.max(0)
    return value, which, maps.logsumexp(0)
