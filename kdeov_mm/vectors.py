"""Unit vectors on disk, with the CLIP that made them: the one file format.

The text cache, saved vocabularies and the teacher's store are files of this format:
safetensors, whose only metadata entry is JSON. It says the kind of the file, what made
the vectors, and a checksum of all of it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import write_whole

_OLD_VOCABULARY = "vocabulary"  # the metadata entry of vocabularies of version 0.1.0


class VectorFile:
    """An open file of vectors; tensors are read from disk when they are asked for.

    Args:
        path: of the file.
        kind: what it must hold, e.g. ``'vocabulary'``.

    Attributes:
        metadata: what :func:`write_vectors` was given, and ``sha256``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another kind.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path = Path(path)
        try:
            self.file = safe_open(str(path), framework="pt")
            entries = self.file.metadata() or {}
            old = kind == _OLD_VOCABULARY and "about" not in entries
            self.metadata = json.loads(entries[_OLD_VOCABULARY if old else "about"])
            found = kind if old else self.metadata["kind"]
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged, or has another format ({error})"
            ) from error
        if found != kind:
            raise ValueError(f"{path} holds {found!r}, expected {kind!r}")

    def rows(self, name: str, *index: Any) -> Tensor:
        """A part of a tensor, e.g. ``rows('crops', 0, slice(3, 7))``."""
        return self.file.get_slice(name)[index]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, read and compared with the checksum.

        Raises:
            ValueError: the content is not what was written.
        """
        try:
            names = self.file.keys()
            tensors = {name: self.file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path} is damaged ({error})") from error
        # vocabularies of version 0.1.0 have neither kind nor checksum
        written = self.metadata.get("sha256")
        if "kind" in self.metadata and written != _digest(tensors, self.metadata):
            raise ValueError(f"{self.path} is damaged: its checksum differs")
        return tensors


@contextmanager
def untraced() -> Iterator[None]:
    """What is read from a file is no step of a graph that torch.jit traces.

    safetensors makes its tensors by views as other types, which the tracer cannot
    write down; mmdet's ``get_flops`` traces a whole detector.
    """
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def write_vectors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and what JSON can hold of them, atomically.

    Args:
        path: of the file.
        kind: what it holds, e.g. ``'vocabulary'``.
        tensors: of any shapes.
        metadata: what made the vectors, what its rows are.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    about = json.loads(json.dumps(dict(metadata, kind=kind)))
    about["sha256"] = _digest(tensors, about)
    # one entry: safetensors writes several in an order that changes
    write_whole(path, save(tensors, metadata={"about": json.dumps(about)}))


def read_vectors(
    path: str | Path, kind: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and the metadata of a file of :func:`write_vectors`.

    Raises:
        FileNotFoundError, ValueError: as of :class:`VectorFile`.
    """
    file = VectorFile(path, kind)
    return file.tensors(), file.metadata


def check_units(vectors: Any, number: int, where: str | Path) -> None:
    """Refuse what are no vectors (number, D) of length 1.

    Raises:
        ValueError: another shape, no floats, no finite numbers, or another length.
    """
    good = isinstance(vectors, Tensor) and vectors.ndim == 2
    good = good and len(vectors) == number and vectors.is_floating_point()
    # float16 rounds, and NaN is not close either
    if not good or not ((vectors.float().norm(dim=1) - 1).abs() < 0.01).all():
        raise ValueError(
            f"{where}: expected {number} vectors of length 1, of finite numbers"
        )


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    content = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(map(int, tensor.shape))}".encode())
        # numpy has no bfloat16; what torch.jit traces must not be seen as other types
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.view(torch.int16)
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
