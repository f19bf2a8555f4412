"""From feature channels to the teacher's space."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmyolo.models.utils import make_divisible
from torch import Tensor, nn

from .pixels import in_image


@MODELS.register_module()
class SpatialProjection(nn.Module):
    """1x1 convolution and norm, location by location.

    With BatchNorm (no input-dependent statistics at test time) the
    projection and the text product fold into one convolution; GroupNorm is
    the form of the original KDEOV design.

    Args:
        in_channels: channels C of the features.
        embed_dims: dimension D of the teacher's space.
        norm_cfg: an mm norm config, e.g. ``dict(type='BN')`` or
            ``dict(type='GN', num_groups=32)``; None for no norm.
    """

    def __init__(
        self, in_channels: int, embed_dims: int, norm_cfg: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.project = ConvModule(
            in_channels, embed_dims, 1, norm_cfg=norm_cfg, act_cfg=None
        )

    def forward(self, feats: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H, W), each entry of about unit variance."""
        return self.project(feats)

    @property
    def is_linear(self) -> bool:
        """Whether it now is a matrix and a vector: at test time, without GroupNorm."""
        # GroupNorm's statistics, and BatchNorm's in training, depend on the input
        norm = self.project.norm if self.project.with_norm else None
        return norm is None or (
            isinstance(norm, nn.modules.batchnorm._BatchNorm) and not norm.training
        )

    def linear(self) -> tuple[Tensor, Tensor]:
        """The matrix (D, C) and the vector (D,) that it then is."""
        conv = self.project.conv
        weight = conv.weight[..., 0, 0]
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias
        if not self.project.with_norm:
            return weight, bias
        # BatchNorm at test time: a factor and a shift of each dimension
        norm = self.project.norm
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return weight * factor[:, None], (bias - norm.running_mean) * factor + norm.bias


@MODELS.register_module()
class GlobalProjection(nn.Module):
    """Feature maps to one embedding per image.

    Global average pooling of each level, side by side, a 2-layer MLP, L2 norm:
    the projection network of the original KDEOV design.

    Args:
        in_channels: channels of each level before ``widen_factor``.
        embed_dims: dimension D of the teacher's space.
        widen_factor: width multiplier of the neck.
        hidden_dims: width of the MLP.
        norm: LayerNorm before the MLP; the levels' features differ in size.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        embed_dims: int,
        widen_factor: float = 1.0,
        hidden_dims: int = 512,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        channels = sum(make_divisible(c, widen_factor) for c in in_channels)
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden_dims),
            nn.GELU(),
            nn.Linear(hidden_dims, embed_dims),
        )

    def forward(self, feats: Sequence[Tensor], filled: Tensor) -> Tensor:
        """Pool what is not padding.

        Args:
            feats: L maps (B, C_l, H_l, W_l).
            filled: (B, 2), the part of height and width that the image fills,
                in (0, 1].

        Returns:
            (B, D) unit vectors.
        """
        # (B, C_l) of each level, side by side
        pooled = torch.cat([_masked_mean(feat, filled) for feat in feats], 1)
        # unit length in full precision
        return F.normalize(self.mlp(self.norm(pooled)).float(), dim=-1)


def _masked_mean(feat: Tensor, filled: Tensor) -> Tensor:
    """Mean over the locations in the image: (B, C, H, W) -> (B, C)."""
    mask = in_image(filled, feat.shape[-2:]).to(feat.dtype)
    mask = mask / mask.sum((1, 2), keepdim=True)
    return torch.einsum("bchw,bhw->bc", feat, mask)
