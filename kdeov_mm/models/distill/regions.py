"""Which boxes of an image the teacher embeds."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

from ...clip.teacher_batch import TeacherBatch
from .base import Distillation, Needs, RegionEmbeds, StudentBatch

SOURCES = ("truth", "own", "random", "blocks", "stored")
OBJECTS = ("own", "stored")  # sources of objects that may have no label
MIN_VISIBLE = 0.5  # of an object's box, by area
MIN_SIDE = 4  # pixels, of own boxes


class RegionPicker(Distillation):
    """A distillation of regions: those of its sources, in their order.

    - ``truth``: the ground-truth boxes, but for objects less than half of which is
      left in the input, where that is known
      (:class:`kdeov_mm.datasets.KeepOriginal`): their class is seldom seen;
    - ``own``: the student's best boxes elsewhere, picked without classes: objects
      that nobody labelled;
    - ``random``: squares of random place and size;
    - ``blocks``: the tiles of a few grids over the image;
    - ``stored``: the boxes of the teacher's store
      (:class:`kdeov_mm.clip.CachedTeacher`), e.g. those of an earlier student.

    Args:
        distances: see :class:`Distillation`.
        sources: where regions come from.
        proposals: own boxes per image, at most; and the number of random ones.
        grids: tiles per side of the grids of ``blocks``.
        nms_iou: own boxes overlapping more are one region.
        label_iou: own boxes that overlap a label more are its object or a piece of it,
            and left out; None: ``nms_iou``. Lower it where scenes are crowded.
        warmup: part of the training without own boxes, while they are random, in
            [0, 1).
        scales: crop sizes relative to the box.
        min_side: objects with a shorter side, in pixels of the input, are no regions:
            a teacher sees little of them. Of the sources ``truth`` and ``own``.
    """

    def __init__(
        self,
        distances: dict[str, dict[str, Any]] | None = None,
        sources: Sequence[str] = ("truth", "own"),
        proposals: int = 5,
        grids: Sequence[int] = (2, 3, 4),
        nms_iou: float = 0.5,
        label_iou: float | None = None,
        warmup: float = 0.0625,
        scales: Sequence[float] = (1.0, 1.5),
        min_side: float = 0.0,
    ) -> None:
        super().__init__(distances)
        if not set(sources) <= set(SOURCES):
            raise ValueError(f"sources are some of {SOURCES}, got {tuple(sources)}")
        if not 0 <= warmup < 1:
            raise ValueError(
                "warmup is a part of the training, from 0 to below 1 (0.0625 of 800 "
                f"iterations are 50), got {warmup}"
            )
        self.sources = tuple(sources)
        self.proposals = proposals
        self.grids = tuple(grids)
        self.nms_iou = nms_iou
        self.label_iou = nms_iou if label_iou is None else label_iou
        self.warmup = warmup
        self.scales = tuple(scales)
        self.min_side = min_side
        # checkpoints before 0.2.0 counted their steps
        self._register_load_state_dict_pre_hook(
            lambda state, prefix, *_: state.pop(f"{prefix}steps", None)
        )

    @property
    def needs(self) -> Needs:
        """Crops of its sources."""
        grids = self.grids if "blocks" in self.sources else ()
        scales = self.scales if self.sources else ()
        return Needs(sources=self.sources, scales=scales, grids=grids)

    @torch.no_grad()
    def pick(self, student: StudentBatch, teacher: TeacherBatch) -> "Regions":
        """The regions of a batch, of each image source after source.

        They are on the student's device where its own boxes are a source; else where
        the labels are.
        """
        samples, embeds = student.samples, student.regions
        truth = samples[0].gt_instances.bboxes
        own = embeds if "own" in self.sources else None
        # source -> boxes of each image
        sizes, given = image_sizes(samples), {}
        for source in self.sources:
            boxes = [truth[:0]] * len(samples)
            if source == "truth":
                boxes = [self.seen_truth(sample).bboxes for sample in samples]
            elif source == "own":
                if own is not None and student.progress >= self.warmup:
                    boxes = self.own_boxes(samples, own)
            elif source == "random":
                boxes = [*_random_squares(sizes, self.proposals)]
            elif source == "blocks":
                boxes = [*(_tiles(self.grids) * sizes[:, None].repeat(1, 1, 2))]
            else:
                boxes = [teacher.stored_boxes(i) for i in range(len(samples))]
            # those of all images move at once
            joined = torch.cat(boxes).to(own.boxes if own else truth, non_blocking=True)
            given[source] = joined.split([len(its) for its in boxes])
        # image after image
        boxes = [part for parts in zip(*given.values()) for part in parts]
        counts = [sum(map(len, parts)) for parts in zip(*given.values())]
        objects = [source in OBJECTS for source in given] * len(samples)
        flags = [flag for flag, its in zip(objects, boxes) for _ in range(len(its))]
        return Regions(torch.cat(boxes), counts, torch.tensor(flags, dtype=torch.bool))

    def seen_truth(self, sample: DetDataSample) -> InstanceData:
        """The ground truth that ``truth`` takes: visible by half, and large enough."""
        truth = sample.gt_instances
        if "visible" in truth:
            truth = truth[truth.visible >= MIN_VISIBLE]
        sides = truth.bboxes[:, 2:] - truth.bboxes[:, :2]
        return truth[sides.amin(1) >= self.min_side] if self.min_side else truth

    def fixed_boxes(self, sample: DetDataSample) -> Tensor:
        """The boxes (n, 4) of ``truth`` and ``blocks``: the same each time."""
        truth, shape = sample.gt_instances.bboxes, sample.img_shape
        parts = dict(truth=truth, blocks=block_boxes(shape, self.grids).to(truth))
        chosen = [parts[source] for source in self.sources if source in parts]
        return torch.cat([truth[:0], *chosen])

    @torch.no_grad()
    def own_boxes(self, samples: SampleList, regions: RegionEmbeds) -> list[Tensor]:
        """The student's sharpest boxes that no label covers: (n_b, 4) of each image."""
        device = regions.boxes.device
        limit = image_sizes(samples).to(device, non_blocking=True).repeat(1, 2)
        boxes = regions.boxes.clamp(min=0).minimum(limit[:, None])  # (B, N, 4)
        # sharpness; -1 where a label covers the box, or it is too small
        truth = padded([s.gt_instances.bboxes for s in samples], device)
        covered = (bbox_overlaps(boxes, truth) > self.label_iou).any(2)
        least = max(self.min_side, MIN_SIDE)
        large = (boxes[..., 2:] - boxes[..., :2]).amin(2) > least
        score = regions.sharpness.masked_fill(covered | ~large, -1)
        # the best of a pool, one after the other, without their duplicates
        pool = min(max(64, 4 * self.proposals), score.shape[1])
        score, where = score.topk(pool)
        boxes = boxes.gather(1, where[..., None].expand(-1, -1, 4))
        near = bbox_overlaps(boxes, boxes) > self.nms_iou  # (B, pool, pool)
        picks, kept = [boxes[:0, 0]], [score[:, :0]]
        for _ in range(self.proposals):
            best, which = score.max(1, keepdim=True)
            kept.append(best)
            picks.append(boxes.gather(1, which[..., None].expand(-1, -1, 4))[:, 0])
            same = near.gather(1, which[..., None].expand(-1, -1, pool))[:, 0]
            score = score.masked_fill(same, -1).scatter(1, which, -1)
        # how many there are: the one look at values
        counts = (torch.cat(kept, 1) > 0).sum(1).tolist()
        places = [i + j * len(samples) for i, n in enumerate(counts) for j in range(n)]
        index = torch.tensor(places, dtype=torch.long).to(device, non_blocking=True)
        return [*torch.cat(picks)[index].split(counts)]


