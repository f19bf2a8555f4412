"""Which boxes of an image the teacher looks at."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample, SampleList
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from ..ov_head import Locations

SOURCES = ("truth", "own", "random", "blocks", "stored")


class RegionPicker(nn.Module):
    """Picks the regions of an image: those of its sources, in their order.

    - ``truth``: the ground-truth boxes;
    - ``own``: the student's best boxes elsewhere, picked without classes; they
      carry the objects that nobody labelled;
    - ``random``: squares of random place and size;
    - ``blocks``: the tiles of a few grids over the image;
    - ``stored``: the boxes of the teacher's store
      (:class:`kdeov_mm.clip.CachedTeacher`), e.g. those of an earlier student.

    Args:
        sources: where regions come from.
        proposals: own boxes per image, at most; and the number of random ones.
        grids: tiles per side of the grids of ``blocks``.
        nms_iou: own boxes overlapping more are one region.
        warmup: iterations without own boxes, while they are random.
        scales: crop sizes relative to the box.
    """

    def __init__(
        self,
        sources: Sequence[str] = ("truth", "own"),
        proposals: int = 5,
        grids: Sequence[int] = (2, 3, 4),
        nms_iou: float = 0.5,
        warmup: int = 50,
        scales: Sequence[float] = (1.0, 1.5),
    ) -> None:
        super().__init__()
        if not set(sources) <= set(SOURCES):
            raise ValueError(f"sources are some of {SOURCES}, got {tuple(sources)}")
        self.sources = tuple(sources)
        self.proposals = proposals
        self.grids = tuple(grids)
        self.nms_iou = nms_iou
        self.warmup = warmup
        self.scales = tuple(scales)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

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
