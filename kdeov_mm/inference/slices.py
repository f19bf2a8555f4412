"""Large images: searched tile by tile, and whole."""

import math

import numpy as np
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import batched_nms

from ..models.postprocess import DEFAULT_IOU, is_agnostic, suppresses
from .api import KDEOV, Query


def predict_in_slices(
    student: KDEOV, image: np.ndarray, query: Query, side: int, overlap: float = 0.2
) -> DetDataSample:
    """Search an image, and tiles of it.

    For images much larger than the model's input, and small objects. Boxes that touch a
    border between tiles are left out: objects smaller than the overlap lie whole in
    some tile, larger ones are to be found in a tile that holds them, or in the whole
    image.

    Args:
        student: finds.
        image: (H, W, 3) uint8 RGB.
        query: of :meth:`KDEOV.query`.
        side: of the tiles, in pixels.
        overlap: of neighbours, a fraction of the side, at least.

    Returns:
        The whole image's sample, its boxes merged with those of the tiles by NMS
        within each class, or across them where the query is agnostic.
    """
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return student.predict([image], query)[0]
    # the whole image and its tiles pass the model together
    corners = [
        (x, y)
        for y in _starts(height, side, overlap)
        for x in _starts(width, side, overlap)
    ]
    tiles = [image[y : y + side, x : x + side] for x, y in corners]
    sample, *parts = student.predict([image, *tiles], query)
    # boxes of tiles move to their place in the image; those cut at a border go, and so
    # do masks, which are of a tile
    for each in (sample, *parts):
        each.pred_instances.pop("masks", None)
    found = [sample.pred_instances]
    for (x, y), part in zip(corners, parts):
        boxes = part.pred_instances
        boxes.bboxes = boxes.bboxes + boxes.bboxes.new_tensor([x, y, x, y])
        found.append(boxes[_is_whole(boxes.bboxes, x, y, side, (height, width))])
    merged = InstanceData.cat(found)
    # in double precision, for classes are moved apart, and many reach far
    boxes, scores = merged.bboxes.double(), merged.scores.double()
    apart = merged.labels * (not is_agnostic(query.cfg))
    # tiles overlap, whatever the head
    most = query.cfg.nms.iou_threshold if suppresses(query.cfg) else DEFAULT_IOU
    keep = batched_nms(boxes, scores, apart, most)
    sample.pred_instances = merged[keep]
    return sample


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles begin that cover a length, at even distances."""
    if length <= side:
        return [0]
    # as few tiles as the overlap allows, each a pixel further at least
    steps = math.ceil((length - side) / max(side * (1 - overlap), 1))
    return [round(i * (length - side) / steps) for i in range(steps + 1)]


def _is_whole(
    boxes: Tensor, x: int, y: int, side: int, shape: tuple[int, int]
) -> Tensor:
    """Which of a tile's boxes (n, 4), xyxy of the image, no inner border cuts."""
    height, width = shape
    # boxes of what is cut end at the border or a little before it
    near = side / 64
    # borders of the image cut nothing: left, top, right, below
    inner = [x > 0, y > 0, x + side < width, y + side < height]
    gaps = boxes - boxes.new_tensor([x, y, x + side, y + side])
    return (gaps.abs() > near)[:, inner].all(1)
