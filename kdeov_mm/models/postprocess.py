"""From the head's features to boxes, of any number of words."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torchvision.ops import nms

from ..vocabulary import Words
from .text_classifier import Linear1x1, max_over_synonyms

PART = 2**25  # scores that are held at once: 128 MiB
BLOCK = 64  # words that are passed over together
DEFAULT_IOU = 0.7  # of suppression, where it is asked for and a `test_cfg` has none
PEAK = 5  # locations, the side of the square that a peak is the best of


class SplitOutput(NamedTuple):
    """A head's output, with the last product of the class branch left to do.

    Attributes:
        hidden: L maps (B, C, H_l, W_l).
        layers: for each level the 1x1 convolution from these to W words.
        owner: (W,) the class of each word; None where each is one.
        boxes: L box sides (B, 4, H_l, W_l) in strides; in training, also L box
            logits (B, H_l * W_l, 4, reg_max).
    """

    hidden: list[Tensor]
    layers: list[Linear1x1]
    owner: Tensor | None
    boxes: list[list[Tensor]]

    def part(self, begin: int, end: int) -> "SplitOutput":
        """Of some images alone; their boxes are left out."""
        layers = [layer.part(begin, end) for layer in self.layers]
        return SplitOutput([h[begin:end] for h in self.hidden], layers, self.owner, [])

    def logits(self, num_classes: int | None = None) -> list[Tensor]:
        """L maps of logits (B, K, H_l, W_l)."""
        logits = [layer(feat) for feat, layer in zip(self.hidden, self.layers)]
        if self.owner is None:
            return logits
        return [max_over_synonyms(each, self.owner, num_classes) for each in logits]


def is_simple(cfg: Any) -> bool:
    """Whether :func:`best_boxes` does all that a ``test_cfg`` asks for."""
    # one label per box, other suppressions and least sizes are the parent's
    nms_cfg = cfg.get("nms", {})
    if suppresses(cfg):
        plain = {*nms_cfg} - {"class_agnostic"} == {"type", "iou_threshold"}
        plain = plain and nms_cfg["type"] == "nms"
    else:
        plain = nms_cfg is None
    plain = plain and cfg.get("multi_label") and (cfg.get("max_per_img") or 0) > 0
    return bool(plain) and not {"min_bbox_size", "yolox_style"} & {*cfg}


def suppresses(cfg: Any) -> bool:
    """Whether a ``test_cfg`` suppresses: ``nms=None`` takes :func:`peaks` instead."""
    return bool(cfg.get("nms"))


def set_suppression(
    cfg: Any, iou_threshold: float | None = None, agnostic: bool = False
) -> None:
    """Change how a ``test_cfg`` suppresses, in place.

    Args:
        cfg: with ``nms=None`` it begins to only where ``agnostic`` asks for it.
        iou_threshold: boxes that overlap more are one; None leaves it.
        agnostic: across classes; False leaves it.
    """
    if agnostic and not suppresses(cfg):
        cfg.nms = dict(type="nms", iou_threshold=DEFAULT_IOU)
    if iou_threshold is not None and suppresses(cfg):
        cfg.nms.iou_threshold = iou_threshold
    if agnostic:
        cfg.nms.class_agnostic = True


def is_agnostic(cfg: Any) -> bool:
    """Whether a ``test_cfg`` suppresses across classes: one box for an object."""
    return suppresses(cfg) and bool(cfg.nms.get("class_agnostic", False))


def least_logit(cfg: Any) -> float:
    """The score threshold of a ``test_cfg``, as a logit."""
    least = max(float(cfg.get("score_thr", 0)), 0.0)
    # no tensor, whose value would be read back
    return math.log(least / (1 - least)) if 0 < least < 1 else math.inf * (least - 0.5)


def max_boxes(cfg: Any) -> int:
    """How many boxes the suppression of a ``test_cfg`` is given, at most."""
    return cfg.get("nms_pre", 100000)


class Scored(NamedTuple):
    """Scores of an image.

    Attributes:
        logits: (n,)
        indices: (n, 2) the location, counted over all levels, and the class.
    """

    logits: Tensor
    indices: Tensor

    def top(self, number: int) -> "Scored":
        """The best ones, in order."""
        logits, order = self.logits.topk(min(number, len(self.logits)))
        return Scored(logits, self.indices[order])


def peaks(logits: Sequence[Tensor]) -> list[Tensor]:
    """Which locations have the best score of those about them: one for an object.

    In place of suppression, as CenterNet (Zhou et al., "Objects as Points", 2019,
    section 3): nothing is learnt for it, no boxes are compared, and a graph has it as
    maxima. Of two objects whose centres are nearer than two locations, one is lost.

    Args:
        logits: L maps (B, K, H_l, W_l), each level half the size of the one before.

    Returns:
        L maps (B, K, H_l, W_l) bool, word by word. A location is compared with a square
        of its own level and, in the levels next to it, with what lies at the same
        place.
    """
    around = [_best_around(each) for each in logits]
    kept = [each >= most for each, most in zip(logits, around)]
    for i, (fine, coarse) in enumerate(itertools.pairwise(logits)):
        kept[i] = kept[i] & (fine >= F.interpolate(coarse, scale_factor=2.0))
        kept[i + 1] = kept[i + 1] & (coarse > F.max_pool2d(fine, 2))
    return kept


def best_words(logits: Sequence[Tensor], number: int) -> tuple[list[Tensor], Tensor]:
    """Of each image the words with the best scores; the rest have none of the best.

    The best score of a word is a peak, so the ``number`` best :func:`peaks` of all
    words are those of these.

    Args:
        logits: L maps (B, K, H_l, W_l).
        number: n, less than K.

    Returns:
        L maps (B, n, H_l, W_l), and (B, n) the word of each.
    """
    images, words = logits[0].shape[:2]
    best = torch.stack([level.amax((2, 3)) for level in logits]).amax(0)
    chosen = best.topk(number).indices.sort().values
    # whole maps are taken, which costs less than an index for each score
    rows = chosen + words * torch.arange(images, device=chosen.device)[:, None]
    taken = [level.flatten(0, 1)[rows.flatten()] for level in logits]
    return [level.unflatten(0, (-1, number)) for level in taken], chosen


def _best_around(logits: Tensor) -> Tensor:
    """The best of each location's square: (B, K, H, W) -> (B, K, H, W)."""
    reach = PEAK // 2
    if torch.compiler.is_exporting() or logits.device.type != "cpu":
        return F.max_pool2d(logits, PEAK, 1, reach)
    # PyTorch's pooling takes nine times as long on a CPU as maxima of shifted maps
    for axis, margins in ((3, (reach, reach)), (2, (0, 0, reach, reach))):
        padded = F.pad(logits, margins, value=-math.inf)
        shifted = (padded.narrow(axis, i, logits.shape[axis]) for i in range(PEAK))
        logits = functools.reduce(torch.maximum, shifted)
    return logits


