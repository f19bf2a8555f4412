"""Weights of a backbone or neck, from a file that has to hold all of them."""

from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torchvision_models
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..files import BROKEN

CLASSIFIERS = ("fc", "head", "classifier")
PRETRAINED = ("Pretrained", "mmengine.Pretrained", PretrainedInit)


def pretrained_cfgs(init_cfg: Any) -> list[dict[str, Any]]:
    """The entries of an ``init_cfg`` (None, one or several) that name a file."""
    entries = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return [entry for entry in entries if entry and entry["type"] in PRETRAINED]


def take_pretrained(part: nn.Module | None) -> list[dict[str, Any]]:
    """Take these entries away from a module; the others stay."""
    if not isinstance(part, BaseModule):
        return []
    taken = pretrained_cfgs(part.init_cfg)
    if taken:
        entries = part.init_cfg if isinstance(part.init_cfg, (list, tuple)) else taken
        part.init_cfg = [entry for entry in entries if entry not in taken] or None
    return taken


def load_pretrained(part: nn.Module, name: str, init_cfg: Mapping[str, Any]) -> None:
    """Load the weights of a part; the file has all of them, with their shapes.

    Args:
        part: backbone or neck.
        name: its name in the model; also its prefix in the file of a whole model.
        init_cfg: ``checkpoint``, see :func:`read_weights`, and another ``prefix``.

    Raises:
        ValueError: names or shapes differ; and as :func:`read_weights`.
    """
    source, prefix = init_cfg["checkpoint"], init_cfg.get("prefix")
    content = read_weights(source)
    # a state dict, or a checkpoint with one; of a whole model the weights of this part
    stored = content.get("state_dict", content)
    state = {str(k): v for k, v in stored.items() if isinstance(v, Tensor)}
    begin = f"{(prefix or name).rstrip('.')}."
    given = {k.removeprefix(begin): v for k, v in state.items() if k.startswith(begin)}
    if not given and not prefix:
        given = state
    # nothing may be missing, have another shape, or be left over
    missing, other, unused = differences(part, name, given)
    if wrong := [*missing, *other, *unused]:
        examples = ", ".join([*missing[:2], *other[:2], *unused[:2]])
        first = ", ".join(sorted({str(key).partition(".")[0] for key in stored})[:6])
        raise ValueError(
            f"{source} does not fit model.{name}, a {type(part).__name__}: "
            f"{len(wrong)} names or shapes differ ({examples}), and the file's names "
            f"begin with {first}; give init_cfg a file of the same architecture, and "
            f"a `prefix` if its names do not begin with '{name}.'."
        )
    own = part.state_dict()
    used = {key: value for key, value in given.items() if key in own}
    part.load_state_dict(used, strict=False)
    rest = f", {len(given) - len(used)} not used" if len(given) > len(used) else ""
    print_log(f"model.{name}: {len(used)} weights of {source}{rest}", "current")


def differences(
    part: nn.Module, name: str, given: Mapping[str, Tensor]
) -> tuple[list[str], list[str], list[str]]:
    """Weights that are missing, have another shape, or are none of the part's."""
    own = {key: tuple(value.shape) for key, value in part.state_dict().items()}
    shapes = {key: tuple(value.shape) for key, value in given.items()}
    # files of before PyTorch 0.4.1 have no counters of batches
    missing = [
        f"{key} is missing"
        for key in own
        if key not in shapes and not key.endswith("num_batches_tracked")
    ]
    other = [
        f"{key} is {shapes[key]}, not {shape}"
        for key, shape in own.items()
        if shapes.get(key, shape) != shape
    ]
    unused = [
        f"{key} has no place"
        for key in given
        if key not in own and not (name == "backbone" and _is_later(key, part))
    ]
    return missing, other, unused


def _is_later(key: str, backbone: nn.Module) -> bool:
    """Whether a weight is a classifier's, or of a stage that was not built."""
    first, second, *_ = f"{key}..".split(".")
    child = backbone._modules.get(first)
    # ResNet's layer4, or EfficientNet's layers.6
    if child is None:
        return first in CLASSIFIERS or first[-1:].isdigit()
    return isinstance(child, nn.ModuleList) and second not in child._modules


def read_weights(source: str) -> Mapping[str, Any]:
    """What a file of weights holds, on the CPU.

    Args:
        source: a file of PyTorch or safetensors; an ``http(s)://`` address; or
            ``torchvision://NAME``, e.g. ``resnet50`` or ``resnet50.imagenet1k_v2``.
            torch.hub stores what is downloaded.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the download fails.
        ValueError: it holds no weights, or torchvision has none of this name.
    """
    file, address = _locate(source)
    if address is None and not file.is_file():
        raise FileNotFoundError(
            f"the weights {source} are not there: give init_cfg.checkpoint a file, "
            "torchvision://NAME or an http(s) address, or leave init_cfg out."
        )
    try:
        if address is None and file.suffix == ".safetensors":
            return load_file(file)
        content = CheckpointLoader.load_checkpoint(address or str(file), "cpu")
        if isinstance(content, Mapping):
            return content
        cause = None
    except (OSError, HTTPException) as error:
        if address is None:
            raise
        raise OSError(
            f"{address} could not be downloaded ({error}): get it in another way and "
            f"store it as {file}, or give init_cfg.checkpoint a file."
        ) from error
    except (*BROKEN, SafetensorError) as error:
        cause = error
    with file.open("rb") as opened:
        start = opened.read(16)
    raise ValueError(
        f"{file} holds no weights that can be read as data, it begins with {start!r}: "
        "is it a web page, a part of the file, or a whole pickled model?"
    ) from cause


def _locate(source: str) -> tuple[Path, str | None]:
    """The file of weights, and the address that it is downloaded from, or None."""
    address = source
    if source.startswith("torchvision://"):
        names, name = get_torchvision_models(), source.removeprefix("torchvision://")
        if name not in names:
            raise ValueError(
                f"torchvision has no weights {name!r}; it has resnet50, "
                "resnet50.imagenet1k_v2 and others (torchvision.models.list_models)."
            )
        address = names[name]
    if not address.startswith(("http://", "https://")):
        return Path(source).expanduser(), None
    file = Path(urlparse(address).path).name
    return Path(torch.hub.get_dir(), "checkpoints", file), address
