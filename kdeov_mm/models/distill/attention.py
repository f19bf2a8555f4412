"""Distillation of the image embedding into the locations that it attends to."""

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from ...clip.teacher_batch import TeacherBatch
from ..pixels import filled_part, in_image
from .base import Distillation, Needs, StudentBatch, embeds_of_locations


@MODELS.register_module()
class AttentionDistillation(Distillation):
    """The locations that the teacher's image embedding attends to learn it.

    The local distillation of CLIP-to-segmentation: weights of the locations
    are a softmax of <teacher's image embedding, location> / temperature, and
    the weighted sum of the locations learns the image embedding.

    Args:
        distances: name -> config of a distance in ``losses.py``.
        temperature: of the softmax over locations.
    """

    kind = "attention"
    needs = Needs(images=True)

    def __init__(
        self, distances: dict[str, dict[str, Any]], temperature: float = 0.07
    ) -> None:
        super().__init__(distances)
        self.temperature = temperature

    def loss(self, student: StudentBatch, teacher: TeacherBatch) -> dict[str, Tensor]:
        """Pull the attended locations.

        Raises:
            ValueError: a student without regions.
        """
        located = embeds_of_locations(student, "AttentionDistillation")
        target = teacher.images()  # (B, D)
        embeds = F.normalize(located.float(), dim=-1)  # (B, N, D)
        similar = torch.einsum("bd,bnd->bn", target, embeds) / self.temperature
        # padding gets no attention
        filled = filled_part(student.samples).to(embeds.device, non_blocking=True)
        inside = [in_image(filled, f.shape[-2:]).flatten(1) for f in student.feats]
        similar = similar.masked_fill(~torch.cat(inside, 1), -torch.inf)
        pooled = torch.einsum("bn,bnd->bd", similar.softmax(-1), embeds)
        return self.compare(pooled, target)