def best_boxes(
    scored: Scored,
    boxes: Tensor,
    meta: dict[str, Any],
    cfg: Any,
    rescale: bool,
    shapes: Sequence[tuple[int, int]] = (),
) -> InstanceData:
    """One image's boxes after suppression, class by class or across them, and cap.

    Args:
        scored: of :func:`above`.
        boxes: (sum H_l * W_l, 4) xyxy, pixels of the padded input.
        meta: the image's metainfo.
        cfg: ``test_cfg``.
        rescale: boxes in pixels of the original image.
        shapes: (H_l, W_l) of L levels, whose :func:`peaks` stay with ``nms=None``; of
            none, the scores are those of peaks already.
    """
    boxes = rescaled(boxes, meta) if rescale else boxes
    if not suppresses(cfg):
        if shapes:
            scored = _at_peaks(_of_best_words(scored, cfg.max_per_img), shapes)
        best = scored.top(cfg.max_per_img)
        location, labels = best.indices.unbind(1)
        boxes = clipped(boxes[location], meta)
        return InstanceData(bboxes=boxes, scores=best.logits.sigmoid(), labels=labels)
    limit = min(len(scored.logits), max_boxes(cfg))
    # what stays of the best n is the beginning of what stays of all: begin with few
    number = 4 * cfg.max_per_img
    while True:
        best = scored.top(min(number, limit))
        location, labels = best.indices.unbind(1)
        apart = labels * (not is_agnostic(cfg))
        keep = _suppress(boxes[location], best.logits, apart, cfg.nms.iou_threshold)
        if len(keep) >= cfg.max_per_img or number >= limit:
            break
        number *= 4
    # scores only of what stays
    keep = keep[: cfg.max_per_img]
    return InstanceData(
        bboxes=clipped(boxes[location[keep]], meta),
        scores=best.logits[keep].sigmoid(),
        labels=labels[keep],
    )


