"""Checkpoints: the model they hold, and their config, read as data and never run."""

import ast
import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import Registry, init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import Tensor, nn

from .border import built, path_of, whole_number
from .clip.source import CLIPSource
from .files import BROKEN
from .models.pretrained import take_pretrained
from .options import config_of
from .yolo_world import is_yolo_world, state_of, what_is

# the values that JSON and mmengine's config files write as names
NAMES = dict(true=True, false=False, null=None, inf=float("inf"), nan=float("nan"))
# what a checkpoint's own config may name: parts that these packages registered
SCOPES = ("mmengine", "mmcv", "mmdet", "mmyolo", "kdeov_mm")
# operators, which no registry has; mmcv evaluates a suppression's name as an expression
OPERATORS = ("nms", "soft_nms", "RoIAlign", "RoIPool")
# registries of what a model is made of
REGISTRIES = ("model", "task util", "weight initializer")
# parts of mmdet that open files, ask hubs or evaluate text as they are built, and those
# that no model of ours has
REFUSED = (
    "mmdet.models.dense_heads.atss_vlfusion_head",
    "mmdet.models.detectors",
    "mmdet.models.language_models",
    "mmdet.models.mot",
    "mmdet.models.task_modules.tracking",
    "mmdet.models.trackers",
    "mmyolo.models.detectors",
)
MAX_TEXT = 2 * 2**20  # letters of a checkpoint's config
PLAIN = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp)


def load_model(
    config: str | Path | Config, checkpoint: str | Path | None, device: str = "cpu"
) -> Any:
    """Build a model for inference; ``model.cfg`` is its config.

    Args:
        config: of the model.
        checkpoint: its weights; None: it is not trained, which is logged.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is of another model, or has weights that are no numbers; or there
            is no such device.
    """
    check_device(device)
    config = config_of(config)
    with built("the config's default_scope"):
        init_default_scope(config.get("default_scope", "mmdet"))
    if checkpoint is None:
        # random weights are what a wrong path would give, so they are announced
        print_log(
            "no checkpoint was given: the student is NOT TRAINED.",
            "current",
            level=logging.WARNING,
        )
        model = build_model(config)
        # a training would begin with these files; they may not be here
        for part in model.children():
            take_pretrained(part)
        with _without_init_log():
            model.init_weights()
        model.cfg = config
        return model.to(device).eval()
    content = read_checkpoint(checkpoint)
    # nothing is initialised: the checkpoint brings all weights
    model = revert_sync_batchnorm(build_model(config))
    check_weights(model, content, checkpoint)
    _load_checkpoint_to_model(model, content)
    model.dataset_meta = (content.get("meta") or {}).get("dataset_meta", {})
    model.cfg = config
    return model.to(device).eval()


def check_loaders(config: Config, *needed: str) -> None:
    """Refuse a config whose data loaders are none.

    Args:
        config: of a training or a test.
        needed: loaders that it has to have, e.g. ``'test_dataloader'``.

    Raises:
        ValueError: a loader is missing, has no data set, or no batches.
    """
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = config.get(name)
        if loader is None and name not in needed:
            continue
        dataset = loader.get("dataset") if isinstance(loader, Mapping) else None
        if not isinstance(dataset, Mapping) or "type" not in dataset:
            raise ValueError(
                f"expected {name} = dict(dataset=dict(type=...), ...), got "
                f"{loader!r:.80}"
            )
        whole_number(f"{name}.batch_size", loader.get("batch_size", 1))


def build_model(config: Config) -> Any:
    """The model of a config.

    Raises:
        ValueError: the config has none, or one that cannot be built.
    """
    model = config.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("type"), str):
        raise ValueError(
            f"expected a config with model = dict(type=...), got {model!r:.80}"
        )
    with built("the config's model cannot be built"):
        return MODELS.build(model)


