"""Distillation of the teacher's dense maps."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from torch import Tensor

from ...clip.teacher_batch import TeacherBatch
from ..pixels import filled_part, in_image
from .base import Distillation, Needs, StudentBatch, embeds_of_locations


@MODELS.register_module()
class DenseDistillation(Distillation):
    """Each level's map of embeddings learns the teacher's dense map.

    The teacher's map comes from its patches (the values of the last attention
    layer, as in MaskCLIP, Zhou et al., 2022), or, with ``window``, from crops
    on a grid, which any CLIP can embed. The student's maps are resampled to
    the teacher's grid.

    Args:
        distances: name -> config of a distance in ``losses.py``.
        window: side of the crops in pixels; None for the teacher's patches.
        stride: pixels between crops.
        points: embeddings compared in a batch, at most, drawn at random
            (the cost of relational distances grows with their square).
    """

    kind = "dense"
    scales = (1.0,)

    def __init__(
        self,
        distances: dict[str, dict[str, Any]],
        window: int | None = None,
        stride: int = 32,
        points: int = 512,
    ) -> None:
        super().__init__(distances)
        self.window = window
        self.stride = stride
        self.points = points

    @property
    def needs(self) -> Needs:
        """Dense maps, or crops on a grid."""
        if self.window is None:
            return Needs(dense=True)
        return Needs(window=self.window, stride=self.stride, scales=self.scales)

    def loss(self, student: StudentBatch, teacher: TeacherBatch) -> dict[str, Tensor]:
        """Pull the maps of all levels.

        Raises:
            ValueError: a student without regions.
        """
        embedded = embeds_of_locations(student, "DenseDistillation")
        target = self.target(student, teacher)  # (B, D, h, w)
        size = target.shape[-2:]
        maps = [
            F.interpolate(m, size, mode="bilinear", align_corners=False)
            for m in embedding_maps(embedded, student.feats)
        ]
        embeds = torch.stack(maps, 1).permute(0, 1, 3, 4, 2)  # (B, L, h, w, D)
        target = target.permute(0, 2, 3, 1)[:, None].expand(embeds.shape)
        # places without padding, some of them drawn at random
        image = in_image(filled_part(student.samples), size)[:, None].expand(
            embeds.shape[:4]
        )
        places = torch.nonzero(image)
        order = torch.randperm(len(places))[: self.points]
        drawn = places[order].to(target.device, non_blocking=True).unbind(1)
        return self.compare(embeds[drawn], target[drawn])

    def fixed_boxes(self, sample: DetDataSample) -> Tensor:
        """The windows (n, 4) of an image."""
        if self.window is None:
            return super().fixed_boxes(sample)
        size = sample.batch_input_shape
        return window_grid(size, self.window, self.stride)[0]

    def target(self, student: StudentBatch, teacher: TeacherBatch) -> Tensor:
        """The teacher's map (B, D, h, w)."""
        if self.window is None:
            return teacher.dense()
        # one embedding for each window, put back on the grid
        size = student.samples[0].batch_input_shape
        windows, (rows, columns) = window_grid(size, self.window, self.stride)
        batch_size = len(student.samples)
        windows = windows.to(student.feats[0].device)
        embeds = teacher.crops([windows] * batch_size, self.scales)
        return embeds.reshape(batch_size, rows, columns, -1).permute(0, 3, 1, 2)


def window_grid(
    size: Sequence[int], side: int, stride: int
) -> tuple[Tensor, tuple[int, int]]:
    """Square windows on a grid that is symmetric in the image.

    Args:
        size: height and width in pixels.
        side: of the windows, pixels; they may reach over the border.
        stride: about how many pixels there are between centres.

    Returns:
        Boxes (rows * columns, 4), xyxy, row by row; and (rows, columns).
    """
    # about `stride` pixels apart, at the same distance from opposite borders
    rows, columns = (max(round(n / stride), 1) for n in size)
    y, x = (
        (torch.arange(n) + 0.5) * (whole / n) for n, whole in zip((rows, columns), size)
    )
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
    return torch.cat([centres - side / 2, centres + side / 2], 1), (rows, columns)


def embedding_maps(embeds: Tensor, feats: Sequence[Tensor]) -> list[Tensor]:
    """Embeddings of locations (B, N, D) -> L maps (B, D, H_l, W_l), as ``feats``."""
    # (B, N, D) -> (B, H_l * W_l, D) of each level
    shapes = [feat.shape[-2:] for feat in feats]
    parts = embeds.split([h * w for h, w in shapes], 1)
    return [p.transpose(1, 2).unflatten(2, s) for p, s in zip(parts, shapes)]
