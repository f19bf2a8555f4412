"""Distillation of crops into the student's locations."""

from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from ...clip.teacher_batch import TeacherBatch
from .base import RegionEmbeds, StudentBatch
from .regions import SOURCES, RegionPicker


@MODELS.register_module()
class RegionDistillation(RegionPicker):
    """The student's locations learn the teacher's embeddings of their boxes.

    Each region is cropped, embedded by the teacher at 1x and 1.5x (ViLD, Gu et al.,
    2021, section 3.3), and pulls the locations whose box is that region. Where nobody
    labelled that region, the same locations are no background for the class loss: an
    object without a label would be learnt as the absence of every word.

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
        """Pull locations towards the teacher's embedding of their region.

        Raises:
            ValueError: a student without regions.
        """
        if student.regions is None:
            raise ValueError("RegionDistillation needs a student with regions")
        embeds = student.regions.embeds.flatten(0, 1)  # (B, N, D) -> (B*N, D)
        parts = self.by_source(student, teacher)
        boxes = [torch.cat([*its.values()]) for its in parts]
        if not any(map(len, boxes)):
            return self.compare(embeds[:0], embeds[:0].detach().float())
        # the teacher's embedding of each region (R, D), and its image (R,)
        targets = teacher.crops(boxes, self.scales)
        image = torch.repeat_interleave(torch.tensor([len(b) for b in boxes]))
        image = image.to(targets.device)
        # pairs of a location and a region; each region has the same weight
        where, which, weight = self.match(torch.cat(boxes), student.regions, image)
        where = where + image[which] * len(student.regions.centres)
        # those of objects without a label are no background
        marked = student.regions.unlabelled
        if marked is not None and not self.background:
            truths = [sample.gt_instances.bboxes for sample in student.samples]
            free = torch.cat([self.unlabelled(p, t) for p, t in zip(parts, truths)])
            marked.view(-1)[where[free[which]]] = True
        # one look-up for the batch: each has a gradient of the size of all locations
        return self.compare(embeds[where], targets[which], weight)

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
