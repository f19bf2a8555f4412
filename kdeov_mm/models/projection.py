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
    """Feature maps to one embedding per image: a 2-layer MLP, pooling, L2 norm.

    The projection network of the original KDEOV design, in one of two orders. An MLP of
    the pooled features cannot tell apart what pooling has mixed; one at each location
    embeds what is there, and an image is the mean of that.

    Args:
        in_channels: channels of each level before ``widen_factor``.
        embed_dims: dimension D of the teacher's space.
        widen_factor: width multiplier of the neck.
        hidden_dims: width of the MLP.
        norm: LayerNorm before the MLP; the levels' features differ in size.
        pooling: ``'mean'``, global average pooling of each level, side by side, then
            the MLP; or ``'attention'``, an MLP at each location of each level, then
            the mean over all of them, weighted by a softmax of learnt scores.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        embed_dims: int,
        widen_factor: float = 1.0,
        hidden_dims: int = 512,
        norm: bool = False,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "attention"):
            raise ValueError(f"pooling is 'mean' or 'attention', got {pooling!r}")
        self.embed_dims = embed_dims
        self.pooling = pooling
        channels = [make_divisible(c, widen_factor) for c in in_channels]

        def mlp(width: int, out: int) -> nn.Sequential:
            layers = (
                nn.Linear(width, hidden_dims),
                nn.GELU(),
                nn.Linear(hidden_dims, out),
            )
            return nn.Sequential(*layers)

        # of all levels side by side; or of each, with a score beside the embedding
        if pooling == "mean":
            self.norm = nn.LayerNorm(sum(channels)) if norm else nn.Identity()
            self.mlp = mlp(sum(channels), embed_dims)
        else:
            norms = [nn.LayerNorm(c) if norm else nn.Identity() for c in channels]
            mlps = [mlp(c, embed_dims + 1) for c in channels]
            self.levels = nn.ModuleList(map(nn.Sequential, norms, mlps))

    def forward(self, feats: Sequence[Tensor], filled: Tensor) -> Tensor:
        """Embed what is not padding.

        Args:
            feats: L maps (B, C_l, H_l, W_l).
            filled: (B, 2), the part of height and width that the image fills,
                in (0, 1].

        Returns:
            (B, D) unit vectors.
        """
        if self.pooling == "mean":
            # (B, C_l) of each level, side by side
            pooled = torch.cat([_masked_mean(feat, filled) for feat in feats], 1)
            embeds = self.mlp(self.norm(pooled)).float()
        else:
            embeds = self._attend(feats, filled)
        # unit length in full precision
        return F.normalize(embeds, dim=-1)

    def _attend(self, feats: Sequence[Tensor], filled: Tensor) -> Tensor:
        """The weighted mean of all locations' embeddings: (B, D) float32."""
        # (B, C_l, H_l, W_l) -> (B, N_l, D + 1), all levels one after the other
        rows = [
            level(feat.flatten(2).transpose(1, 2))
            for level, feat in zip(self.levels, feats)
        ]
        masks = [in_image(filled, feat.shape[-2:]).flatten(1) for feat in feats]
        embeds, scores = torch.cat(rows, 1).float().split([self.embed_dims, 1], 2)
        # padding has no weight
        scores = scores.masked_fill(~torch.cat(masks, 1)[..., None], -torch.inf)
        return (scores.softmax(1) * embeds).sum(1)


@MODELS.register_module()
class MeanEmbedding(nn.Module):
    """The mean of the pixel embeddings of an image, of unit length; nothing is learnt.

    Args:
        embed_dims: dimension D of the embeddings.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.embed_dims = embed_dims

    def forward(self, feats: Sequence[Tensor], filled: Tensor) -> Tensor:
        """One map (B, D, h, w), ``filled`` as :class:`GlobalProjection` -> (B, D)."""
        return F.normalize(_masked_mean(feats[0], filled), dim=-1)


def _masked_mean(feat: Tensor, filled: Tensor) -> Tensor:
    """Mean over the locations in the image: (B, C, H, W) -> (B, C)."""
    mask = in_image(filled, feat.shape[-2:]).to(feat.dtype)
    mask = mask / mask.sum((1, 2), keepdim=True)
    return torch.einsum("bchw,bhw->bc", feat, mask)
