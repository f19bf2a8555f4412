"""Distillation of the teacher's dense maps, and of attention over locations."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from mmengine.dist import get_world_size
from torch import Tensor, nn

from ..ov_head import Locations


@MODELS.register_module()
class DenseDistillation(nn.Module):
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
            (relational distances cost their square).
    """

    def __init__(
        self,
        distances: dict[str, dict[str, Any]],
        window: int | None = None,
        stride: int = 32,
        points: int = 512,
    ) -> None:
        super().__init__()
        self.distances = nn.ModuleDict(
            {name: MODELS.build(cfg) for name, cfg in distances.items()}
        )
        self.window = window
        self.stride = stride
        self.points = points
        self.scales = (1.0,)

    def loss(
        self,
        feats: Sequence[Tensor],
        text: Tensor,
        teacher: Any,
        pixels: Tensor,
        samples: SampleList,
        locations: Locations,
    ) -> dict[str, Tensor]:
        """Pull maps; arguments as of all distillation heads."""
        target = self.target(teacher, pixels)  # (B, D, h, w)
        maps = [
            F.interpolate(m, target.shape[-2:], mode="bilinear", align_corners=False)
            for m in embedding_maps(locations, feats)
        ]
        student = torch.stack(maps, 1).permute(0, 1, 3, 4, 2)  # (B, L, h, w, D)
        target = target.permute(0, 2, 3, 1)[:, None].expand(student.shape)
        places = torch.nonzero(
            ~_padding(samples, maps)[:, None].expand(student.shape[:4])
        )
        order = torch.randperm(len(places), device=places.device)[: self.points]
        drawn = places[order].unbind(1)
        factor = len(samples) * get_world_size()
        return {
            f"loss_dense_{name}": distance(student[drawn], target[drawn]).mean()
            * distance.loss_weight
            * factor
            for name, distance in self.distances.items()
        }

    def fixed_boxes(self, sample: DetDataSample) -> tuple[Tensor, tuple[float, ...]]:
        """Windows (n, 4) that this head asks of an image, and their crop scales."""
        if self.window is None:
            return sample.gt_instances.bboxes[:0], self.scales
        size = sample.batch_input_shape
        return window_grid(size, self.window, self.stride)[0], self.scales

    def target(self, teacher: Any, pixels: Tensor) -> Tensor:
        """The teacher's map (B, D, h, w) of images (B, 3, H, W)."""
        if self.window is None:
            return teacher.embed_dense(pixels)
        windows, (rows, columns) = window_grid(
            pixels.shape[-2:], self.window, self.stride
        )
        boxes = [windows.to(pixels.device)] * len(pixels)
        embeds = teacher.embed_crops(pixels, boxes, self.scales)
        return embeds.reshape(len(pixels), rows, columns, -1).permute(0, 3, 1, 2)


def _padding(samples: SampleList, maps: Sequence[Tensor]) -> Tensor:
    """Which places of a map (B, D, h, w) are padding: (B, h, w) bool."""
    height, width = maps[0].shape[-2:]
    filled = [
        [part / whole for part, whole in zip(s.img_shape, s.batch_input_shape)]
        for s in samples
    ]
    rows, columns = torch.tensor(filled, device=maps[0].device).T
    y = (torch.arange(height, device=maps[0].device) + 0.5) / height
    x = (torch.arange(width, device=maps[0].device) + 0.5) / width
    return (y > rows[:, None])[:, :, None] | (x > columns[:, None])[:, None]


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
    rows, columns = (max(round(n / stride), 1) for n in size)
    y, x = (
        (torch.arange(n) + 0.5) * (whole / n) for n, whole in zip((rows, columns), size)
    )
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
    return torch.cat([centres - side / 2, centres + side / 2], 1), (rows, columns)


def embedding_maps(locations: Locations, feats: Sequence[Tensor]) -> list[Tensor]:
    """Locations (B, N, D) -> L maps (B, D, H_l, W_l), as the levels' ``feats``."""
    shapes = [feat.shape[-2:] for feat in feats]
    parts = locations.embeds.split([h * w for h, w in shapes], 1)
    return [p.transpose(1, 2).unflatten(2, s) for p, s in zip(parts, shapes)]


@MODELS.register_module()
class AttentionDistillation(nn.Module):
    """Locations that the teacher's image embedding attends to, learn it.

    The local distillation of CLIP-to-segmentation: weights over the locations
    are a softmax of <teacher's image embedding, location> / temperature, and
    the weighted sum of the locations learns the image embedding.

    Args:
        distances: name -> config of a distance in ``losses.py``.
        temperature: of the softmax over locations.
    """

    def __init__(
        self, distances: dict[str, dict[str, Any]], temperature: float = 0.07
    ) -> None:
        super().__init__()
        self.distances = nn.ModuleDict(
            {name: MODELS.build(cfg) for name, cfg in distances.items()}
        )
        self.temperature = temperature

    def loss(
        self,
        feats: Sequence[Tensor],
        text: Tensor,
        teacher: Any,
        pixels: Tensor,
        samples: SampleList,
        locations: Locations,
    ) -> dict[str, Tensor]:
        """Pull attended locations; arguments as of all distillation heads."""
        target = teacher.embed_images(pixels, [s.img_shape for s in samples])
        embeds = F.normalize(locations.embeds.float(), dim=-1)
        similar = torch.einsum("bd,bnd->bn", target, embeds) / self.temperature
        padding = locations.centres >= locations.centres.new_tensor(
            [s.img_shape[1::-1] for s in samples]
        ).unsqueeze(1)  # (B, N, 2)
        weights = similar.masked_fill(padding.any(-1), -torch.inf).softmax(-1)
        pooled = torch.einsum("bn,bnd->bd", weights, embeds)
        factor = len(samples) * get_world_size()
        return {
            f"loss_attention_{name}": distance(pooled, target).mean()
            * distance.loss_weight
            * factor
            for name, distance in self.distances.items()
        }
