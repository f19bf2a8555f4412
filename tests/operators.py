"""Operators of a training step, and those for which the host of a GPU would wait."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# their result, or its size, depends on values
STOPS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"),
    *("unique_dim", "unique_consecutive", "_unique2", "repeat_interleave"),
}


class Operators(TorchDispatchMode):
    """Counts what is called inside: ``number``, and ``stops`` by name."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.stops: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.__name__.split(".")[0]
        self.number += 1
        indices = args[1] if name in ("index", "index_put_", "index_put") else ()
        if any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices):
            self.stops["index by bool"] += 1
        elif name in STOPS:
            self.stops[name] += 1
        return func(*args, **(kwargs or {}))


def operators_of_step(model: Any, data: dict[str, Any], times: int) -> Operators:
    """From the batch to its gradients, the batch repeated; after a step of its own."""
    for _ in range(2):
        model.zero_grad()
        batch = {key: copy.deepcopy([*value] * times) for key, value in data.items()}
        # copies of one object are one copy
        batch["data_samples"] = [sample.clone() for sample in batch["data_samples"]]
        with Operators() as counted:
            inputs = model.data_preprocessor(batch, True)
            losses, _ = model.parse_losses(model(**inputs, mode="loss"))
            losses.backward()
    return counted
