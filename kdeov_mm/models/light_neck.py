"""YOLOv8's neck with separable convolutions."""

from typing import Any

from mmcv.cnn import DepthwiseSeparableConvModule
from mmdet.registry import MODELS
from mmyolo.models.necks import YOLOv8PAFPN
from torch import nn


@MODELS.register_module()
class LightPAFPN(YOLOv8PAFPN):
    """``mmyolo.YOLOv8PAFPN`` at half of its multiplications.

    All of its 3x3 convolutions, those of the bottlenecks and those that halve a map,
    are depthwise separable ones (as MobileNets', Howard et al., 2017, section 3.1);
    its arguments and its maps are the same.
    """

    def build_top_down_layer(self, idx: int) -> nn.Module:
        """The parent's, lighter."""
        return self._lighter(super().build_top_down_layer(idx))

    def build_bottom_up_layer(self, idx: int) -> nn.Module:
        """The parent's, lighter."""
        return self._lighter(super().build_bottom_up_layer(idx))

    def build_downsample_layer(self, idx: int) -> nn.Module:
        """The parent's, lighter."""
        return self._separable(super().build_downsample_layer(idx))

    def _lighter(self, layer: Any) -> nn.Module:
        for block in layer.blocks:
            block.conv1 = self._separable(block.conv1)
            block.conv2 = self._separable(block.conv2)
        return layer

    def _separable(self, module: Any) -> nn.Module:
        """In place of a ``ConvModule`` of 3x3, one of the same stride and widths."""
        conv = module.conv
        return DepthwiseSeparableConvModule(
            conv.in_channels,
            conv.out_channels,
            3,
            stride=conv.stride,
            padding=1,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )
