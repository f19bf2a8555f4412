"""The study of training times runs, small, on a CPU."""

import json
from pathlib import Path

import pytest

import time_training


@pytest.mark.slow
def test_a_plain_step_and_the_loading_are_timed(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ["--size", "64", "--batches", "2", "--steps", "1", "--images", "32"]
    time_training.main([*options, "--kinds", "plain", "--out", str(out)])
    report = json.loads(out.read_text())
    (step,) = report["steps"]
    assert (step["kind"], step["batch"], step["amp"]) == ("plain", 2, False)
    assert step["ms"] > 0 and step["operators"] > 1000 and step["stops"] > 0
    assert report["loading"]["images_per_s"] > 0
