"""YOLOv8's two branches, with boxes in full precision; and lighter ones."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmyolo.models.dense_heads import YOLOv8HeadModule
from torch import Tensor, nn


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which operators keep the precision that they are given."""
    # entered only where it changes something: exporters would keep it in the graph
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class BoxBranches(YOLOv8HeadModule):
    """``mmyolo.YOLOv8HeadModule`` whose box sides are float32 whatever the maps are.

    In half precision a coordinate of 640 pixels steps by half a pixel, in bfloat16 by
    four.
    """

    def forward_single(
        self, x: Tensor, cls_pred: nn.Module, reg_pred: nn.Sequential
    ) -> tuple[Tensor, ...]:
        """One level's features (B, C, H, W) -> what the parent's gives.

        Returns:
            The class branch; box sides (B, 4, H, W) in strides, float32; in training,
            also box logits (B, H * W, 4, R).
        """
        height, width = x.shape[2:]
        # the last layer in the precision of its weights: it costs little, and of half
        # logits other locations are matched
        trunk, last = reg_pred[:-1], reg_pred[-1]
        hidden = trunk(x)
        with without_autocast(x.device):
            logits = last(hidden.to(last.weight.dtype))
        # (B, 4 * R, H, W) -> (B, H * W, 4, R)
        logits = logits.reshape(-1, 4, self.reg_max, height * width)
        logits = logits.permute(0, 3, 1, 2)
        # (B, H * W, 4) -> (B, 4, H, W)
        sides = self.box_sides(logits).transpose(1, 2).reshape(-1, 4, height, width)
        return (cls_pred(x), sides, *([logits] if self.training else []))

    def box_sides(self, logits: Tensor) -> Tensor:
        """Box logits (..., 4, R) -> means of the distributions (..., 4), in strides."""
        with without_autocast(logits.device):
            # a matrix of one column: ONNX Runtime is slow at a product with a vector
            bins = self.proj.float().view(-1, 1)
            return (logits.float().softmax(-1) @ bins).squeeze(-1)


def light_branches(head: Any) -> tuple[Any, Any]:
    """Class and box branches of a :class:`BoxBranches` at a sixth of their cost.

    Depthwise separable convolutions in place of full ones (as YOLOv10's class branch,
    Wang et al., 2024, section 3.2), and half the width in the box branch. The last
    layer of the class branch is left out.

    Args:
        head: the module whose widths and norms they have; ``num_classes`` is the least
            width of the class branch.
    """
    style = dict(norm_cfg=head.norm_cfg, act_cfg=head.act_cfg)
    first = head.in_channels[0]
    wide, narrow = max(first, head.num_classes), max(16, first // 2)

    def separable(inside: int, outside: int) -> nn.Module:
        return DepthwiseSeparableConvModule(inside, outside, 3, padding=1, **style)

    classes, boxes = nn.ModuleList(), nn.ModuleList()
    for channels in head.in_channels:
        classes.append(nn.Sequential(separable(channels, wide), separable(wide, wide)))
        boxes.append(
            nn.Sequential(
                separable(channels, narrow),
                ConvModule(narrow, narrow, 3, padding=1, **style),
                nn.Conv2d(narrow, 4 * head.reg_max, 1),
            )
        )
    return classes, boxes