def _of_best_words(scored: Scored, number: int) -> Scored:
    """As :func:`best_words`, of single scores."""
    words, row = scored.indices[:, 1].unique(return_inverse=True)
    if len(words) <= number:
        return scored
    best = scored.logits.new_full((len(words),), -math.inf)
    best = best.scatter_reduce(0, row, scored.logits, "amax")
    chosen = torch.zeros_like(best, dtype=torch.bool)
    chosen[best.topk(number).indices] = True
    return Scored(scored.logits[chosen[row]], scored.indices[chosen[row]])


def _at_peaks(scored: Scored, shapes: Sequence[tuple[int, int]]) -> Scored:
    """Those scores that are peaks, of levels (H_l, W_l)."""
    # a map of each word that has a score
    where, sizes = scored.indices[:, 0], [h * w for h, w in shapes]
    words, row = scored.indices[:, 1].unique(return_inverse=True)
    maps = scored.logits.new_full((len(words), sum(sizes)), -math.inf)
    maps[row, where] = scored.logits
    # as pictures of one word: of no words there are maxima then, of no channels not
    levels = [m.view(-1, 1, *s) for m, s in zip(maps.split(sizes, 1), shapes)]
    keep = torch.cat([each.flatten(1) for each in peaks(levels)], 1)[row, where]
    return Scored(scored.logits[keep], scored.indices[keep])


def describe(
    samples: SampleList,
    results: Sequence[InstanceData],
    words: Sequence[Words],
    cfg: Any,
) -> None:
    """Say what results are of.

    They get ``label_names``, the first word of each class; the samples get
    ``max_per_img``, the cap of the ``test_cfg`` (-1: none), for metrics to report.
    """
    cap = cfg.get("max_per_img")
    for sample, result in zip(samples, results):
        result.label_names = [words[i][0] for i in result.labels.tolist()]
        sample.set_metainfo(dict(max_per_img=-1 if cap is None else int(cap)))


def rescaled(boxes: Tensor, meta: dict[str, Any]) -> Tensor:
    """Boxes (n, 4) in pixels of the padded input -> of the original image."""
    # first the padding at the left and the top, then the scale
    if (pad := meta.get("pad_param")) is not None:
        boxes = boxes - boxes.new_tensor([pad[2], pad[0], pad[2], pad[0]])
    return boxes / boxes.new_tensor(meta["scale_factor"]).repeat(2)


def clipped(boxes: Tensor, meta: dict[str, Any]) -> Tensor:
    """Boxes (n, 4) within the original image."""
    height, width = meta["ori_shape"][:2]
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))


