"""The tiny CLIP that ships with the package."""

import hashlib
import re

import open_clip
import pytest

from kdeov_mm.clip import TEACHERS, CLIPSource

from .conftest import load_tool

WEIGHTS = TEACHERS["shapes"] / "open_clip_model.safetensors"


def test_weights_are_small_and_the_recorded_ones():
    record = (TEACHERS["shapes"] / "RECORD.md").read_text()
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert WEIGHTS.stat().st_size <= 8e6
    assert re.search(r"`([0-9a-f]{64})`", record).group(1) == digest
    assert CLIPSource("shapes").weights_hash() == digest


def test_open_clip_loads_it_by_itself():
    model = open_clip.create_model(
        f"local-dir:{TEACHERS['shapes']}", require_pretrained=True
    )
    assert isinstance(model, open_clip.CLIP)


def test_it_names_unseen_crops(tmp_path, monkeypatch):
    monkeypatch.setenv("KDEOV_CACHE", str(tmp_path))
    tool = load_tool("train_teacher")
    report = tool.evaluate(TEACHERS["shapes"], seed=91, count=250)
    assert report["objects"] > 800
    assert report["top1"] >= 0.93  # 0.95 on many crops; these are few
    assert report["cosine_own"] > report["cosine_runner_up"] + 0.05


def test_an_unknown_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no open_clip weights"):
        CLIPSource(f"local-dir:{tmp_path}").weights_file()
