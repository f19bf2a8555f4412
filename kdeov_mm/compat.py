"""Every workaround for a third party, and nothing else.

Each ``_fix_*`` function does one thing, says whether it had to, and its docstring
gives symptom, versions, link and the condition on which it is to be deleted. A test
in ``tests/test_compat.py`` fails once the symptom is gone.

``apply()`` runs before anything imports ``mmdet.models`` or ``mmyolo``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

MMCV_RANGE = ("2.0.0rc4", "2.3.0")  # supported: low <= mmcv < high
_MMCV_IN_EVERY_GATE = "2.0.1"
_HALF = (torch.float16, torch.bfloat16)


def apply() -> list[str]:
    """Apply what this environment needs; return the names. Safe to repeat."""
    return list(_apply_once())


@functools.cache
def _apply_once() -> tuple[str, ...]:
    _require_mm_packages()
    _require_matching_torchvision()
    fixes: tuple[Callable[[], bool], ...] = (
        _fix_missing_ops,
        _fix_version_gates,
        _fix_checkpoint_types,
        _fix_pkg_resources,
        _fix_amp_on_cpu,
        _fix_meshgrid_warning,
    )
    return tuple(fix.__name__.removeprefix("_fix_") for fix in fixes if fix())


# ----------------------------------------------------------------- requirements


def _require_mm_packages() -> None:
    """Name the missing package and the command, or the version that is out of range."""
    # found without an import, which would fail on a package that is not yet mended
    for name in ("mmengine", "mmcv", "mmdet", "mmyolo"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"kdeov_mm needs {name}, which is not installed. In a fresh "
                'environment: pip install "kdeov_mm[mm]" -c constraints.txt (wheels '
                "only, with mmcv-lite). Where you have your own mmcv, add what is "
                "missing: pip install mmengine==0.10.7 mmdet==3.3.0 mmyolo==0.6.0",
                name=name,
            )
    # these two import nothing that needs a fix
    import mmcv
    from mmengine.utils import digit_version

    low, high = MMCV_RANGE
    if not digit_version(low) <= digit_version(mmcv.__version__) < digit_version(high):
        raise ImportError(
            f"kdeov_mm works with mmcv >= {low}, < {high}; found {mmcv.__version__}. "
            "Install mmcv-lite==2.0.1, or a compiled mmcv of that range."
        )


def _require_matching_torchvision() -> None:
    """Say what is wrong when torchvision was built for another torch."""
    try:
        importlib.import_module("torchvision")
    # its message is about an operator: "torchvision::nms does not exist"
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise ImportError(
            f"torchvision {importlib.metadata.version('torchvision')} was not built "
            f"for torch {torch.__version__}: install both together, from the same "
            "index (the pairs are in constraints.txt)."
        ) from error


# ------------------------------------------------------------------ mmcv's ops


def _fix_missing_ops() -> bool:
    """Provide ``mmcv._ext`` where mmcv has no compiled ops.

    Symptom: ``import mmdet.models`` and ``import mmyolo.models`` end in
    ``ModuleNotFoundError: No module named 'mmcv._ext'``.
    Versions: every mmcv-lite; mmcv has no wheel on the package index, and building it
    takes a compiler and about ten minutes.
    Link: https://github.com/open-mmlab/mmcv/issues/2059
    Delete when: mmdet and mmyolo import without ``mmcv._ext``, or mmcv ships wheels
    for the torch versions that we support.

    ``nms`` and ``roi_align`` (average) come from torchvision; every other op raises
    an error with its name. A compiled mmcv is left alone. The module's loader is
    None, so that mmcv's and mmengine's own checks (``check_ops_exist``,
    ``mmcv_full_available``) go on saying "no compiled ops".
    """
    name = "mmcv._ext"
    # a compiled mmcv, or a second call
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return False
    module = ModuleType(name, "Stand-in for mmcv's compiled ops, by kdeov_mm.compat.")
    module.__spec__ = ModuleSpec(name, loader=None)
    for op in (_nms, _roi_align_forward, _roi_align_backward):
        setattr(module, op.__name__.removeprefix("_"), op)
    # mmcv's environment report asks for these two
    module.get_compiler_version = lambda: "n/a"  # type: ignore[attr-defined]
    module.get_compiling_cuda_version = lambda: "n/a"  # type: ignore[attr-defined]
    # every other op can be imported by name, as mmcv.ops does with all of them
    module.__getattr__ = _missing_op  # type: ignore[method-assign]
    sys.modules[name] = module
    sys.modules["mmcv"]._ext = module  # type: ignore[attr-defined]
    return True


def _missing_op(name: str) -> Callable[..., NoReturn]:
    """An op that is not there: it can be imported, and teaches when it is called."""
    # Python asks modules for __path__ and others, and takes what it gets
    if name.startswith("__"):
        raise AttributeError(name)

    def op(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"the op '{name}' needs mmcv with compiled ops; this environment has "
            "mmcv-lite, where kdeov_mm provides nms and roi_align only. "
            "To get all ops: pip uninstall mmcv-lite, then pip install "
            "--no-cache-dir --no-build-isolation mmcv==2.1.0 (compiles for about ten "
            "minutes; docs/compatibility.md says for which torch)."
        )

    op.__name__ = name
    return op


def _full(x: Tensor) -> Tensor:
    """float32 for half types, which torchvision's CPU kernels do not take."""
    return x.float() if x.dtype in _HALF else x