def above(logits: Sequence[Tensor], threshold: float, enough: int) -> Scored:
    """Scores above a threshold; where they are very many, at least the best.

    Args:
        logits: L matrices (H_l * W_l, K).
        threshold: a logit.
        enough: number of scores that suffice.
    """
    if logits[0].shape[1] < 2 * BLOCK:
        return _above_together(logits, threshold)
    # the maximum of each block of words: most blocks have no score above
    blocks, start = [], 0
    for level in logits:
        words = level.shape[1]
        width = words if words < 2 * BLOCK else BLOCK
        cut = words // width * width
        for first, last in ((0, cut), (cut, words)):
            if first < last:
                part = level[:, first:last].unflatten(1, (-1, min(width, last - first)))
                blocks.append((part, part.amax(2), start, first))
        start += len(level)
    # with many blocks above it, a higher threshold leaves enough scores
    maxima = torch.cat([peaks.flatten() for _, peaks, _, _ in blocks])
    if (maxima > threshold).sum() > enough:
        least = maxima.topk(enough).values[-1]
        threshold = torch.nextafter(least, least - 1).item()
    # only the blocks with a maximum above are looked at
    values, index = [], []
    for part, peaks, start, first in blocks:
        location, block = (peaks > threshold).nonzero().unbind(1)
        chosen = part[location, block]
        row, column = (chosen > threshold).nonzero().unbind(1)
        values.append(chosen[row, column])
        word = first + block[row] * part.shape[2] + column
        index.append(torch.stack([location[row] + start, word], 1))
    return Scored(torch.cat(values).float(), torch.cat(index))


def _above_together(logits: Sequence[Tensor], threshold: float) -> Scored:
    """All scores of few words above a threshold.

    A GPU's host waits for two operators, however many levels there are.
    """
    # locations with a score above, counted over all levels
    peaks = torch.cat([level.amax(1) for level in logits])
    places = (peaks > threshold).nonzero()[:, 0]
    # their scores, of the level in which each lies: (n, K)
    chosen, start = logits[0].new_zeros(len(places), 1), 0
    for level in filter(len, logits):  # of a level, no location may be asked
        its = level[(places - start).clamp(0, len(level) - 1)]
        chosen = torch.where((places >= start)[:, None], its, chosen)
        start += len(level)
    row, word = (chosen > threshold).nonzero().unbind(1)
    index = torch.stack([places[row], word], 1)
    return Scored(chosen[row, word].float(), index)


