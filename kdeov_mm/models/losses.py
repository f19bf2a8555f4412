"""Distances between student and teacher embeddings: (N, D), (N, D) -> (N,)."""

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn


class Distance(nn.Module):
    """What the distances share: a factor, kept beside the value.

    Args:
        loss_weight: factor of the loss made of this distance.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight


@MODELS.register_module()
class CosineDistance(Distance):
    """1 - cosine: 0 when the directions are equal, 2 when opposite."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        return 1 - F.cosine_similarity(student.float(), teacher, dim=-1)


@MODELS.register_module()
class L2Distance(Distance):
    """Squared Euclidean distance of unit vectors; equals 2 * (1 - cosine)."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        unit = F.normalize(student.float(), dim=-1)
        return (unit - teacher).square().sum(-1)


@MODELS.register_module()
class L1Distance(Distance):
    """L1 distance of unit vectors, ViLD's (Gu et al., 2021, section 3.3)."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        unit = F.normalize(student.float(), dim=-1)
        return (unit - teacher).abs().sum(-1)


@MODELS.register_module()
class RelationalDistance(Distance):
    """Whom an embedding resembles: KL of teacher's and student's neighbours.

    Each student embedding is compared with the teacher's of the whole batch;
    the wanted distribution is the one of the teacher's own embedding there, so
    two regions that look the same are no negatives. All embeddings of a CLIP
    share a direction, which a cosine alone is content with; this is not.
    After "Relational Knowledge Distillation" (Park et al., 2019), in the
    softened form of SEED (Fang et al., 2021).

    Args:
        loss_weight: factor of the loss made of this distance.
        temperature: of both distributions.
    """

    def __init__(self, loss_weight: float = 1.0, temperature: float = 0.05) -> None:
        super().__init__(loss_weight)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Embeddings (N, D), any length, and unit vectors (N, D) -> (N,)."""
        with torch.autocast(student.device.type, enabled=False):
            unit = F.normalize(student.float(), dim=-1)
            said = (unit @ teacher.T / self.temperature).log_softmax(-1)
            wanted = (teacher @ teacher.T / self.temperature).softmax(-1)
            return F.kl_div(said, wanted, reduction="none").sum(-1)
