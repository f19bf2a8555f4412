"""Distillation of whole images, from the teacher and from captions."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.dist import get_world_size
from torch import Tensor, nn

from .ov_head import Locations


@MODELS.register_module()
class GlobalDistillation(nn.Module):
    """The student's image embedding learns the teacher's, or the captions'.

    With a distance and the contrast together it is the FeatureAlignment loss
    of the original KDEOV design: distillation from the image tower plus
    cross-modal alignment by InfoNCE.

    Args:
        projection: config of :class:`GlobalProjection`.
        distances: name -> config of a distance in ``losses.py``, to the
            teacher's embedding of the whole image.
        contrast: config of :class:`InfoNCE` against one caption per image
            (transform ``LoadCaptions``); None for none.
    """

    def __init__(
        self,
        projection: dict[str, Any],
        distances: dict[str, dict[str, Any]] | None = None,
        contrast: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not distances and not contrast:
            raise ValueError(
                "GlobalDistillation has nothing to learn: give it `distances`, "
                "`contrast`, or both."
            )
        self.projection = MODELS.build(projection)
        self.distances = nn.ModuleDict(
            {name: MODELS.build(cfg) for name, cfg in (distances or {}).items()}
        )
        self.contrast = MODELS.build(contrast) if contrast else None

    def embed(self, feats: Sequence[Tensor], samples: SampleList) -> Tensor:
        """L maps (B, C_l, H_l, W_l) -> (B, D) unit vectors."""
        filled = [
            [part / whole for part, whole in zip(s.img_shape, s.batch_input_shape)]
            for s in samples
        ]
        return self.projection(feats, torch.tensor(filled, device=feats[0].device))

    def loss(
        self,
        feats: Sequence[Tensor],
        text: Tensor,
        teacher: Any,
        pixels: Tensor,
        samples: SampleList,
        locations: Locations,
    ) -> dict[str, Tensor]:
        """Pull image embeddings; arguments as of all distillation heads.

        Raises:
            ValueError: captions are wanted and a sample has none.
        """
        embeds = self.embed(feats, samples)
        # mmyolo's losses are sums over the joint batch: keep the balance with them
        factor = len(samples) * get_world_size()
        losses = {}
        if self.distances:
            target = teacher.embed_images(pixels, [s.img_shape for s in samples])
            for name, distance in self.distances.items():
                mean = distance(embeds, target).mean()
                losses[f"loss_global_{name}"] = mean * distance.loss_weight * factor
        if self.contrast is not None:
            captions = teacher.embed_captions(_captions(samples), embeds.device)
            losses["loss_global_contrast"] = self.contrast(embeds, captions) * factor
        return losses


def _captions(samples: SampleList) -> list[str]:
    missing = [s.metainfo.get("img_id") for s in samples if "caption" not in s.metainfo]
    if missing:
        raise ValueError(
            f"images {missing[:5]} come without a caption: put LoadCaptions into "
            "the training pipeline and 'caption' into meta_keys of PackDetInputs."
        )
    return [s.metainfo["caption"] for s in samples]