def _nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices kept, best score first.

    bboxes (N, 4): xyxy; a width is x2 - x1 + offset. scores (N,).
    """
    from torchvision.ops import nms

    # the offset widens every box at its far corner, so moving that corner is the same
    boxes = _full(bboxes)
    far = boxes.new_tensor([0, 0, offset, offset])
    return nms(boxes + far, _full(scores), iou_threshold)


def _roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill output (R, C, h, w) from input (N, C, H, W) at rois (R, 5): index, xyxy."""
    from torchvision.ops import roi_align

    # 0 is the maximum, 1 the average
    if pool_mode != 1:
        _missing_op("roi_align with pool_mode='max'")()
    size = (aligned_height, aligned_width)
    images, boxes = _full(input), _full(rois)
    # the caller made the output, of its own type
    output.copy_(roi_align(images, boxes, size, spatial_scale, sampling_ratio, aligned))


def _roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill grad_input (N, C, H, W) from grad_output (R, C, h, w)."""
    # the kernel that torchvision's own backward calls: no second forward is needed
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            _full(grad_output),
            _full(rois),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


# --------------------------------------------------------------- version gates


def _fix_version_gates() -> bool:
    """Import mmdet and mmyolo past their upper limits for mmcv.

    Symptom: ``AssertionError: MMCV==2.1.0 is used but incompatible``.
    Versions: mmyolo 0.6.0 asks for mmcv < 2.1.0, mmdet 3.3.0 for mmcv < 2.2.0; what
    either uses of mmcv is the same in 2.0, 2.1 and 2.2.
    Link: https://github.com/open-mmlab/mmdetection/issues/11763
    Delete when: releases of both accept mmcv 2.2.

    mmcv gives another version only while the two packages, whose first page holds
    nothing but the gate, are imported. mmdet's own tools import mmdet before us:
    then only mmyolo is left to import.
    """
    import mmcv
    from mmengine.utils import digit_version

    # the first limit, of mmyolo
    real = mmcv.__version__
    if digit_version(real) < digit_version("2.1.0"):
        return False
    mmcv.__version__ = _MMCV_IN_EVERY_GATE
    try:
        packages = [importlib.import_module(name) for name in ("mmdet", "mmyolo")]
    finally:
        mmcv.__version__ = real
    # what they say of mmcv from here on is true again
    for package in packages:
        package.mmcv_version = digit_version(real)  # type: ignore[attr-defined]
    return True


# ----------------------------------------------------------------- checkpoints


def _fix_checkpoint_types() -> bool:
    """Tell torch's safe unpickler about the types in mmengine's checkpoints.

    Symptom: ``--resume`` and ``load_checkpoint`` end in ``UnpicklingError: Weights
    only load failed ... GLOBAL mmengine.logging.history_buffer.HistoryBuffer``.
    Versions: mmengine <= 0.10.7 with torch >= 2.6, whose ``torch.load`` is safe by
    default.
    Link: https://github.com/open-mmlab/mmengine/issues/1655
    Delete when: mmengine registers its own types.

    The types hold data; the safety itself stays on. Files written under numpy 1 give
    the module's old name, hence the pairs. HistoryBuffer stores its four statistics as
    ``getattr(HistoryBuffer, "mean")``: that call, and no other use of getattr, is let
    through.
    """
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer
    from mmengine.utils import digit_version

    if digit_version(torch.__version__) < digit_version("2.6.0"):
        return False
    # arrays and numbers of numpy, under its old and its new name
    reconstruct = np.zeros(1).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    types: list[Any] = [HistoryBuffer, ConfigDict, np.ndarray, np.dtype]
    for core in ("numpy.core", "numpy._core"):
        types += [
            (reconstruct, f"{core}.multiarray._reconstruct"),
            (scalar, f"{core}.multiarray.scalar"),
        ]
    # each dtype has a class of its own since numpy 1.20
    types += [
        type(np.dtype(kind))
        for kind in ("bool", "int32", "int64", "float16", "float32", "float64")
    ]
    types.append((_history_statistic, "builtins.getattr"))
    torch.serialization.add_safe_globals(types)
    return True


def _history_statistic(owner: object, name: str) -> Callable[..., float]:
    """What ``getattr`` may mean in a checkpoint: a statistic of HistoryBuffer."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(
            f"the checkpoint asks for attribute {name!r} of {owner!r}: refused, "
            "because a file that does so can run code. Ask its maker for the "
            "state_dict alone."
        )
    return getattr(owner, name)


