"""Distillation of crops into the student's locations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from ...clip.teacher_batch import TeacherBatch
from .base import Needs, RegionEmbeds, StudentBatch
from .regions import SOURCES, RegionPicker, Regions, padded


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
        trust: what an erring teacher's answer for a region counts. ``scales``: the
            cosine between its answers at the smallest and the largest of the scales;
            ``words``: the probability of the word that it takes the region for, at
            ``temperature``; None: all the same.
        temperature: see ``trust``.
        regions: arguments of :class:`RegionPicker`.
    """

    kind = "region"

    def __init__(
        self,
        distances: dict[str, dict[str, Any]],
        match_iou: float = 0.6,
        locations: int = 10,
        background: bool = False,
        trust: str | None = None,
        temperature: float = 0.05,
        **regions: Any,
    ) -> None:
        super().__init__(distances, **regions)
        if not self.sources:
            raise ValueError(f"RegionDistillation needs `sources`: some of {SOURCES}")
        if trust not in (None, "scales", "words"):
            raise ValueError(f"trust is 'scales', 'words' or None, got {trust!r}")
        if trust == "scales" and len(self.scales) < 2:
            raise ValueError(f"trust='scales' compares scales, got {self.scales}")
        self.match_iou = match_iou
        self.num_locations = locations
        self.background = background
        self.trust = trust
        self.temperature = temperature

    @property
    def needs(self) -> Needs:
        """Crops of its sources."""
        return replace(super().needs, apart=self.trust == "scales")

    @torch.no_grad()
    def ask(
        self, teacher: TeacherBatch, boxes: Sequence[Tensor], text: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The teacher's embeddings of B tensors of boxes (n_b, 4), and their trust.

        Returns:
            Unit vectors (R, D), and weights (R,) in [0, 1]; None: all the same.

        Raises:
            ValueError: trust in words, of a student without words.
        """
        if self.trust == "scales":
            each = [teacher.crops(boxes, (scale,)) for scale in self.scales]
            # the same as of all scales at once
            targets = F.normalize(torch.stack(each).sum(0), dim=-1)
            return targets, (each[0] * each[-1]).sum(-1).clamp(min=0)
        targets = teacher.crops(boxes, self.scales)
        if self.trust is None:
            return targets, None
        if text is None:
            raise ValueError("trust='words' needs a student that scores words")
        logits = targets @ text.detach().float().T / self.temperature
        return targets, logits.softmax(-1).amax(-1)

    def loss(self, student: StudentBatch, teacher: TeacherBatch) -> dict[str, Tensor]:
        """Pull the student's embeddings towards the teacher's of their region.

        Raises:
            ValueError: a student without regions.
        """
        regions = student.regions
        if regions is None:
            raise ValueError("RegionDistillation needs a student with regions")
        picked = self.pick(student, teacher)
        boxes = picked.split()
        # a student that embeds any box, or its locations as one list (B*N, D)
        if regions.embeds is None:
            assert student.embed_boxes is not None
            embeds = student.embed_boxes(boxes)
        else:
            embeds = regions.embeds.flatten(0, 1)
        if not len(picked.boxes):
            return self.compare(embeds[:0], embeds[:0].detach().float())
        # the teacher's embedding of each region (R, D), and its image (R,)
        targets, trust = self.ask(teacher, boxes, student.text)
        own, device = picked.boxes.to(regions.boxes, non_blocking=True), targets.device
        image = picked.images(device)
        marked = regions.unlabelled if not self.background else None
        if marked is not None:
            free = self.free(picked, own, image, student.samples)
        if regions.embeds is None:
            if marked is not None:
                mark_overlapped(regions, own, image, free, self.nms_iou)
            return self.compare(embeds, targets, trust, text=student.text)
        # pairs of a location and a region; those of a region sum to one
        where, weight = self.match(own, regions, image)  # (R, n) each
        where = where + image[:, None] * regions.boxes.shape[1]
        # those of objects without a label are no background
        if marked is not None:
            hits = ((weight > 0) & free[:, None]).float().flatten()
            found = torch.zeros_like(marked, dtype=torch.float).view(-1)
            marked |= found.index_add(0, where.flatten(), hits).view_as(marked) > 0
        # one look-up for the batch: each has a gradient of the size of all locations
        which = torch.arange(len(where), device=device)[:, None].expand_as(where)
        chosen = embeds.index_select(0, where.flatten())
        if trust is not None:
            weight = weight * trust[:, None]
        return self.compare(
            chosen, targets, weight.flatten(), which.flatten(), student.text
        )

    def free(
        self, picked: Regions, boxes: Tensor, image: Tensor, samples: SampleList
    ) -> Tensor:
        """Which regions are objects without a label: (R,) bool.

        Args:
            picked: the regions.
            boxes: their boxes (R, 4), on the device.
            image: (R,) their images.
            samples: with the labels.
        """
        truth = padded([s.gt_instances.bboxes for s in samples], boxes.device)
        covered = bbox_overlaps(boxes[:, None], truth[image])[:, 0] > self.nms_iou
        objects = picked.objects.to(boxes.device, non_blocking=True)
        return objects & ~covered.any(1)

    @torch.no_grad()
    def match(
        self, boxes: Tensor, regions: RegionEmbeds, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The locations that stand for a box.

        Args:
            boxes: (R, 4), xyxy in pixels.
            regions: of the student, N in each image.
            image: (R,) each box's image.

        Returns:
            Of each box the best locations (R, n) in [0, N), and their weights (R, n):
            0 for those that are not matched; the others sum to 1.
        """
        # overlap with all locations whose centre lies in the box: (R, N)
        overlap = bbox_overlaps(boxes[:, None], regions.boxes[image])[:, 0]
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
        taken = best > self.match_iou * best[:, :1]
        return where, taken.float() / taken.sum(1, keepdim=True).clamp(min=1)


def mark_overlapped(
    regions: RegionEmbeds, boxes: Tensor, image: Tensor, free: Tensor, iou: float
) -> None:
    """Mark the student's regions that overlap boxes of objects without a label.

    Args:
        regions: ``unlabelled`` is changed in place.
        boxes: (R, 4).
        image: (R,) their images.
        free: (R,) bool, which of them are such objects.
        iou: regions that overlap one more than this are marked.
    """
    assert regions.unlabelled is not None
    near = bbox_overlaps(boxes[:, None], regions.boxes[image])[:, 0] > iou  # (R, N)
    hits = torch.zeros_like(regions.unlabelled, dtype=torch.float)
    hits.index_add_(0, image, (near & free[:, None]).float())
    regions.unlabelled.logical_or_(hits > 0)
