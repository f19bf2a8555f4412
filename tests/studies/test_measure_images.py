"""The table of the global path, and the tool that makes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from kdeov_mm.clip import CLIPImageTeacher
from kdeov_mm.datasets import shapes
from kdeov_mm.evaluation.image_text import retrieval_ranks

from ..conftest import ROOT, load_tool


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))  # as when it is run
    return load_tool("measure_images")


def test_the_page_shows_the_results(tool: Any) -> None:
    table = tool.markdown(json.loads(tool.RESULTS.read_text()))
    assert f"<!-- begin results -->\n{table}<!-- end" in tool.PAGE.read_text()


def test_the_teacher_names_objects_that_are_cut_out(tool: Any, world: Path) -> None:
    data = tool.Scenes(world, 8)
    teacher = CLIPImageTeacher("shapes")
    told = data.zero_shot(teacher.embed_crops(data.pixels, data.boxes))
    assert told["all_top1"] > 0.95
    assert told["objects"] == len(data.crops) == sum(map(len, data.boxes))
    for crop, box in zip(data.crops, torch.cat(data.boxes)):
        assert crop.shape[:2] == (box[3] - box[1], box[2] - box[0])
    wrong = data.text[(data.labels + 1) % len(shapes.CLASSES)]
    assert data.zero_shot(wrong)["all_top1"] == 0
    right = data.zero_shot(data.text[data.labels])
    assert {right[f"{group}_top1"] for group in ("all", *tool.GROUPS)} == {1.0}


def test_a_checkpoint_is_measured_beside_the_teacher(
    tool: Any, world: Path, tmp_path: Path, load_config: Callable[..., Config]
) -> None:
    cfg = load_config("kdeov_n_shapes_joint.py", clip=False)
    model = MODELS.build(cfg.model)
    model.init_weights()
    file = tmp_path / "student/iter_1.pth"
    file.parent.mkdir()
    meta = dict(cfg=cfg.pretty_text)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), file)
    results = tmp_path / "results.json"
    options = ["--scenes", "8", "--world", str(world), "--rounds", "1"]
    assert tool.main([str(file), *options, "--results", str(results)]) == 0
    rows = json.loads(results.read_text())
    assert [*rows] == [tool.TEACHER, tool.PARTS, "student"]
    assert all(row["images"] == 8 and row["captions"] == 24 for row in rows.values())
    assert rows["student"]["faster_64px_batch1"] > 0
    assert rows["student"]["all_top1"] < rows[tool.TEACHER]["all_top1"]
    assert "| `student` |" in tool.markdown(rows)


def test_the_timing_of_retrieval_finds_no_difference(
    capsys: pytest.CaptureFixture,
) -> None:
    options = ["--images", "300", "--captions", "900", "--dims", "16", "--sample", "20"]
    load_tool("time_retrieval").main(options)
    assert "0 of 40 ranks differ" in capsys.readouterr().out


def test_a_wrong_rank_would_be_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    timing = load_tool("time_retrieval")

    def off_by_one(*args: Any) -> Any:
        return [ranks + 1 for ranks in retrieval_ranks(*args)]

    monkeypatch.setattr(timing, "retrieval_ranks", off_by_one)
    timing.main(["--images", "30", "--captions", "60", "--dims", "8", "--sample", "5"])
    assert "10 of 10 ranks differ" in capsys.readouterr().out
