"""One embedding per image beside the detector: classification and retrieval."""

from collections.abc import Sequence

from mmdet.registry import MODELS
from torch import Tensor

from .distill.base import StudentBatch
from .distill.image import ImageDistillation
from .text_classifier import TextEmbeds


@MODELS.register_module()
class GlobalHead(ImageDistillation):
    """Embeds whole images in CLIP's space; it stays in the model at test time.

    With ``crops`` the student also embeds regions of its images as images of their
    own: a scene's embedding is a mixture of its objects, and does not teach to name
    one. Arguments are those of :class:`ImageDistillation`.
    """

    takes_crops = True

    def logits(self, embeds: Tensor, text: TextEmbeds) -> Tensor:
        """Unit vectors (B, D) and K classes -> cosines times the temperature (B, K)."""
        return self.classifier(embeds, text)

    def image_feats(self, student: StudentBatch) -> Sequence[Tensor]:
        """The maps before fusion: an image's embedding does not depend on words."""
        return student.image_feats or student.feats