def score_in_parts(
    rows: Sequence[Tensor],
    layers: Sequence[Linear1x1],
    owner: Tensor | None,
    where: Tensor | None,
    cfg: Any,
) -> Scored:
    """Scores of an image above the threshold, part by part; the ``nms_pre`` best.

    Args:
        rows: L matrices (H_l * W_l, C).
        layers: L linear maps to the words, (W, C) and (W,).
        owner: (W,) the class of each word, or None.
        where: indices of the locations that are scored, over all levels; None for all.
        cfg: ``test_cfg``.
    """
    if where is None:
        where = torch.arange(sum(map(len, rows)), device=rows[0].device)
    # the chosen locations of each level
    where = where.sort().values
    starts = [0, *itertools.accumulate(map(len, rows))]
    bounds = torch.searchsorted(where, where.new_tensor(starts)).tolist()
    chosen = [
        level[where[a:b] - start]
        for level, start, a, b in zip(rows, starts, bounds, bounds[1:])
    ]
    # score some words at a time, and keep the best so far
    limit = max_boxes(cfg)
    best = Scored(rows[0].new_zeros(0).float(), where.new_zeros(0, 2))
    number = max(PART // max(len(where), 1), 1)
    for begin, end in _parts(len(layers[0].weight), owner, number):
        logits = [
            torch.addmm(bias[begin:end].to(level), level, kernel[begin:end].T.to(level))
            for level, (kernel, bias) in zip(chosen, layers)
        ]
        first = begin
        if owner is not None:  # from words to classes
            first, part = int(owner[begin]), owner[begin:end]
            logits = [max_over_synonyms(each, part - first) for each in logits]
        scored = above(logits, least_logit(cfg), limit)
        index = torch.stack(
            [where[scored.indices[:, 0]], scored.indices[:, 1] + first], 1
        )
        best = Scored(
            torch.cat([best.logits, scored.logits]), torch.cat([best.indices, index])
        ).top(limit)
    return best


def _parts(number: int, owner: Tensor | None, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of parts of the words; the words of a class stay together."""
    # a part ends where a class ends
    begin = 0
    while begin < number:
        end = min(begin + size, number)
        if owner is not None and end < number:
            last = owner[end - 1]
            end = int(torch.searchsorted(owner, last, right=True))
        yield begin, end
        begin = end


class CandidateLocations(nn.Module):
    """Where very many words are worth scoring: a class-agnostic objectness.

    The objectness of a location is the best score there of ``probes`` vectors that
    stand for the vocabulary: of its k-means clusters the mean direction, as long as the
    members are. Where a word scores high, its cluster's probe does too, and the best
    boxes of an image come from few locations, so the words are scored at the ``number``
    best of them only. An approximation: ``tools/studies/benchmark.py`` measures how
    much of the exact result it keeps.

    Args:
        vectors: that are clustered, one for each word (W, ...).
        number: locations of an image that are scored.
        probes: clusters, at most.
        layers: L linear maps to the words, (W, C) and (W,), where they are the same for
            all images: the means of their clusters are computed once.

    Raises:
        ValueError: less than one location or probe.
    """

    def __init__(
        self,
        vectors: Tensor,
        number: int = 1000,
        probes: int = 1024,
        layers: Sequence[Linear1x1] = (),
    ) -> None:
        super().__init__()
        if number < 1 or probes < 1:
            raise ValueError(
                f"expected at least one location and one probe, got number={number}, "
                f"probes={probes}"
            )
        self.number = number
        cluster = _clusters(vectors, min(probes, len(vectors)))
        self.cluster: Tensor
        self.size: Tensor
        self.register_buffer("cluster", cluster)  # (W,)
        self.register_buffer("size", cluster.bincount())  # (P,)
        for i, layer in enumerate(layers):
            self.register_buffer(f"probes_{i}", self._probes(layer))

    def _probes(self, layer: Linear1x1) -> Tensor:
        """Each cluster's mean map, as long as its members, and bias: (P, C + 1)."""
        lengths = layer.weight.norm(dim=1, keepdim=True)
        maps = torch.cat([layer.weight, layer.bias[:, None], lengths], 1)
        total = maps.new_zeros(len(self.size), maps.shape[1])
        means = total.index_add_(0, self.cluster, maps) / self.size[:, None]
        # a mean is shorter than what it is of, and the more the wider the cluster is
        maps, length = means[:, :-1], means[:, -1:]
        short = maps[:, :-1].norm(dim=1, keepdim=True).clamp(min=1e-6)
        return torch.cat([maps[:, :-1] * (length / short), maps[:, -1:]], 1)

    def forward(self, rows: Sequence[Tensor], layers: Sequence[Linear1x1]) -> Tensor:
        """The best locations of an image.

        Args:
            rows: L matrices (H_l * W_l, C).
            layers: L linear maps to the words, (W, C) and (W,), of this image.

        Returns:
            Indices (number,), counted over all levels.
        """
        objectness = []
        known = dict(self.named_buffers())
        for i, (level, layer) in enumerate(zip(rows, layers)):
            kept = known.get(f"probes_{i}")
            probes = (self._probes(layer) if kept is None else kept).to(level.dtype)
            scores = torch.addmm(probes[:, -1], level, probes[:, :-1].T)
            objectness.append(scores.amax(1))
        best = torch.cat(objectness)
        return best.topk(min(self.number, len(best)), sorted=False).indices


def _clusters(vectors: Tensor, number: int, rounds: int = 10) -> Tensor:
    """The k-means cluster of each vector (W, ...): (W,), none of them empty."""
    # on the CPU, with a fixed seed; empty clusters are numbered away
    points = vectors.detach().flatten(1).cpu().float().numpy()
    _, labels = kmeans2(points, number, iter=rounds, minit="points", rng=0)
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1]).to(
        vectors.device
    )


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Indices that non-maximum suppression within each class leaves, best first."""
    # classes are moved apart, in double precision: 1203 of them reach far
    reach = boxes.max().double() + 1 if len(boxes) else 1
    return nms(boxes.double() + (labels * reach)[:, None], scores.double(), iou)
