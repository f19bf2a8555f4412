"""From feature channels to the teacher's space."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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

    At test time it is a linear map, with BatchNorm the same for all images, with
    GroupNorm (the form of the original KDEOV design) one for each; so projection and
    text product fold into one product (:func:`fold_level`).

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
    def norm(self) -> nn.Module | None:
        """The norm, if there is one that was not fused into the convolution."""
        norm = self.project.norm if self.project.with_norm else None
        return None if isinstance(norm, nn.Identity) else norm

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear map for each image: not in training."""
        return self.norm is None or not self.norm.training

    @property
    def is_fixed(self) -> bool:
        """Whether these are the same for all images: without GroupNorm."""
        return not isinstance(self.norm, nn.GroupNorm)

    def linear(self, feats: Tensor) -> "LinearMap":
        """What it is for features (B, C, H, W), in float32."""
        conv: Any = self.project.conv
        norm: Any = self.norm
        weight = conv.weight[..., 0, 0].float()
        shift = (
            weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.float()
        )
        if norm is None:
            return LinearMap(weight, shift)
        gamma, beta = norm.weight.float(), norm.bias.float()
        # a factor and a shift of each dimension, the same for all images
        if not isinstance(norm, nn.GroupNorm):
            mean, variance = norm.running_mean.float(), norm.running_var.float()
            factor = gamma * (variance + norm.eps).rsqrt()
            shift = (shift - mean) * factor + beta
            return LinearMap(weight * factor[:, None], shift)
        # or those of each image: of a channel <p, x> the mean is <p, mean(x)>, and the
        # variance p' cov(x) p; (B, C, 1) and (B, C, C)
        rows = feats.flatten(2).float()
        centre = rows.mean(2, keepdim=True)
        rows = rows - centre
        covariance = rows @ rows.transpose(1, 2) / rows.shape[2]
        # of a group the variance is the mean of these, and the variance of the means:
        # (B, D) -> (B, G, D / G)
        size = (norm.num_groups, len(weight) // norm.num_groups)
        means = ((weight @ centre)[..., 0] + shift).unflatten(1, size)
        variances = ((weight @ covariance) * weight).sum(-1).unflatten(1, size)
        apart = means - means.mean(2, keepdim=True)
        spread = (variances + apart**2).mean(2, keepdim=True).expand_as(means)
        factor = gamma * (spread.flatten(1) + norm.eps).rsqrt()
        shift = apart.flatten(1) * factor + beta
        return LinearMap(weight * factor[..., None], shift, centre[..., None])


class LinearMap(NamedTuple):
    """matrix @ (x - centre) + shift.

    Attributes:
        matrix: (D, C), or (B, D, C) where each image has its own.
        shift: (D,) or (B, D).
        centre: (B, C, 1, 1), or None for 0.
    """

    matrix: Tensor
    shift: Tensor
    centre: Tensor | None = None


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
