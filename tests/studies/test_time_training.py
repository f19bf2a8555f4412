"""The study of training times runs, small, on a CPU."""

import json
from pathlib import Path

import pytest

import time_training


@pytest.mark.slow
def test_a_plain_step_and_the_loading_are_timed(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ["--size", "64", "--batches", "2", "--steps", "1", "--images", "32"]
    kinds = ["plain", "demo, cached teacher"]
    time_training.main([*options, "--kinds", *kinds, "--out", str(out)])
    report = json.loads(out.read_text())
    found = [(step["kind"], step["batch"], step["amp"]) for step in report["steps"]]
    assert found == [("plain", 2, False), ("demo, cached teacher", 16, False)]
    for step in report["steps"]:
        assert step["ms"] > 0 and step["operators"] > 1000 and step["stops"] > 0
    assert report["loading"]["images_per_s"] > 0
