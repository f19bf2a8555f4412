"""Distillation of crops into locations."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox_overlaps
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from .ov_head import Locations


@MODELS.register_module()
class RegionDistillation(nn.Module):
    """The student's locations learn what the teacher sees in their boxes.

    Each region is cropped, embedded by the teacher at 1x and 1.5x, and pulls
    the locations whose box is that region. The regions of an image are those
    of its sources, in their order:

    - ``truth``: the ground-truth boxes;
    - ``own``: the student's best boxes elsewhere, picked without classes; they
      carry the objects that nobody labelled;
    - ``random``: squares of random place and size;
    - ``blocks``: the tiles of a few grids over the image;
    - ``stored``: the boxes of the teacher's store
      (:class:`kdeov_mm.clip.CachedTeacher`), e.g. those of an earlier student.

    Args:
        distances: name -> config of a distance in ``losses.py``.
        sources: where regions come from.
        proposals: own boxes per image, at most; and the number of random ones.
        grids: tiles per side of the grids of ``blocks``.
        nms_iou: own boxes overlapping more are one region.
        match_iou: a location is pulled by a region when its box overlaps it more
            than this, relative to the best box (early boxes overlap little).
        locations: pulled locations per region, at most; the best overlaps.
        warmup: iterations without own boxes, while they are random.
        scales: crop sizes relative to the box.
    """

    SOURCES = ("truth", "own", "random", "blocks", "stored")

    def __init__(
        self,
        distances: dict[str, dict[str, Any]],
        sources: Sequence[str] = ("truth", "own"),
        proposals: int = 5,
        grids: Sequence[int] = (2, 3, 4),
        nms_iou: float = 0.5,
        match_iou: float = 0.6,
        locations: int = 10,
        warmup: int = 50,
        scales: Sequence[float] = (1.0, 1.5),
    ) -> None:
        super().__init__()
        if not sources or not set(sources) <= set(self.SOURCES):
            raise ValueError(
                f"sources are some of {self.SOURCES}, got {tuple(sources)}"
            )
        self.distances = nn.ModuleDict(
            {name: MODELS.build(cfg) for name, cfg in distances.items()}
        )
        self.sources = tuple(sources)
        self.proposals = proposals
        self.grids = tuple(grids)
        self.nms_iou = nms_iou
        self.match_iou = match_iou
        self.num_locations = locations
        self.warmup = warmup
        self.scales = tuple(scales)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

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
    def regions(
        self, samples: SampleList, locations: Locations, teacher: Any = None
    ) -> list[Tensor]:
        """Boxes (n_b, 4) of each image, source after source."""
        found = []
        for i, sample in enumerate(samples):
            known = sample.gt_instances.bboxes
            parts = []
            for source in self.sources:
                if source == "truth":
                    parts.append(known)
                elif source == "own" and int(self.steps) > self.warmup:
                    parts.append(self.own_boxes(sample, locations, i))
                elif source == "random":
                    parts.append(_random_squares(sample.img_shape, self.proposals))
                elif source == "blocks":
                    parts.append(block_boxes(sample.img_shape, self.grids))
                elif source == "stored":
                    parts.append(teacher.stored_boxes(i))
            found.append(torch.cat([p.to(known) for p in parts] or [known[:0]]))
        return found

    def fixed_boxes(self, sample: DetDataSample) -> tuple[Tensor, tuple[float, ...]]:
        """Boxes (n, 4) that this head asks of an image each time, and their scales."""
        known, shape = sample.gt_instances.bboxes, sample.img_shape
        parts = dict(truth=known, blocks=block_boxes(shape, self.grids).to(known))
        chosen = [parts[source] for source in self.sources if source in parts]
        return torch.cat([*chosen, known[:0]]), self.scales

    @torch.no_grad()
    def own_boxes(self, sample: DetDataSample, locations: Locations, i: int) -> Tensor:
        """The student's sharpest boxes that no label covers: (n, 4)."""
        known = sample.gt_instances.bboxes
        height, width = sample.img_shape[:2]
        limit = known.new_tensor([width, height, width, height])
        boxes = locations.boxes[i].clamp(min=0).minimum(limit)
        score = locations.sharpness[i]
        if len(known):
            score = score.masked_fill(box_iou(boxes, known).amax(1) > self.nms_iou, -1)
        large = (boxes[:, 2:] - boxes[:, :2]).amin(1) > 4
        score = score.masked_fill(~large, -1)
        pool = score.topk(min(64, len(score))).indices
        pool = pool[score[pool] > 0]
        keep = batched_nms(
            boxes[pool], score[pool], torch.zeros_like(pool), self.nms_iou
        )
        return boxes[pool[keep[: self.proposals]]]

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


def block_boxes(shape: Sequence[int], grids: Sequence[int]) -> Tensor:
    """Tiles of n x n grids over an image (height, width, ...): (sum n^2, 4) xyxy."""
    tiles = []
    for n in grids:
        x, y = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="xy")
        corners = torch.stack([x, y, x + 1, y + 1], -1).reshape(-1, 4) / n
        tiles.append(corners * torch.tensor([shape[1], shape[0]] * 2))
    return torch.cat(tiles)


def _random_squares(shape: Sequence[int], count: int) -> Tensor:
    """Squares of 0.1 to 0.5 of the shorter side, inside the image: (count, 4)."""
    height, width = shape[:2]
    side = min(height, width) * torch.empty(count, 1).uniform_(0.1, 0.5)
    corner = torch.rand(count, 2) * (torch.tensor([width, height]) - side)
    return torch.cat([corner, corner + side], 1)
