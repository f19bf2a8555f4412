"""Distillation of crops into locations."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_overlaps
from mmengine.dist import get_world_size
from torch import Tensor, nn

from ..ov_head import Locations
from .regions import SOURCES, RegionPicker


@MODELS.register_module()
class RegionDistillation(RegionPicker):
    """The student's locations learn what the teacher sees in their boxes.

    Each region is cropped, embedded by the teacher at 1x and 1.5x, and pulls
    the locations whose box is that region.

    Args:
        distances: name -> config of a distance in ``losses.py``.
        match_iou: a location is pulled by a region when its box overlaps it more
            than this, relative to the best box (early boxes overlap little).
        locations: pulled locations per region, at most; the best overlaps.
        regions: arguments of :class:`RegionPicker`.
    """

    def __init__(
        self,
        distances: dict[str, dict[str, Any]],
        match_iou: float = 0.6,
        locations: int = 10,
        **regions: Any,
    ) -> None:
        super().__init__(**regions)
        if not self.sources:
            raise ValueError(f"RegionDistillation needs `sources`: some of {SOURCES}")
        self.distances = nn.ModuleDict(
            {name: MODELS.build(cfg) for name, cfg in distances.items()}
        )
        self.match_iou = match_iou
        self.num_locations = locations

    def loss(
        self,
        feats: Sequence[Tensor],
        text: Tensor,
        teacher: Any,
        pixels: Tensor,
        samples: SampleList,
        locations: Locations,
    ) -> dict[str, Tensor]:
        """Pull locations towards the teacher's embedding of their region.

        Args:
            feats: not used; the contract of all distillation heads.
            text: not used.
            teacher: :class:`kdeov_mm.clip.CLIPImageTeacher`.
            pixels: (B, 3, H, W), RGB in [0, 1], the padded input.
            samples: B samples with ground-truth boxes of the base classes.
            locations: what the detection head says.
        """
        self.steps += 1
        regions = self.regions(samples, locations, teacher)
        if not any(map(len, regions)):
            nothing = locations.embeds.sum() * 0
            return {f"loss_region_{name}": nothing for name in self.distances}
        targets = teacher.embed_crops(pixels, regions, self.scales)
        image = torch.repeat_interleave(torch.tensor([len(r) for r in regions]))
        image = image.to(targets.device)
        where, which, weight = self.match(torch.cat(regions), locations, image)
        where = where + image[which] * len(locations.centres)
        # mmyolo's losses are sums over the joint batch: keep the balance with them
        weight = weight / weight.sum().clamp(min=1) * len(samples) * get_world_size()
        # one look-up for the batch: each has a gradient of the size of all locations
        student, target = locations.embeds.flatten(0, 1)[where], targets[which]
        return {
            f"loss_region_{name}": (distance(student, target) * weight).sum()
            * distance.loss_weight
            for name, distance in self.distances.items()
        }

    @torch.no_grad()
    def match(
        self, regions: Tensor, locations: Locations, image: Tensor | int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Locations that answer for a region.

        Args:
            regions: (R, 4), xyxy in pixels.
            locations: of the batch, N in each image.
            image: (R,) each region's image, or the image of all.

        Returns:
            Location indices (m,) in [0, N), region indices (m,), and weights
            (m,) that sum to 1 for each matched region.
        """
        boxes = locations.boxes[image].expand(len(regions), -1, -1)
        overlap = bbox_overlaps(regions[:, None], boxes)[:, 0]  # (R, N)
        x, y = locations.centres.T
        inside = (
            (x > regions[:, :1])
            & (x < regions[:, 2:3])
            & (y > regions[:, 1:2])
            & (y < regions[:, 3:4])
        )
        overlap = overlap.masked_fill(~inside, 0)
        best, where = overlap.topk(min(self.num_locations, len(x)), dim=1)
        taken = best > self.match_iou * best[:, :1].clamp(min=1e-6)
        which = torch.arange(len(regions), device=taken.device)
        which = which[:, None].expand_as(taken)
        weight = taken.float() / taken.sum(1, keepdim=True).clamp(min=1)
        return where[taken], which[taken], weight[taken]
