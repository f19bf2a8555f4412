"""The table: run once, written from results, the same as in the pages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from pages import shown

from ..conftest import ROOT, load_tool


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_tool("run_ablations")


def test_every_leaf_has_its_row(tool: Any) -> None:
    leaves = {path.stem for path in (ROOT / "configs/kdeov/ablations").glob("*.py")}
    assert leaves == set(tool.ROWS) and len(tool.ROWS) == len(leaves)
    hard = {f"hard/{p.stem}" for p in (ROOT / "configs/kdeov/hard").glob("*.py")}
    assert {*tool.HARD} == hard | {"kdeov_n_shapes_hard"}
    two_stages = {path.stem for path in (ROOT / "configs/vild").glob("*_shapes.py")}
    assert two_stages == set(tool.TWO_STAGES)
    assert set(tool.SHORT) <= leaves | two_stages | {*tool.HARD}


def test_the_pages_show_the_results(tool: Any) -> None:
    results = tool.read_results(tool.RESULTS)
    for (page, marks), table in tool.tables(results).items():
        assert shown(ROOT / page, marks) == table, (
            f"{page} is behind the results: "
            "python tools/studies/run_ablations.py --tables"
        )


def test_results_say_where_they_come_from(tool: Any) -> None:
    results = json.loads(tool.RESULTS.read_text())
    for run in results["runs"]:
        assert len(run["commit"]) == 40, run["config"]  # no uncommitted changes
        assert len(run["config_sha256"]) == 64 and run["versions"]["torch"]
        assert run["iterations"] >= 400 and run["hardware"]
    keys = [(run["config"], run["seed"]) for run in results["runs"]]
    assert len(set(keys)) == len(keys)


def test_a_cell_is_the_mean_and_half_the_range(tool: Any) -> None:
    runs = [dict(figures=dict(a=a, b=0.5)) for a in (0.1, 0.2, 0.6)]
    assert tool.spread(runs, "a", "b") == "0.300 ± 0.250 / 0.500 ± 0.000"
    assert tool.spread(runs[:1], "a") == "0.100"
    assert tool.spread([], "a", "b") == "not measured"


def test_a_run_is_known_by_what_its_config_says(tool: Any, tmp_path: Path) -> None:
    def digest(text: str) -> str:
        path = tmp_path / "config.py"
        path.write_text(text)
        return tool.config_hash(path)

    first = digest('"""One."""\na = dict(b=1)\n')
    assert digest('"""Two."""\na = dict(b=1)\n') == first
    assert digest("a = dict(b=1)\ndoctor = dict(accept=[])\n") == first
    assert digest("a = dict(b=2)\n") != first
    # the weights it begins with, whatever their name
    weights = tmp_path / "start.pth"
    begun = f"model = dict(backbone=dict(init_cfg=dict(checkpoint={str(weights)!r})))"
    weights.write_bytes(b"1")
    first = digest(begun)
    weights.write_bytes(b"22")
    assert digest(begun) != first


@pytest.fixture(scope="module")
def tiny(
    load_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    cfg = load_config("ablations/default.py")
    path = tmp_path_factory.mktemp("rows") / "tiny.py"
    cfg.dump(path)
    return path


@pytest.mark.slow
def test_quick_runs_a_row_once_and_goes_on_where_it_was_stopped(
    tool: Any, tiny: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    arguments = [str(tiny), "--quick", "--seeds", "3", "--work-dir", str(tmp_path)]
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # set back after the test
    tool.main([*arguments, "--jobs", "2"])
    path = tmp_path / "quick/results.json"
    (run,) = json.loads(path.read_text())["runs"]
    assert run["seed"] == 3 and run["iterations"] == 2
    assert 0 <= run["figures"]["novel_AP50"] <= 1
    assert "tiny.py, seed 3" in capsys.readouterr().out
    called: list[tuple] = []
    call = tool.call
    monkeypatch.setattr(tool, "call", lambda *a: (called.append(a), call(*a)))
    tool.main(arguments)
    assert not called  # the results have it
    path.unlink()
    tool.main(arguments)  # killed before its results were written
    assert called[0][0] == "tools/train.py" and "--resume" in called[0]
    assert json.loads(path.read_text())["runs"][0]["train_seconds"] is None


def test_a_row_that_fails_stops_with_its_message(tool: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="tools/train.py .*\nfailed with exit code"):
        tool.call("tools/train.py", tmp_path / "no_such.py")


def test_times_are_ratios_of_functions_in_turn(tool: Any) -> None:
    order: list[str] = []
    ratios = tool.in_turn(
        lambda: order.append("first"), lambda: order.append("second"), 4
    )
    assert order == ["first", "second"] * 7 and len(ratios) == 4
    assert all(ratio > 0 for ratio in ratios)


def test_a_row_is_timed_beside_a_plain_yolov8n(tool: Any, tiny: Path) -> None:
    times = tool.compare_with_plain(Config.fromfile(tiny), rounds=2)
    assert times["step"] > 0 and times["inference"] > 0
    assert times["parameters_plain"] > 3e6  # YOLOv8n: 3.2 million for COCO
    assert abs(times["parameters"] - times["parameters_plain"]) < 0.2e6
