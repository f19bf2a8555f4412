"""YOLOv8's two branches, with boxes in full precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
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
