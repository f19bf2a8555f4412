"""Mixed precision where it is quick."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.registry import OPTIM_WRAPPERS
from mmengine.optim import AmpOptimWrapper
from torch import nn


@OPTIM_WRAPPERS.register_module()
class GPUAmpOptimWrapper(AmpOptimWrapper):
    """``AmpOptimWrapper`` on a GPU, and float32 on a CPU.

    Most processors have no half precision: convolutions in bfloat16 take many times as
    long there. Who wants it all the same asks for ``--amp``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """As the parent's, in float32 without a GPU."""
        here = GPUAmpOptimWrapper if torch.cuda.is_available() else AmpOptimWrapper
        parent: Any = super(here, self)
        with parent.optim_context(model):
            yield
