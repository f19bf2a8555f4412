"""The teacher's frozen image tower."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor
from torchvision.ops import roi_align

from .loading import CLIPSource


@MODELS.register_module()
class CLIPImageTeacher:
    """Frozen CLIP image tower: a guest of training.

    It is no ``nn.Module`` on purpose: its weights are neither trained nor
    saved in the student's checkpoint. It follows its input to the device.

    Args:
        model: see :class:`CLIPSource`.
        pretrained: see :class:`CLIPSource`.
        batch_size: images that pass the tower at once.
    """

    def __init__(
        self, model: str, pretrained: str | None = None, batch_size: int = 512
    ) -> None:
        self.source = CLIPSource(model, pretrained)
        self.batch_size = batch_size
        self._tower: Any = None
        statistics = self.source.image_statistics()
        self._mean = torch.tensor(statistics["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(statistics["std"]).view(1, 3, 1, 1)

    def _load(self, device: torch.device) -> Any:
        if self._tower is None:
            self._tower = self.source.load().visual
        self._tower.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self._tower

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (N, 3, H, W), RGB in [0, 1]; resized to the tower's input.

        Returns:
            (N, D) unit vectors.
        """
        tower = self._load(images.device)
        size = _pair(tower.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(
                images, size, mode="bicubic", antialias=True, align_corners=False
            )
        images = (images.clamp(0, 1) - self._mean) / self._std
        embeds = torch.cat([tower(part) for part in images.split(self.batch_size)])
        return F.normalize(embeds.float(), dim=-1)

    @torch.no_grad()
    def embed_crops(
        self,
        pixels: Tensor,
        boxes: Sequence[Tensor],
        scales: Sequence[float] = (1.0, 1.5),
    ) -> Tensor:
        """Embed boxes: the sum over scales of crop embeddings, renormalised.

        The 1x and 1.5x crops are those of ViLD (Gu et al., 2021, section 3.3).

        Args:
            pixels: (B, 3, H, W), RGB in [0, 1].
            boxes: B tensors (n_b, 4), xyxy in pixels of ``pixels``.
            scales: crop sizes relative to the box, about its centre.

        Returns:
            (sum n_b, D) unit vectors, in the order of ``boxes``.
        """
        size = _pair(self._load(pixels.device).image_size)
        limit = max(pixels.shape[-2:])
        # a black margin, so that a crop at the border does not depend on whether
        # the image was padded for its batch
        framed = F.pad(pixels.float(), (0, 1, 0, 1))
        embeds = [
            self(
                roi_align(
                    framed,
                    [_scale_boxes(b, s, limit) for b in boxes],
                    size,
                    aligned=True,
                )
            )
            for s in scales
        ]
        return F.normalize(torch.stack(embeds).sum(0), dim=-1)


def _scale_boxes(boxes: Tensor, scale: float, limit: int) -> Tensor:
    """Boxes (n, 4) xyxy, sides clipped to 1 px to ``limit``, then scaled."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).clamp(1, limit) * scale / 2
    return torch.cat([centre - half, centre + half], dim=1).float()


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
