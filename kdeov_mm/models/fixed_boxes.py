"""The best boxes of a batch in tensors whose shapes depend on no value."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import box_iou

from .postprocess import (
    PART,
    SplitOutput,
    clipped,
    is_agnostic,
    least_logit,
    max_boxes,
    peaks,
    rescaled,
    suppresses,
)

ROUNDS = 16  # of the suppression by products of matrices


def fixed_settings(cfg: Any) -> tuple[Any, ...]:
    """What :func:`fixed_boxes` does by a ``test_cfg``; the threshold is not in it."""
    iou = cfg.nms.iou_threshold if suppresses(cfg) else None
    return cfg.max_per_img, max_boxes(cfg), iou, is_agnostic(cfg)


def fixed_boxes(
    output: SplitOutput, boxes: Tensor, num_classes: int, cfg: Any
) -> Tensor:
    """The best boxes of a batch, in tensors whose shapes depend on no value.

    As :func:`best_boxes` of a fixed number of the best scores, whatever the threshold:
    what lies below it suppresses nothing above. Across words a place has one score,
    the best, and ``nms_pre`` counts these.

    Args:
        output: of the head, for B images.
        boxes: (B, N, 4) xyxy, pixels of the padded input.
        num_classes: K.
        cfg: a ``test_cfg`` that is simple.

    Returns:
        (B, n + 1, 6) float32, see :func:`read_fixed`: ``max_per_img`` rows of corners,
        logit and label, best first; a logit of -inf is of no box. In the last row is
        the logit above which they are those of all scores.
    """
    number = min(cfg.max_per_img * (4 if suppresses(cfg) else 1), max_boxes(cfg))
    # as many images at once as there is room for their scores, and for pairs of boxes
    step = max(PART // max(boxes.shape[1] * num_classes, 4 * number**2), 1)
    parts = []
    for first in range(0, len(boxes), step):
        logits = output.part(first, first + step).logits(num_classes)
        if not suppresses(cfg):
            pairs = zip(logits, peaks(logits))
            logits = [level.masked_fill(~kept, -math.inf) for level, kept in pairs]
        best = _best_scores(logits, number, is_agnostic(cfg))
        cut = best[0].shape[1] == number < max_boxes(cfg)
        parts.append(_fixed_part(*best, boxes[first : first + step], cut, cfg))
    return torch.cat(parts)


def _best_scores(
    logits: Sequence[Tensor], number: int, one_word: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The best of L maps (B, K, H_l, W_l), or of their places' best words.

    Returns:
        (B, number) each, less where there are not as many: logits, labels and places.
    """
    # of each level, then of all
    columns, start = [], 0
    for level in logits:
        area = level[0, 0].numel()
        labels = None
        if one_word:
            level, labels = level.max(1)
        best, index = level.flatten(1).topk(min(number, level[0].numel()))
        labels = index // area if labels is None else labels.flatten(1).gather(1, index)
        columns.append((best.float(), labels, index % area + start))
        start += area
    best, labels, places = (torch.cat(each, 1) for each in zip(*columns))
    best, order = best.topk(min(number, best.shape[1]))
    return best, labels.gather(1, order), places.gather(1, order)


def _fixed_part(
    best: Tensor, labels: Tensor, places: Tensor, boxes: Tensor, cut: bool, cfg: Any
) -> Tensor:
    """Of :func:`_best_scores` and boxes (B, N, 4), what :func:`fixed_boxes` gives.

    ``cut``: there may be scores behind the last one.
    """
    boxes = boxes.gather(1, places[..., None].expand(-1, -1, 4))
    bound = best.new_full((len(best),), -math.inf)
    if suppresses(cfg):
        # the last one, and what is not settled
        if cut:
            bound = best[:, -1]
        apart = None if is_agnostic(cfg) else labels
        keep, changed = _suppress_all(boxes, apart, cfg.nms.iou_threshold)
        bound = bound.maximum(best.masked_fill(~changed, -math.inf).amax(1))
        best = best.masked_fill(~keep, -math.inf)
    best, order = best.topk(min(cfg.max_per_img, best.shape[1]))
    labels, order = labels.gather(1, order), order[..., None].expand(-1, -1, 4)
    rows = [boxes.gather(1, order), best[..., None], labels[..., None].float()]
    return torch.cat([torch.cat(rows, 2), bound[:, None, None].expand(-1, 1, 6)], 1)


def _suppress_all(
    boxes: Tensor, labels: Tensor | None, iou: float
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression by products of matrices: no box waits for another.

    Who is suppressed by those that stay is asked again and again, with the answer of
    the round before: Cluster-NMS (Zheng et al., "Enhancing Geometric Factors in Model
    Learning and Inference", 2021, section 3.3), whose end is what the usual loop gives.

    Args:
        boxes: (B, n, 4), best first.
        labels: (B, n); None: across classes.
        iou: boxes that overlap more are one.

    Returns:
        (B, n) bool: what stays; and what the last round has changed: boxes before the
        first of these are settled.
    """
    worse = box_iou(boxes, boxes) > iou
    if labels is not None:
        worse = worse & (labels[:, :, None] == labels[:, None])
    worse = worse.triu(1)  # (B, n, n): of each row those that it would suppress
    keep = before = torch.ones_like(boxes[..., 0], dtype=torch.bool)
    for _ in range(ROUNDS):
        before, keep = keep, ~(worse & keep[:, :, None]).any(1)
    return keep, keep != before


def read_fixed(
    rows: Tensor, meta: dict[str, Any], cfg: Any, rescale: bool
) -> InstanceData | None:
    """An image's boxes, of what :func:`fixed_boxes` gives.

    Args:
        rows: (n + 1, 6), on the host.
        meta, cfg, rescale: as in :func:`best_boxes`.

    Returns:
        The boxes; None where the fixed number of scores does not say which they are.
    """
    rows, bound = rows[:-1], rows[-1, 0].item()
    least = least_logit(cfg)
    # a full list ends above the bound, any other with the threshold
    if bound > least and not (len(rows) and rows[-1, 4] > bound):
        return None
    rows = rows[rows[:, 4] > least]
    boxes = rescaled(rows[:, :4], meta) if rescale else rows[:, :4]
    return InstanceData(
        bboxes=clipped(boxes, meta),
        scores=rows[:, 4].sigmoid(),
        labels=rows[:, 5].long(),
    )