class Regions(NamedTuple):
    """The regions of a batch, image after image.

    Attributes:
        boxes: (R, 4), xyxy in pixels of the padded input.
        counts: the number in each image.
        objects: (R,) bool, those of sources of objects that may have no label.
    """

    boxes: Tensor
    counts: list[int]
    objects: Tensor

    def split(self) -> list[Tensor]:
        """The boxes of each image."""
        return [*self.boxes.split(self.counts)]

    def images(self, device: torch.device) -> Tensor:
        """The image of each region: (R,) int64."""
        numbers = [i for i, n in enumerate(self.counts) for _ in range(n)]
        return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


def padded(rows: Sequence[Tensor], device: torch.device) -> Tensor:
    """B tensors (n_b, ...) -> (B, G, ...) on a device, zeros behind the rows of each.

    Nothing waits for the device where the rows are on the host.
    """
    counts = [len(its) for its in rows]
    most = max(counts)
    joined = torch.cat([*rows])
    places = [i * most + j for i, n in enumerate(counts) for j in range(n)]
    index = torch.tensor(places, dtype=torch.long).to(joined.device, non_blocking=True)
    result = joined.new_zeros(len(rows) * most, *joined.shape[1:])
    result = result.index_copy(0, index, joined).to(device, non_blocking=True)
    return result.view(len(rows), most, *joined.shape[1:])


def image_sizes(samples: SampleList) -> Tensor:
    """Width and height of each input without its padding: (B, 2), on the host."""
    return torch.tensor([sample.img_shape[1::-1] for sample in samples]).float()


def block_boxes(shape: Sequence[int], grids: Sequence[int]) -> Tensor:
    """Tiles of n x n grids over an image (height, width, ...): (sum n^2, 4) xyxy."""
    return _tiles(tuple(grids)) * torch.tensor([shape[1], shape[0]] * 2)


@lru_cache
def _tiles(grids: tuple[int, ...]) -> Tensor:
    """Tiles of n x n grids, in units of the image: (sum n^2, 4) xyxy."""
    tiles = []
    for n in grids:
        x, y = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="xy")
        tiles.append(torch.stack([x, y, x + 1, y + 1], -1).reshape(-1, 4) / n)
    return torch.cat(tiles)


def _random_squares(sizes: Tensor, count: int) -> Tensor:
    """Squares of 0.1 to 0.5 of the shorter side, inside the image.

    Args:
        sizes: (B, 2), width and height.
        count: of each image.

    Returns:
        (B, count, 4).
    """
    # sides of 0.1 to 0.5, placed anywhere inside
    shorter = sizes.amin(1)[:, None, None]
    side = shorter * torch.empty(len(sizes), count, 1).uniform_(0.1, 0.5)
    corner = torch.rand(len(sizes), count, 2) * (sizes[:, None] - side)
    return torch.cat([corner, corner + side], 2)
