"""Large images: searched tile by tile, and whole."""

import math

import numpy as np
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import batched_nms

from ..vocabulary import Vocabulary
from .api import KDEOV


def find_in_slices(
    student: KDEOV,
    picture: np.ndarray,
    vocabulary: Vocabulary,
    side: int,
    overlap: float = 0.2,
    score_threshold: float | None = None,
) -> DetDataSample:
    """Search a picture, and tiles of it; see :meth:`KDEOVInferencer.stream`.

    Args:
        student: finds.
        picture: (H, W, 3) uint8 BGR.
        vocabulary: what to look for.
        side: of the tiles, in pixels.
        overlap: of neighbours, a fraction of the side, at least.
        score_threshold: boxes below are left out; None: ``test_cfg``'s.

    Returns:
        The whole picture's sample, its boxes merged with those of the tiles by NMS
        within each class.
    """
    height, width = picture.shape[:2]
    if max(height, width) <= side:
        return student.find([picture], vocabulary, score_threshold)[0]
    corners = [
        (x, y)
        for y in _starts(height, side, overlap)
        for x in _starts(width, side, overlap)
    ]
    tiles = [picture[y : y + side, x : x + side] for x, y in corners]
    sample, *parts = student.find([picture, *tiles], vocabulary, score_threshold)
    found = [sample.pred_instances]
    for (x, y), part in zip(corners, parts):
        boxes = part.pred_instances
        boxes.bboxes = boxes.bboxes + boxes.bboxes.new_tensor([x, y, x, y])
        found.append(boxes[_is_whole(boxes.bboxes, x, y, side, (height, width))])
    every = InstanceData.cat(found)
    threshold = student.model.bbox_head.test_cfg.nms.iou_threshold
    # in double precision, for classes are moved apart, and many reach far
    boxes, scores = every.bboxes.double(), every.scores.double()
    sample.pred_instances = every[batched_nms(boxes, scores, every.labels, threshold)]
    return sample


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles begin that cover a length, at even distances."""
    if length <= side:
        return [0]
    steps = math.ceil((length - side) / max(side * (1 - overlap), 1))
    return [round(i * (length - side) / steps) for i in range(steps + 1)]


def _is_whole(
    boxes: Tensor, x: int, y: int, side: int, shape: tuple[int, int]
) -> Tensor:
    """Which of a tile's boxes (n, 4), xyxy of the picture, no inner border cuts."""
    height, width = shape
    near = side / 64  # boxes of what is cut end there or a little before
    inner = [x > 0, y > 0, x + side < width, y + side < height]
    gaps = boxes - boxes.new_tensor([x, y, x + side, y + side])
    return (gaps.abs() > near)[:, inner].all(1)
