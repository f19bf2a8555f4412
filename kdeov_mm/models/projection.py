"""From feature channels to the teacher's space."""

from typing import Any

from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from torch import Tensor, nn


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
