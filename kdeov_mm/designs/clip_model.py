"""CLIP with a ResNet-50 as its image side, by the calls of its document."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..border import path_of
from ..clip import CLIPSource
from ..models.pretrained import load_pretrained
from .tensor_model import TensorModel, Texts, global_head


class ResNetCLIP(TensorModel):
    """An :class:`ImageTextModel` as its document calls it: :func:`create_clip_model`.

    The image side learns; the text side is the CLIP's, frozen.
    """

    def forward(
        self, images: Tensor, input_ids: Texts, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and N texts -> unit vectors (B, D) and (N, D)."""
        return self.encode_image(images), self.encode_text(input_ids, attention_mask)

    def encode_text(self, text: Texts, attention_mask: Tensor | None = None) -> Tensor:
        """N sentences, or tokens (N, n) -> unit vectors (N, D).

        Args:
            text: a sentence ends at its highest token; what follows is not read.
            attention_mask: (N, n), 0 for tokens that count for nothing, which follow
                all others. With it n may be less than the CLIP's context, as
                tokenizers give it that pad to the longest sentence.

        Raises:
            ValueError: a mask of another shape, or padding before a token that counts.
        """
        if attention_mask is None or not isinstance(text, Tensor):
            return super().encode_text(text)
        if not isinstance(attention_mask, Tensor) or attention_mask.shape != text.shape:
            got: Any = attention_mask
            got = tuple(got.shape) if isinstance(got, Tensor) else got
            raise ValueError(
                f"expected an attention_mask {tuple(text.shape)}, one number for each "
                f"token, got {got!r:.80}"
            )
        masked = attention_mask.to(text.device) == 0
        # a position has a meaning, so that sentences cannot be moved
        if (masked[:, :-1] & ~masked[:, 1:]).any():
            raise ValueError(
                "attention_mask hides tokens before others that count: a CLIP's tokens "
                "are padded at the right."
            )
        # what follows a sentence, up to the CLIP's context, is padding
        config = self.student.text_encoder.source.model_config()["text_cfg"]
        missing = max(config.get("context_length", 77) - text.shape[1], 0)
        return super().encode_text(F.pad(text.masked_fill(masked, 0), (0, missing)))

    def get_trainable_parameters(self) -> Iterator[nn.Parameter]:
        """What an optimizer is given: the image side, and the temperature."""
        return self.student.get_trainable_parameters()

    def print_parameter_summary(self) -> None:
        """Print a table: module, trainable and frozen parameters."""
        print(self.student.parameter_summary())


def create_clip_model(
    device: str | torch.device = "cpu",
    clip_model_name: str = "ViT-B/32",
    pretrained: str | None = "openai",
    backbone_pretrained: str | None = "torchvision://resnet50",
) -> ResNetCLIP:
    """ResNet-50, then 2048 -> 2048 -> D with GELU and L2 norm, beside a frozen CLIP.

    As ``configs/image_text/r50_coco.py``, except that images are normalised by the
    CLIP's mean and std.

    Args:
        device: where it runs.
        clip_model_name, pretrained: as :class:`KDEOVModel`'s.
        backbone_pretrained: ImageNet's weights, as ``checkpoint`` of an ``init_cfg``:
            a file, or a name of torchvision's, downloaded where torch.hub has not
            stored it; None: random ones.
    """
    source = CLIPSource.named(clip_model_name, pretrained)
    dims = source.model_config()["embed_dim"]
    backbone = dict(type="mmdet.ResNet", depth=50, out_indices=(3,), norm_eval=False)
    model = dict(
        type="ImageTextModel",
        backbone=backbone,
        global_head=global_head(dims, in_channels=[2048], hidden_dims=2048),
    )
    clip = ResNetCLIP(model, source, device)
    if backbone_pretrained is not None:
        path_of("backbone_pretrained", backbone_pretrained)
        weights = dict(checkpoint=str(backbone_pretrained))
        load_pretrained(clip.student.backbone, "backbone", weights)
    return clip
