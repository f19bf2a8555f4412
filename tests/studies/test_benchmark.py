"""The benchmark times what it says, and writes the table that it measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmark_models as models
import pages
from kdeov_mm.models import FoldedDetector

from ..conftest import load_tool


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_tool("benchmark")


def test_every_entry_runs(tool: Any, tmp_path: Path) -> None:
    """All but the ONNX files, whose export tests/test_export.py tries."""
    given = ["--sizes", "n", "--words", "3", "6000", "--side", "64", "--no-memory"]
    args = tool.parse(given)
    listed = [e for e in tool.entries(args, tmp_path) if "ONNX" not in e.name]
    names = {(entry.name, entry.words) for entry in listed}
    assert {(tool.MMYOLO, 80), (tool.FOLDED, 3), (tool.FOLDED, 6000)} <= names
    assert (models.WORLD, 3) in names and (models.WORLD, 6000) not in names
    for entry in listed:
        network, whole = entry.make()
        assert network() >= 0 and whole() >= 0


def test_closed_set_and_folded_have_the_same_layers_but_for_the_length(
    tool: Any,
) -> None:
    args = tool.parse(["--sizes", "n", "--words", "80"])
    closed = models.closed(args, "n", True)
    model = models.ours(args, "n")
    folded = model.fold(models.random_vocabulary(model, 80))
    assert isinstance(folded, FoldedDetector)
    shapes = [
        [tuple(p.shape) for part in (m.backbone, m.neck) for p in part.parameters()]
        for m in (closed, folded)
    ]
    assert shapes[0] == shapes[1]
    plain, ours = (
        {k: tuple(v.shape) for k, v in m.bbox_head.head_module.state_dict().items()}
        for m in (closed, folded)
    )
    # one small convolution before the words, which take its 16 channels of ones, too
    for i in range(3):
        branch = f"cls_preds.{i}"
        assert ours.pop(f"{branch}.2.factor.weight") == (80, 80, 1, 1)
        assert ours.pop(f"{branch}.2.factor.bias") == (80,)
        assert ours.pop(f"{branch}.2.rest") == ()
        assert ours.pop(f"{branch}.3.weight") == (80, 96, 1, 1)
        assert plain.pop(f"{branch}.2.weight") == (80, 80, 1, 1)
        assert ours.pop(f"{branch}.3.bias") == plain.pop(f"{branch}.2.bias")
    assert ours == plain


@pytest.mark.slow
def test_the_closed_set_model_is_timed_as_onnx_too(tool: Any, tmp_path: Path) -> None:
    args = tool.parse(["--sizes", "n", "--words", "80"])
    models.write_onnx(tmp_path, "closed", models.closed(args, "n", True))
    assert {f.name for f in tmp_path.iterdir()} == {"closed.onnx", "closed_nms.onnx"}


def test_the_filter_is_held_against_the_exact_result(tool: Any) -> None:
    args = tool.parse(["--words", "200", "--side", "64", "--scenes", "2"])
    whole = tool.share_kept(args, locations=84)  # all of them
    assert whole["scores"] == 1.0
    assert tool.share_kept(args, locations=1)["scores"] < 0.9


def test_the_table_is_made_of_the_figures(tool: Any, tmp_path: Path) -> None:
    def row(name: str, size: str, words: int, middle: float) -> dict[str, Any]:
        kinds = [middle - 1, middle, middle + 1]
        return dict(name=name, size=size, words=words, network=kinds, whole=kinds)

    speed = [
        row(tool.MMYOLO, "n", 80, 50.0),
        row(tool.FOLDED, "n", 80, 49.0),
        row(tool.FOLDED, "n", 1203, 60.0),
        row(tool.MMYOLO, "s", 80, 100.0),
    ]
    speed[1]["memory"] = 123
    report = dict(speed=speed, size=640)
    lines = tool.table(report).splitlines()
    assert lines[3] == "| **ours, folded** | 80 | 49 (48 to 50) | 0.98 |  |  | 123 |"
    assert "| 60 (59 to 61) | 1.20 |" in lines[4]
    page = tmp_path / "page.md"
    begin, end = pages.marks("benchmark")
    page.write_text(f"before\n{begin}old\n{end}\nafter\n")
    pages.show(page, "benchmark", "".join(f"{line}\n" for line in lines))
    assert page.read_text().splitlines()[2:-2] == lines
    page.write_text("without marks")
    with pytest.raises(ValueError, match="begin benchmark"):
        pages.show(page, "benchmark", "")
    tool.plot(report, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_readme_shows_the_figures_in_docs(tool: Any) -> None:
    report = json.loads(tool.JSON.read_text())
    page = tool.README.read_text()
    assert pages.shown(tool.README, "benchmark") == tool.table(report)
    for key in ("new_words_s", "image_with_text_tower_s"):
        assert f"{report['vocabulary'][key]:.1f} s" in page
    assert f"{report['training']['images_per_s']:.0f} images/s" in page
    assert report["machine"] and "tools/studies/benchmark.py" in report["command"]


def test_the_picture_holds_scenes(tool: Any) -> None:
    picture = tool.picture(96)
    assert picture.shape == (96, 96, 3) and picture.dtype == np.uint8
    assert picture.std() > 20


def test_half_precision_is_for_a_gpu(tool: Any) -> None:
    """A detector in half precision takes the same calls."""
    with pytest.raises(SystemExit):
        tool.parse(["--half"])
    args = tool.parse(["--half", "--device", "cuda", "--side", "64"])
    assert " --half" in tool.command(args)
    args.device = "cpu"
    model, image = models.ours(args, "n"), models.picture(64)
    calls = models.folded_calls(args, model, models.random_vocabulary(model, 3), image)
    assert [call() for call in calls] == [0, 0]
