"""Checks of what comes from outside, and how tools end."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from kdeov_mm.border import path_of, sentences

from .conftest import ROOT


@pytest.mark.parametrize("value", ["", " ", "a\0b", "x" * 5000, "\ud800", 3, None])
def test_what_names_no_file_is_no_path(value: object) -> None:
    with pytest.raises(ValueError, match="it: expected a path, got "):
        path_of("it", value)


@pytest.mark.parametrize("value", ["a", "a b", "\udc80", Path("a"), "x" * 4096])
def test_what_may_name_a_file_is_a_path(value: str | Path) -> None:
    assert path_of("it", value) == Path(value)


def test_an_error_of_ours_or_of_a_file_ends_a_tool_with_its_words(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(SystemExit, match=r"^a\.py: it: expected a path, got ''$"),
        sentences("a.py", tmp_path),
    ):
        path_of("it", "")
    with pytest.raises(SystemExit, match=r"^a\.py: .*gone'$"), sentences("a.py"):
        (tmp_path / "gone").read_bytes()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("named", [True, False])
def test_an_error_that_was_not_foreseen_is_named_and_its_traceback_is_kept(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    # another package's
    @sentences("a.py", tmp_path if named else None)
    def main() -> None:
        torch.from_numpy(np.zeros(3)).reshape(2)

    with pytest.raises(SystemExit, match=r"^a\.py: RuntimeError: shape '.2.'") as ended:
        main()
    (file,) = tmp_path.iterdir()
    assert str(ended.value).endswith(f"its traceback is in {file}")
    assert "reshape(2)" in file.read_text()


def test_every_tool_ends_so() -> None:
    """But the one that does without this package."""
    for path in (ROOT / "tools").glob("*.py"):
        if path.stem not in ("prepare_splits", "demo"):
            assert f'sentences("{path.name}"' in path.read_text(), path
