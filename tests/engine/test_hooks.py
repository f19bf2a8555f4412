"""Checkpoints: at every moment there is one to resume from."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from .test_loop import toy


def state(folder: Path) -> tuple[list[str], str | None]:
    """Checkpoints that can be read, and which of them `last_checkpoint` names."""
    whole = []
    for path in sorted(folder.glob("*.pth")):
        torch.load(path, weights_only=True)
        whole.append(path.stem)
    pointer = folder / "last_checkpoint"
    return whole, Path(pointer.read_text()).stem if pointer.exists() else None


@pytest.mark.parametrize("keep", [1, 2, -1])
def test_an_old_checkpoint_goes_when_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    states: list[Any] = []
    remove = os.remove

    def watched(path: str) -> None:
        states.append(state(tmp_path))
        remove(path)

    monkeypatch.setattr("os.remove", watched)
    toy(tmp_path, steps=6, keep=keep).train()
    names = ["iter_2", "iter_4", "iter_6"]
    if keep == 1:
        assert states == [(names[:2], "iter_4"), (names[1:], "iter_6")]
    else:
        assert states == ([(names, "iter_6")] if keep == 2 else [])
    assert state(tmp_path) == (names[-keep:] if keep > 0 else names, "iter_6")


def test_a_full_disk_leaves_the_checkpoint_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy(tmp_path, steps=2).train()

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        toy(tmp_path, steps=4).train()
    assert state(tmp_path) == (["iter_2"], "iter_2")


def test_what_a_killed_training_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "iter_2.pth.17-4.tmp"
    left.write_bytes(b"half")
    toy(tmp_path, steps=2).train()
    assert not left.exists() and state(tmp_path) == (["iter_2"], "iter_2")


def test_a_checkpoint_names_no_files_of_others_for_removal(tmp_path: Path) -> None:
    """mmengine removes the last best checkpoint, file or folder, for a better one."""
    mine, theirs = tmp_path / "run/best_a_iter_1.pth", tmp_path / "precious/best_a.pth"
    for path, kept in ((mine, True), (theirs, False), (tmp_path / "run", False)):
        runner = toy(tmp_path / "run", steps=2)
        info = runner.message_hub.runtime_info
        info.update(best_ckpt=str(path), keep_ckpt_ids=[1, "x/../../precious", {}])
        runner.train()
        assert ("best_ckpt" in info) == kept
        assert info["keep_ckpt_ids"] == [1, 2]
