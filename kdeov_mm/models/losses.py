"""Distances between student and teacher embeddings: (N, D), (N, D) -> (N,)."""

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class CosineDistance(nn.Module):
    """1 - cosine: 0 when the directions are equal, 2 when opposite."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        return 1 - F.cosine_similarity(student.float(), teacher, dim=-1)


@MODELS.register_module()
class L2Distance(nn.Module):
    """Squared Euclidean distance of unit vectors; equals 2 * (1 - cosine)."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        unit = F.normalize(student.float(), dim=-1)
        return (unit - teacher).square().sum(-1)


@MODELS.register_module()
class L1Distance(nn.Module):
    """L1 distance of unit vectors, ViLD's (Gu et al., 2021, section 3.3)."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        unit = F.normalize(student.float(), dim=-1)
        return (unit - teacher).abs().sum(-1)
