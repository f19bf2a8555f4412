"""Distillation of crops into the student's locations."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor
from torchvision.ops import box_iou

from ...clip.teacher_batch import TeacherBatch
from .base import RegionEmbeds, StudentBatch
from .regions import SOURCES, RegionPicker


@MODELS.register_module()
class RegionDistillation(RegionPicker):
    """The student learns the teacher's embeddings of regions.

    Each region is cropped, embedded by the teacher at 1x and 1.5x (ViLD, Gu et al.,
    2021, section 3.3), and pulls what the student says of it: its embedding of that
    box where it embeds any box (a two-stage student), else the locations whose box is
    that region. Where nobody labelled that region, it is no background for the class
    loss: an object without a label would be learnt as the absence of every word.

    Args:
        distances: name -> config of a distance in ``losses.py``.
        match_iou: a location is pulled by a region when its box overlaps it more
            than this, relative to the best box (early boxes overlap little).
        locations: pulled locations per region, at most; the best overlaps.
        background: regions without a label are background for the class loss all the
            same.
        regions: arguments of :class:`RegionPicker`.
    """

    kind = "region"

    def __init__(
        self,
        distances: dict[str, dict[str, Any]],
        match_iou: float = 0.6,
        locations: int = 10,
        background: bool = False,
        **regions: Any,
    ) -> None:
        super().__init__(distances, **regions)
        if not self.sources:
            raise ValueError(f"RegionDistillation needs `sources`: some of {SOURCES}")
        self.match_iou = match_iou
        self.num_locations = locations
        self.background = background

    def loss(self, student: StudentBatch, teacher: TeacherBatch) -> dict[str, Tensor]:
        """Pull the student's embeddings towards the teacher's of their region.

        Raises:
            ValueError: a student without regions.
        """
        regions = student.regions
        if regions is None:
            raise ValueError("RegionDistillation needs a student with regions")
        parts = self.by_source(student, teacher)
        boxes = [torch.cat([*its.values()]) for its in parts]
        # a student that embeds any box, or its locations as one list (B*N, D)
        if regions.embeds is None:
            assert student.embed_boxes is not None
            embeds = student.embed_boxes(boxes)
        else:
            embeds = regions.embeds.flatten(0, 1)
        if not any(map(len, boxes)):
            return self.compare(embeds[:0], embeds[:0].detach().float())
        # the teacher's embedding of each region (R, D)
        targets = teacher.crops(boxes, self.scales)
        mark = regions.unlabelled is not None and not self.background
        free = self.free(student, parts) if mark else None
        if regions.embeds is None:
            if free is not None:
                mark_overlapped(regions, boxes, free, self.nms_iou)
            return self.compare(embeds, targets)
        # pairs of a location and a region, whose image is `image` (R,); each region
        # has the same weight
        image = torch.repeat_interleave(torch.tensor([len(b) for b in boxes]))
        image = image.to(targets.device)
        where, which, weight = self.match(torch.cat(boxes), regions, image)
        where = where + image[which] * regions.boxes.shape[1]
        # those of objects without a label are no background
        if free is not None and regions.unlabelled is not None:
            regions.unlabelled.view(-1)[where[free[which]]] = True
        # one look-up for the batch: each has a gradient of the size of all locations
        return self.compare(embeds[where], targets[which], weight)

    def free(self, student: StudentBatch, parts: Sequence[dict[str, Tensor]]) -> Tensor:
        """Which regions of the batch are objects without a label: (R,) bool."""
        truths = [sample.gt_instances.bboxes for sample in student.samples]
        return torch.cat([self.unlabelled(p, t) for p, t in zip(parts, truths)])

    @torch.no_grad()
    def match(
        self, boxes: Tensor, regions: RegionEmbeds, image: Tensor | int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The locations that stand for a box.

        Args:
            boxes: (R, 4), xyxy in pixels.
            regions: of the student, N in each image.
            image: (R,) each box's image, or the image of all.

        Returns:
            Location indices (m,) in [0, N), box indices (m,), and weights (m,) that
            sum to 1 for each matched box.
        """
        # overlap with all locations whose centre lies in the box: (R, N)
        own = regions.boxes[image].expand(len(boxes), -1, -1)
        overlap = bbox_overlaps(boxes[:, None], own)[:, 0]
        assert regions.centres is not None  # locations have one
        x, y = regions.centres.T
        inside = (
            (x > boxes[:, :1])
            & (x < boxes[:, 2:3])
            & (y > boxes[:, 1:2])
            & (y < boxes[:, 3:4])
        )
        overlap = overlap.masked_fill(~inside, 0)
        # the best ones, if they come near the very best
        best, where = overlap.topk(min(self.num_locations, len(x)), dim=1)
        taken = best > self.match_iou * best[:, :1].clamp(min=1e-6)
        which = torch.arange(len(boxes), device=taken.device)
        which = which[:, None].expand_as(taken)
        weight = taken.float() / taken.sum(1, keepdim=True).clamp(min=1)
        return where[taken], which[taken], weight[taken]


def mark_overlapped(
    regions: RegionEmbeds, boxes: Sequence[Tensor], free: Tensor, iou: float
) -> None:
    """Mark the student's regions that overlap boxes of objects without a label.

    Args:
        regions: ``unlabelled`` is changed in place.
        boxes: B tensors (n_b, 4).
        free: (sum n_b,) bool, which of them are such objects.
        iou: regions that overlap one more than this are marked.
    """
    assert regions.unlabelled is not None
    pairs = zip(boxes, free.split([len(b) for b in boxes]))
    for mark, own, (its, chosen) in zip(regions.unlabelled, regions.boxes, pairs):
        mark |= (box_iou(own, its[chosen]) > iou).any(1)