def check_device(device: str | torch.device) -> None:
    """Refuse a device that torch does not know, or that is not here.

    Raises:
        ValueError: it is none.
    """
    try:
        known = torch.device(device) if isinstance(device, str) else device
        if not isinstance(known, torch.device):
            raise RuntimeError("it is no name")
        if known.type == "meta" or (known.type == "cpu" and known.index):
            raise RuntimeError("nothing can be computed there")
        torch.empty(0, device=known)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {device}: expected cpu, or a GPU of this machine such as cuda:0 "
            f"({str(error).splitlines()[0][:120]})"
        ) from error


def check_weights(
    model: nn.Module, content: Mapping[str, Any], where: str | Path
) -> None:
    """Refuse weights that are not those of a model, or no numbers.

    mmengine loads what fits, and logs the rest. Weights that the model has no place for
    may be there (a global head's, another distillation's); those of distillation heads,
    which only a training needs, may be missing.

    Args:
        model: as its config says; it is not changed.
        content: of a checkpoint, :func:`read_checkpoint`.
        where: the file, for the message.

    Raises:
        ValueError: weights are missing, of other shapes, or not finite; names some.
    """
    held = content.get("state_dict", content)
    held = {
        str(key).removeprefix("module."): value
        for key, value in (held.items() if isinstance(held, Mapping) else ())
        if isinstance(value, Tensor)
    }
    # keys of earlier versions are renamed as they are loaded
    own, renamed = model.state_dict(), _renamed(model, dict(held))
    missing = [
        key
        for key in own
        if key not in renamed
        and not key.startswith(("distill.", "clip_proj."))
        and not key.endswith("num_batches_tracked")
    ]
    other = [k for k in own if k in renamed and not _alike(own[k], renamed[k])]
    # those of another kind are no numbers either
    broken = [] if other else not_finite(held)
    if missing or other:
        raise ValueError(
            f"{where} is of another model: {len(missing)} of the {len(own)} weights "
            f"that the config asks for are missing, e.g. {missing[:3]}, and "
            f"{len(other)} have other shapes, e.g. {other[:3]}"
        )
    if broken:
        raise ValueError(
            f"{where} has weights that are no finite numbers, in {len(broken)} of "
            f"{len(held)} tensors, e.g. {broken[:3]}: its training went wrong. Take an "
            "earlier checkpoint."
        )


def _alike(own: Tensor, other: Tensor) -> bool:
    """Whether a tensor is a weight's: its shape, and numbers of its kind."""
    dense = other.layout == torch.strided and not other.is_meta
    kind = own.is_floating_point() == other.is_floating_point()
    return own.shape == other.shape and dense and kind and not other.is_complex()


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """The names of a state dict's tensors with values that are no finite numbers."""
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    return [
        key
        for key, value in tensors.items()
        if value.is_meta or not value.to_dense().isfinite().all()
    ]


