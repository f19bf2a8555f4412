"""From the head's features to boxes, of any number of words."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torchvision.ops import nms

Layer: TypeAlias = tuple[Tensor, Tensor]  # a 1x1 convolution, (K, C) and (K,)
PART = 2**25  # scores that are held at once: 128 MiB
BLOCK = 64  # words that are passed over together


def one_by_one(feats: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Maps (B, C, H, W), kernel (K, C), bias (K,) -> (B, K, H, W)."""
    return F.conv2d(
        feats, kernel[..., None, None].to(feats.dtype), bias.to(feats.dtype)
    )


def logits_of(
    hidden: Sequence[Tensor],
    layers: Sequence[Layer],
    owner: Tensor | None,
    number: int | None = None,
) -> list[Tensor]:
    """L maps (B, C, H, W) and L convolutions to W words -> (B, K, H, W).

    Args:
        hidden: maps.
        layers: convolutions, (W, C) and (W,).
        owner: (W,) the class of each word, in order; None: each is one.
        number: K, where it is known.
    """
    logits = [one_by_one(h, *layer) for h, layer in zip(hidden, layers)]
    if owner is None:
        return logits
    return [best_of(each, owner, number) for each in logits]


def best_of(logits: Tensor, owner: Tensor, number: int | None = None) -> Tensor:
    """Logits (B, W, ...) of words -> (B, K, ...), the best of each class's.

    ``number`` is K, where it is known.
    """
    index = owner.view(-1, *[1] * (logits.ndim - 2)).expand_as(logits)
    number = int(owner[-1]) + 1 if number is None else number
    shape = (logits.shape[0], number, *logits.shape[2:])
    return logits.new_empty(shape).scatter_reduce(
        1, index, logits, "amax", include_self=False
    )


def is_simple(cfg: Any) -> bool:
    """Whether :func:`best_boxes` does all that a ``test_cfg`` asks for."""
    nms_cfg = cfg.get("nms", {})
    plain = cfg.get("multi_label") and {*nms_cfg} == {"type", "iou_threshold"}
    plain = plain and nms_cfg["type"] == "nms" and (cfg.get("max_per_img") or 0) > 0
    return bool(plain) and not {"min_bbox_size", "yolox_style"} & {*cfg}


def least_logit(cfg: Any) -> float:
    """The score threshold of a ``test_cfg``, as a logit."""
    least = max(float(cfg.get("score_thr", 0)), 0.0)
    return torch.logit(torch.tensor(least)).item()


def most_boxes(cfg: Any) -> int:
    """How many boxes the suppression of a ``test_cfg`` is given, at most."""
    return cfg.get("nms_pre", 100000)


def best_boxes(
    found: tuple[Tensor, Tensor],
    boxes: Tensor,
    meta: dict[str, Any],
    cfg: Any,
    rescale: bool,
) -> InstanceData:
    """One image's boxes after suppression class by class, and cap.

    Args:
        found: as :func:`above` returns them.
        boxes: (sum H_l * W_l, 4) xyxy, pixels of the padded input.
        meta: the image's metainfo.
        cfg: ``test_cfg``.
        rescale: boxes in pixels of the original image.
    """
    values, places = found
    boxes = rescaled(boxes, meta) if rescale else boxes
    most = min(len(values), most_boxes(cfg))
    number = 4 * cfg.max_per_img
    while True:  # what stays of the best n is the beginning of what stays of all
        scores, order = values.topk(min(number, most))
        location, labels = places[order].unbind(1)
        keep = _suppress(boxes[location], scores, labels, cfg.nms.iou_threshold)
        if len(keep) >= cfg.max_per_img or number >= most:
            break
        number *= 4
    keep = keep[: cfg.max_per_img]
    return InstanceData(
        bboxes=clipped(boxes[location[keep]], meta),
        scores=scores[keep].sigmoid(),
        labels=labels[keep],
    )


def rescaled(boxes: Tensor, meta: dict[str, Any]) -> Tensor:
    """Boxes (n, 4) in pixels of the padded input -> of the original image."""
    if (pad := meta.get("pad_param")) is not None:
        boxes = boxes - boxes.new_tensor([pad[2], pad[0], pad[2], pad[0]])
    return boxes / boxes.new_tensor(meta["scale_factor"]).repeat(2)


def clipped(boxes: Tensor, meta: dict[str, Any]) -> Tensor:
    """Boxes (n, 4) within the original image."""
    height, width = meta["ori_shape"][:2]
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))


def above(
    logits: Sequence[Tensor], threshold: float, most: int
) -> tuple[Tensor, Tensor]:
    """Scores above a threshold; where they are very many, at least the best.

    Args:
        logits: L matrices (places of the level, K).
        threshold: a logit.
        most: scores that are enough.

    Returns:
        (n,) logits; (n, 2) the place, counted over all levels, and the word.
    """
    blocks, start = [], 0  # most blocks of words are empty, and looked at once
    for level in logits:
        words = level.shape[1]
        width = words if words < 2 * BLOCK else BLOCK
        cut = words // width * width
        for first, last in ((0, cut), (cut, words)):
            if first < last:
                part = level[:, first:last].unflatten(1, (-1, min(width, last - first)))
                blocks.append((part, part.amax(2), start, first))
        start += len(level)
    best = torch.cat([maxima.flatten() for _, maxima, _, _ in blocks])
    if (best > threshold).sum() > most:  # so many scores are as good as the last of
        least = best.topk(most).values[-1]
        threshold = torch.nextafter(least, least - 1).item()
    values, places = [], []
    for part, maxima, start, first in blocks:
        place, block = (maxima > threshold).nonzero().unbind(1)
        chosen = part[place, block]
        row, column = (chosen > threshold).nonzero().unbind(1)
        values.append(chosen[row, column])
        word = first + block[row] * part.shape[2] + column
        places.append(torch.stack([place[row] + start, word], 1))
    return torch.cat(values).float(), torch.cat(places)