# --------------------------------------------------------------- pkg_resources


def _fix_pkg_resources() -> bool:
    """Let mmengine find packages without ``pkg_resources``.

    Symptom: a config with ``_base_ = 'mmdet::...'`` ends in ``ModuleNotFoundError: No
    module named 'pkg_resources'``.
    Versions: mmengine <= 0.10.7 with setuptools >= 82, or without setuptools (a fresh
    environment of Python 3.12).
    Link: https://github.com/open-mmlab/mmcv/issues/3325
    Delete when: mmengine uses importlib.metadata.

    The extra ``mm`` pins setuptools < 82 as well, because a tool that reads the
    config before it imports this package is out of our reach.
    """
    if importlib.util.find_spec("pkg_resources") is not None:
        return False
    # each of these has imported the functions by name
    for user in ("utils.package_utils", "utils", "config.config", "hub.hub"):
        module = importlib.import_module(f"mmengine.{user}")
        for function in (is_installed, get_installed_path):
            if hasattr(module, function.__name__):
                setattr(module, function.__name__, function)
    return True


def is_installed(package: str) -> bool:
    """Whether the package can be imported (mmengine's function of that name)."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def get_installed_path(package: str) -> str:
    """The package's folder (mmengine's function of that name)."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)
    return os.path.dirname(spec.origin)


# ------------------------------------------------------------------ AMP on CPU


def _fix_amp_on_cpu() -> bool:
    """Let ``AmpOptimWrapper`` (``--amp``) train on a CPU, in bfloat16.

    Symptom: ``AssertionError: AmpOptimizerWrapper is only available training on gpu,
    npu, mlu or musa``.
    Versions: mmengine <= 0.10.7. Its ``autocast`` does serve the CPU, and torch's
    GradScaler switches itself off there: only the assertion is in the way.
    Link: https://github.com/open-mmlab/mmpretrain/issues/1556
    Delete when: AmpOptimWrapper accepts a CPU.
    """
    wrapper = importlib.import_module("mmengine.optim.optimizer.amp_optimizer_wrapper")
    accelerators = ("is_cuda", "is_npu", "is_mlu", "is_musa")
    # releases differ in which of them they ask
    checks = [getattr(wrapper, f"{name}_available", None) for name in accelerators]
    if any(check() for check in checks if check is not None):
        return False
    # only the assertion of this module asks for it
    wrapper.is_cuda_available = lambda: True  # type: ignore[attr-defined]
    return True


# --------------------------------------------------------------------- meshgrid


def _fix_meshgrid_warning() -> bool:
    """Keep a warning about torch's future out of the first answer of every run.

    Symptom: ``UserWarning: torch.meshgrid: in an upcoming release, it will be required
    to pass the indexing argument``.
    Versions: mmdet <= 3.3.0 (``MlvlPointGenerator``) with torch >= 1.10.
    Link: https://github.com/open-mmlab/mmdetection/pull/8090
    Delete when: mmdet passes ``indexing``.
    """
    warnings.filterwarnings("ignore", r"torch\.meshgrid: in an upcoming", UserWarning)
    return True