def _renamed(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict after the hooks by which modules read those of earlier versions."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for hook in module._load_state_dict_pre_hooks.values():
            hook(state, prefix, {}, True, [], [], [])
    return state


@contextmanager
def _without_init_log() -> Iterator[None]:
    """Leave out mmengine's lines about each parameter, a thousand of a small model."""
    logger = MMLogger.get_current_instance()

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.funcName != "_dump_init_info"

    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or something else.
    """
    if not path_of("a checkpoint", path).is_file():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist; train one with "
            "tools/train.py, or run `make demo`."
        )
    try:
        content = CheckpointLoader.load_checkpoint(str(path), "cpu")
        # torch does not compare the checksums of its files
        if is_zipfile(path):
            with ZipFile(path) as file:
                part = file.testzip()
            if part is not None:
                raise ValueError(f"the checksum of {part} differs")
    except UnpicklingError as error:
        # torch's own message says how to switch its safety off
        reason = what_is(Path(path), error)
        if reason == str(error) or str(error) in reason:
            reason = (
                "or it holds more than tensors and plain data, which could run code: "
                "ask its maker for the state_dict alone."
            )
        raise ValueError(f"{path} is no checkpoint, or damaged: {reason}") from error
    except (*BROKEN, BadZipFile) as error:
        reason = what_is(Path(path), error)
        raise ValueError(f"{path} is no checkpoint, or damaged: {reason}") from error
    content = content if isinstance(content, dict) else {}
    meta = content.get("meta")
    if not isinstance(meta, Mapping | None):
        raise ValueError(
            f"{path} is no checkpoint, or damaged: its meta is a {type(meta).__name__}"
        )
    # weights under another name, or alone
    weights = state_of(content)
    return dict(content, state_dict=weights) if is_yolo_world(weights) else content


def read_config(config: Any, strict: bool = False) -> dict[str, Any] | None:
    """A checkpoint's config as plain data; None if there is none.

    mmengine stores its text: assignments of literals and ``dict(...)``. Other values
    are read as None.

    Args:
        config: the text, or a dictionary already.
        strict: refuse other values.

    Raises:
        ValueError: ``strict``, and a value is an expression; names its line.

    Example:
        >>> read_config("model = dict(type='KDEOVDetector', depth=2)")
        {'model': {'type': 'KDEOVDetector', 'depth': 2}}
    """
    if isinstance(config, Mapping):
        return dict(config)
    if not isinstance(config, str):
        return None
    try:
        return _read_text(config, strict)
    except (MemoryError, RecursionError, SyntaxError, TypeError):
        return None


def _read_text(config: str, strict: bool) -> dict[str, Any] | None:
    """A config's text as plain data."""
    tree = ast.parse(config)
    reader = _Plain(strict)
    # a single expression: JSON, or the repr of a dictionary
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):
        value = ast.literal_eval(reader.visit(tree.body[0].value))
        return value if isinstance(value, dict) else None
    values = {
        node.targets[0].id: ast.literal_eval(reader.visit(node.value))
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return values or None


def own_config(content: Mapping[str, Any], where: str | Path) -> Config:
    """The config that a checkpoint brings, if it is one of registered parts alone.

    All that builds a model from a checkpoint without a config comes through here.

    Args:
        content: of :func:`read_checkpoint`.
        where: the checkpoint, for messages.

    Raises:
        ValueError: it has none, one that cannot be read, or one that
            :func:`check_parts` refuses.
    """
    meta = content.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    if isinstance(text, str) and len(text) > MAX_TEXT:
        raise ValueError(f"{where} has a config of {len(text)} letters: too long.")
    try:
        config = read_config(text, strict=True)
        if config and isinstance(config.get("model"), Mapping):
            check_parts(config, where)
            return Config(config)
    # nested too deeply, or in itself; or with names that mmengine keeps for itself
    except (RecursionError, MemoryError, KeyError, TypeError) as error:
        raise ValueError(f"{where} has a config that cannot be read: {error}") from None
    raise ValueError(
        f"{where} holds no config: use KDEOV.from_config(CONFIG, CHECKPOINT)."
    )


def check_parts(config: Mapping[str, Any], where: str | Path) -> None:
    """Refuse a checkpoint's config that names more than registered parts.

    mmengine imports what a dotted ``type``, a scope or ``custom_imports`` names, some
    parts of mmdet evaluate or fetch what they are given, and a model hub's encoder is
    downloaded: a file from a stranger could run any code, or tell where it is opened.

    Args:
        config: of :func:`read_config`.
        where: the checkpoint, for the message.

    Raises:
        ValueError: it does; names the entry.
    """
    wrong = []
    imports = config.get("custom_imports")
    names = imports.get("imports") if isinstance(imports, Mapping) else imports
    if names not in (None, ["kdeov_mm"]):
        wrong.append(f"custom_imports {names!r}")
    scope = config.get("default_scope", "mmdet")
    if scope not in SCOPES:
        wrong.append(f"default_scope {scope!r}")
    wrong += _foreign(config.get("model"), "model", {*_registered_parts()})
    if wrong:
        raise ValueError(
            f"{where} brings a config that names what is no registered part of "
            f"{', '.join(SCOPES)}, or no CLIP of this machine: {'; '.join(wrong[:3])}. "
            "Building it could run code of the file's author, or fetch what it names. "
            "Where you trust it, give the config file instead: "
            "KDEOV.from_config(CONFIG, CHECKPOINT)."
        )


def _foreign(value: Any, place: str, known: set[str]) -> Iterator[str]:
    """Entries of a config that name something else than registered parts."""
    if isinstance(value, Mapping):
        for key, v in value.items():
            scope, _, name = str(v).rpartition(".")
            refused = False
            if key == "type":
                refused = name not in known or scope not in ("", *SCOPES)
            elif key == "_scope_":
                refused = v not in SCOPES
            # what a training begins with is not opened
            elif key not in ("init_cfg", "pretrained") and isinstance(v, str):
                refused = "://" in v or "hub:" in v
            if refused:
                yield f"{place}.{key} {v!r}"
            elif key == "init_cfg":
                types = {"type": v.get("type")} if isinstance(v, Mapping) else v
                yield from _foreign(types, f"{place}.{key}", known)
            else:
                yield from _foreign(v, f"{place}.{key}", known)
        if isinstance(value.get("model"), str):  # of an encoder or a teacher
            yield from _fetched(value, place)
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            yield from _foreign(v, f"{place}[{i}]", known)


def _fetched(encoder: Mapping[str, Any], place: str) -> Iterator[str]:
    """What a hub has of a CLIP."""
    try:
        CLIPSource(encoder["model"], encoder.get("pretrained")).check_towers()
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        yield f"{place}.model: {error}"


def _registered_parts() -> dict[str, Any]:
    """Parts of models by the names that they are registered by."""
    parts: dict[str, Any] = dict.fromkeys(OPERATORS)
    refused = set()
    for package in ("mmengine", "mmdet", "mmyolo"):
        rooms = vars(importlib.import_module(f"{package}.registry")).values()
        for registry in rooms:
            if isinstance(registry, Registry) and registry.name in REGISTRIES:
                registry.import_from_location()
                parts.update(registry.module_dict)
    for name, part in parts.items():
        home = f"{getattr(part, '__module__', '')}."
        if any(home.startswith(f"{place}.") for place in REFUSED):
            refused.add(name)
    return {name: part for name, part in parts.items() if name not in refused}


class _Plain(ast.NodeTransformer):
    """An expression as a literal: ``dict(...)`` becomes ``{...}``."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict

    def visit_Call(self, node: ast.Call) -> ast.expr:
        # in a lenient reading, any call stands for its named values
        if self.strict and not _makes_dict(node):
            return self._other(node)
        first = self.visit(node.args[0]) if node.args else None
        found = first if isinstance(first, ast.Dict) else ast.Dict([], [])
        named = [keyword for keyword in node.keywords if keyword.arg]
        return ast.Dict(
            [*found.keys, *(ast.Constant(keyword.arg) for keyword in named)],
            [*found.values, *(self.visit(keyword.value) for keyword in named)],
        )

    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        if self.strict and None in node.keys:  # {**other}
            return self._other(node)
        pairs = [(k, v) for k, v in zip(node.keys, node.values) if k is not None]
        keys, values = ([self.visit(p[i]) for p in pairs] for i in (0, 1))
        return ast.Dict(keys, values)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(NAMES[node.id]) if node.id in NAMES else self._other(node)

    def generic_visit(self, node: ast.AST) -> Any:
        if isinstance(node, (ast.UnaryOp, ast.BinOp)):
            try:
                ast.literal_eval(super().generic_visit(node))
            except ValueError:
                return self._other(node)
        if isinstance(node, ast.expr) and not isinstance(node, PLAIN):
            return self._other(node)
        return super().generic_visit(node)

    def _other(self, node: ast.expr) -> ast.expr:
        if self.strict:
            raise ValueError(
                f"line {node.lineno} of the checkpoint's config is no plain value "
                f"({ast.unparse(node)[:80]}): give the config file instead."
            )
        return ast.Constant(None)


def _makes_dict(call: ast.Call) -> bool:
    """Whether a call is ``dict(...)`` of named values, and drops nothing here."""
    return (
        isinstance(call.func, ast.Name)
        and call.func.id in ("dict", "ConfigDict", "OrderedDict")
        and all(keyword.arg for keyword in call.keywords)
        and len(call.args) < 2
        and all(isinstance(value, (ast.Dict, ast.Call)) for value in call.args)
    )