def score_in_parts(
    rows: Sequence[Tensor],
    layers: Sequence[Layer],
    owner: Tensor | None,
    where: Tensor | None,
    cfg: Any,
) -> tuple[Tensor, Tensor]:
    """Scores of an image above the threshold, words by words; the ``nms_pre`` best.

    Args:
        rows: L matrices (H_l * W_l, C).
        layers: L linear maps to the words, (W, C) and (W,).
        owner: (W,) the class of each word, or None.
        where: indices of the places that are scored, over all levels; None for all.
        cfg: ``test_cfg``.

    Returns:
        As :func:`above`.
    """
    if where is None:
        where = torch.arange(sum(map(len, rows)), device=rows[0].device)
    where = where.sort().values
    starts = [0, *itertools.accumulate(map(len, rows))]
    bounds = torch.searchsorted(where, where.new_tensor(starts)).tolist()
    chosen = [
        level[where[a:b] - start]
        for level, start, a, b in zip(rows, starts, bounds, bounds[1:])
    ]
    most = most_boxes(cfg)
    found: tuple[Tensor, Tensor] = (rows[0].new_zeros(0), where.new_zeros(0, 2))
    for begin, end in _parts(len(layers[0][0]), owner, max(PART // len(where), 1)):
        logits = [
            torch.addmm(bias[begin:end].to(level), level, kernel[begin:end].T.to(level))
            for level, (kernel, bias) in zip(chosen, layers)
        ]
        first = begin
        if owner is not None:
            first = int(owner[begin])
            logits = [best_of(each, owner[begin:end] - first) for each in logits]
        values, places = above(logits, least_logit(cfg), most)
        places = torch.stack([where[places[:, 0]], places[:, 1] + first], 1)
        values, places = torch.cat([found[0], values]), torch.cat([found[1], places])
        best = values.topk(min(len(values), most)).indices
        found = values[best], places[best]
    return found


def _parts(number: int, owner: Tensor | None, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of parts of the words; the words of a class stay together."""
    begin = 0
    while begin < number:
        end = min(begin + size, number)
        if owner is not None and end < number:
            last = owner[end - 1]
            end = int(torch.searchsorted(owner, last, right=True))
        yield begin, end
        begin = end


class PromisingPlaces(nn.Module):
    """Where very many words are worth scoring: a class-agnostic objectness.

    The objectness of a place is the best score there of ``probes`` vectors that
    stand for the vocabulary: centres of its k-means clusters, in the space of the
    last layer. Words that fire fire where a centre near them does, and the best boxes
    of an image sit on few of its places, so the words are scored on the ``number``
    most promising ones alone. It is an approximation;
    ``tools/studies/benchmark.py`` tells how much of the exact result it keeps.

    Args:
        layers: L linear maps to the words, (W, C) and (W,).
        number: places of an image that are scored.
        probes: cluster centres.

    Raises:
        ValueError: not even one place or probe.
    """

    def __init__(
        self, layers: Sequence[Layer], number: int = 1000, probes: int = 256
    ) -> None:
        super().__init__()
        if number < 1 or probes < 1:
            raise ValueError(
                f"expected at least one place and one probe, got number={number}, "
                f"probes={probes}"
            )
        self.number = number
        cluster = _clusters(layers[0][0], min(probes, len(layers[0][0])))
        for i, layer in enumerate(layers):
            rows = torch.cat([layer[0], layer[1][:, None]], 1)
            total = rows.new_zeros(int(cluster.max()) + 1, rows.shape[1])
            total.index_add_(0, cluster, rows)
            self.register_buffer(f"probes_{i}", total / cluster.bincount()[:, None])

    def forward(self, rows: Sequence[Tensor]) -> Tensor:
        """L matrices (H_l * W_l, C) -> indices of places (number,), over all levels."""
        objectness = []
        for i, level in enumerate(rows):
            probes = self.get_buffer(f"probes_{i}")
            probes = probes.to(level.dtype)
            scores = torch.addmm(probes[:, -1], level, probes[:, :-1].T)
            objectness.append(scores.amax(1))
        best = torch.cat(objectness)
        return best.topk(min(self.number, len(best)), sorted=False).indices


def _clusters(vectors: Tensor, number: int, rounds: int = 10) -> Tensor:
    """The k-means cluster of each vector (W, C): (W,), none of them empty."""
    points = vectors.detach().cpu().double().numpy()
    _, labels = kmeans2(points, number, iter=rounds, minit="points", rng=0)
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1]).to(
        vectors.device
    )


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Indices that non-maximum suppression within each class leaves, best first."""
    # classes are moved apart, in double precision: 1203 of them reach far
    reach = boxes.max().double() + 1 if len(boxes) else 1
    return nms(boxes.double() + (labels * reach)[:, None], scores.double(), iou)
