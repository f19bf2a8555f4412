"""Images on their way to the device."""

from typing import Any

import torch
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor


@MODELS.register_module()
class BatchPreprocessor(DetDataPreprocessor):
    """mmdet's, in a few steps for the whole batch, and without waiting for a copy.

    Images of one size are one tensor from the start; the parent converts one after the
    other. Samples stay on the host, where words are drawn and regions are counted: a
    :class:`KDEOVDetector` moves what it needs of them at once. Arguments are the
    parent's.
    """

    def __init__(self, *args: Any, non_blocking: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, non_blocking=non_blocking, **kwargs)

    def cast_data(self, data: Any) -> Any:
        """To the device, but for samples."""
        if isinstance(data, BaseDataElement):
            return data
        return super().cast_data(data)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """As the parent's: ``inputs`` (B, 3, H, W) and ``data_samples``."""
        inputs = data["inputs"]
        if (
            not isinstance(inputs, Tensor)
            and len({(i.shape, i.dtype) for i in inputs}) == 1
        ):
            data = dict(data, inputs=torch.stack(self.cast_data(inputs)))
        return super().forward(data, training)
