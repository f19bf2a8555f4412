"""The mean of a model's weights before and after a fine-tuning."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..border import real_number


def interpolate(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], part: float = 0.5
) -> dict[str, Any]:
    """WiSE-FT (Wortsman et al., 2022): (1 - part) * before + part * after.

    Fine-tuning moves a model a little within one valley of the loss; between both ends
    it keeps most of what it knew and most of what it learnt.

    Args:
        before, after: state dicts of one model. What ``after`` alone has (weights of
            distillation heads) and counters, which are integers, stay as they are.
        part: of the fine-tuning, in [0, 1].

    Raises:
        ValueError: they are of different models, or ``part`` is no such number.

    Example:
        >>> import torch
        >>> interpolate(dict(w=torch.tensor(0.0)), dict(w=torch.tensor(1.0)), 0.25)
        {'w': tensor(0.2500)}
    """
    part = real_number("part", part, 0.0, 1.0)
    other = [k for k in before if k not in after or before[k].shape != after[k].shape]
    if other:
        raise ValueError(
            f"both checkpoints are of one model, before and after a fine-tuning: "
            f"{len(other)} of {len(before)} weights are not in both, or of other "
            f"shapes, e.g. {other[:3]}"
        )
    mixed = dict(after)
    for key, old in before.items():
        if old.is_floating_point():
            # the difference as float32: half precision would round it away
            new = after[key].float()
            mixed[key] = old.float().lerp(new, part).to(after[key].dtype)
    return mixed
