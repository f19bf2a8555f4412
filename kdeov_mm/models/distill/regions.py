"""Which boxes of an image the teacher embeds."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from ...clip.teacher_batch import TeacherBatch
from .base import Distillation, Needs, RegionEmbeds, StudentBatch

SOURCES = ("truth", "own", "random", "blocks", "stored")
OBJECTS = ("own", "stored")  # sources of objects that may have no label
MIN_VISIBLE = 0.5  # of an object's box, by area


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
        warmup: part of the training without own boxes, while they are random, in
            [0, 1).
        scales: crop sizes relative to the box.
    """

    def __init__(
        self,
        distances: dict[str, dict[str, Any]] | None = None,
        sources: Sequence[str] = ("truth", "own"),
        proposals: int = 5,
        grids: Sequence[int] = (2, 3, 4),
        nms_iou: float = 0.5,
        warmup: float = 0.0625,
        scales: Sequence[float] = (1.0, 1.5),
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
        self.warmup = warmup
        self.scales = tuple(scales)
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
    def regions(self, student: StudentBatch, teacher: TeacherBatch) -> list[Tensor]:
        """Boxes (n_b, 4) of each image, source after source."""
        parts = self.by_source(student, teacher)
        return [torch.cat([*its.values()]) for its in parts]

    @torch.no_grad()
    def by_source(
        self, student: StudentBatch, teacher: TeacherBatch
    ) -> list[dict[str, Tensor]]:
        """Of each image, source -> boxes (n, 4), which may be none."""
        result, embeds = [], student.regions
        for i, sample in enumerate(student.samples):
            truth, parts = sample.gt_instances.bboxes, {}
            for source in self.sources:
                boxes = truth[:0]
                if source == "truth":
                    boxes = visible_truth(sample).bboxes
                elif source == "own":
                    if embeds is not None and student.progress >= self.warmup:
                        boxes = self.own_boxes(sample, embeds, i)
                elif source == "random":
                    boxes = _random_squares(sample.img_shape, self.proposals)
                elif source == "blocks":
                    boxes = block_boxes(sample.img_shape, self.grids)
                else:
                    boxes = teacher.stored_boxes(i)
                parts[source] = boxes.to(truth)
            result.append(parts)
        return result

    def unlabelled(self, parts: dict[str, Tensor], truth: Tensor) -> Tensor:
        """Which regions of an image are objects without a label.

        Args:
            parts: the image's boxes by source, R together.
            truth: (G, 4).

        Returns:
            (R,) bool: the student's own and stored boxes that no label covers.
        """
        flags = []
        for source, boxes in parts.items():
            if source not in OBJECTS or not len(truth):
                flags.append(torch.full_like(boxes[:, 0], source in OBJECTS).bool())
            else:
                flags.append(box_iou(boxes, truth).amax(1) <= self.nms_iou)
        return torch.cat(flags)

    def fixed_boxes(self, sample: DetDataSample) -> Tensor:
        """The boxes (n, 4) of ``truth`` and ``blocks``: the same each time."""
        truth, shape = sample.gt_instances.bboxes, sample.img_shape
        parts = dict(truth=truth, blocks=block_boxes(shape, self.grids).to(truth))
        chosen = [parts[source] for source in self.sources if source in parts]
        return torch.cat([truth[:0], *chosen])

    @torch.no_grad()
    def own_boxes(
        self, sample: DetDataSample, regions: RegionEmbeds, index: int
    ) -> Tensor:
        """The student's sharpest boxes that no label covers: (n, 4)."""
        truth = sample.gt_instances.bboxes
        height, width = sample.img_shape[:2]
        limit = truth.new_tensor([width, height, width, height])
        boxes = regions.boxes[index].clamp(min=0).minimum(limit)
        # sharpness; -1 where a label covers the box, or it is smaller than 4 pixels
        score = regions.sharpness[index]
        if len(truth):
            score = score.masked_fill(box_iou(boxes, truth).amax(1) > self.nms_iou, -1)
        large = (boxes[:, 2:] - boxes[:, :2]).amin(1) > 4
        score = score.masked_fill(~large, -1)
        # the best ones, without duplicates
        pool = score.topk(min(max(64, 4 * self.proposals), len(score))).indices
        pool = pool[score[pool] > 0]
        keep = batched_nms(
            boxes[pool], score[pool], torch.zeros_like(pool), self.nms_iou
        )
        return boxes[pool[keep[: self.proposals]]]


def visible_truth(sample: DetDataSample) -> InstanceData:
    """The ground truth of objects at least half of which is visible."""
    truth = sample.gt_instances
    return truth[truth.visible >= MIN_VISIBLE] if "visible" in truth else truth


def block_boxes(shape: Sequence[int], grids: Sequence[int]) -> Tensor:
    """Tiles of n x n grids over an image (height, width, ...): (sum n^2, 4) xyxy."""
    # corners in units of the image, then in pixels
    tiles = []
    for n in grids:
        x, y = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="xy")
        corners = torch.stack([x, y, x + 1, y + 1], -1).reshape(-1, 4) / n
        tiles.append(corners * torch.tensor([shape[1], shape[0]] * 2))
    return torch.cat(tiles)


def _random_squares(shape: Sequence[int], count: int) -> Tensor:
    """Squares of 0.1 to 0.5 of the shorter side, inside the image: (count, 4)."""
    # sides of 0.1 to 0.5, placed anywhere inside
    height, width = shape[:2]
    side = min(height, width) * torch.empty(count, 1).uniform_(0.1, 0.5)
    corner = torch.rand(count, 2) * (torch.tensor([width, height]) - side)
    return torch.cat([corner, corner + side], 1)
