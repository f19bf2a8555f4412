"""Vectors on disk: what is read is what was written, or it is refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from kdeov_mm.clip.store import SHARD
from kdeov_mm.vectors import VectorFile, read_vectors, write_vectors

from .conftest import Program

METADATA = dict(words=["cat", "éléphant"], encoder=dict(model="shapes"), number=3)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return dict(
        vectors=F.normalize(torch.rand(2, 4), dim=1),
        half=torch.rand(2, 3).half(),
        brain=torch.rand(3).bfloat16(),
        mask=torch.tensor([True, False]),
        ends=torch.tensor([1, 2]),
        nothing=torch.zeros(0, 4),
        scalar=torch.tensor(2.5),
    )


@pytest.fixture
def file(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    path = tmp_path / "a.safetensors"
    write_vectors(path, "test", tensors, METADATA)
    return path


def test_tensors_and_metadata_come_back(file: Path, tensors: dict[str, Tensor]) -> None:
    read, metadata = read_vectors(file, "test")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    assert {key: metadata[key] for key in METADATA} == METADATA
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("kind", ["text cache", "vocabulary", SHARD])
def test_a_pickle_in_the_place_of_vectors_is_not_run(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    torch.save(dict(vectors=Program(tmp_path / "ran")), path)
    for whole in (path.read_bytes(), pickle.dumps(Program(tmp_path / "ran"))):
        path.write_bytes(whole)
        with pytest.raises(ValueError, match="is damaged, or has another format"):
            read_vectors(path, kind)
    assert not (tmp_path / "ran").exists()


def test_tuples_are_read_as_lists_and_views_as_they_look(tmp_path: Path) -> None:
    rows = torch.rand(4, 6).T[::2]  # neither contiguous nor at the beginning
    metadata = dict(scales=[(1.0, 1.5)])
    write_vectors(tmp_path / "a", "test", dict(rows=rows), metadata)
    read, metadata = read_vectors(tmp_path / "a", "test")
    assert torch.equal(read["rows"], rows) and metadata["scales"] == [[1.0, 1.5]]


def test_the_same_content_is_the_same_file(
    file: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    for _ in range(5):
        write_vectors(tmp_path / "b", "test", tensors, METADATA)
        assert (tmp_path / "b").read_bytes() == file.read_bytes()


def test_a_part_is_read_as_the_whole_is_indexed(
    file: Path, tensors: dict[str, Tensor]
) -> None:
    opened = VectorFile(file, "test")
    assert torch.equal(opened.rows("vectors", 1), tensors["vectors"][1])
    part = opened.rows("half", 0, slice(1, 3))
    assert torch.equal(part, tensors["half"][0, 1:3])


def test_another_kind_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="holds 'test', expected 'vocabulary'"):
        read_vectors(file, "vocabulary")


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_vectors(tmp_path / "gone.safetensors", "test")


@pytest.mark.parametrize("content", [b"", b"no tensors", b"PK" * 40, b"\xff" * 200])
def test_what_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="a is damaged, or has another format"):
        read_vectors(tmp_path / "a", "test")


@pytest.mark.parametrize("kind", ["test", "vocabulary"])
@pytest.mark.parametrize(
    "metadata", [None, dict(other="x"), dict(about="{"), dict(about="[]")]
)
def test_tensors_of_another_program_are_refused(
    tmp_path: Path, metadata: dict[str, str] | None, kind: str
) -> None:
    save_file({"vectors": torch.ones(1, 2)}, str(tmp_path / "a"), metadata=metadata)
    with pytest.raises(ValueError, match="has another format"):
        read_vectors(tmp_path / "a", kind)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_vectors(path, "test", dict(vectors=torch.rand(2, 3)), dict(words=["a", "b"]))
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged|holds '"):
            read_vectors(path, "test")


def test_every_cut_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged"):
            read_vectors(file, "test")


def test_a_vocabulary_of_version_0_1_0_opens_as_a_vocabulary_alone(
    tmp_path: Path,
) -> None:
    content = dict(names=["cat"], rows=["cat"])
    metadata = dict(format="kdeov_mm vocabulary 1", vocabulary=json.dumps(content))
    save_file({"vectors": torch.ones(1, 2)}, str(tmp_path / "a"), metadata=metadata)
    tensors, found = read_vectors(tmp_path / "a", "vocabulary")
    assert found == content and torch.equal(tensors["vectors"], torch.ones(1, 2))
    with pytest.raises(ValueError, match="has another format"):
        read_vectors(tmp_path / "a", "text cache")
