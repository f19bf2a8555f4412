"""Several tests in one run say what each says by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

NAME = "kdeov_n_shapes_whole.py"


def run(cfg: Config, folder: Path, name: str, **changes: Any) -> dict[str, float]:
    """Test the untrained student, and what the logger wrote."""
    cfg = cfg.copy()
    changes.update(work_dir=str(folder / name), experiment_name=name)
    for key, value in changes.items():
        cfg[key] = value
    return Runner.from_cfg(cfg).test()


def test_a_suite_says_what_its_tests_say_alone(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = load_config(NAME, clip=False)
    suite = run(cfg, tmp_path, "suite")
    alone = dict(test_cfg=dict(type="TestLoop"))
    expected = run(cfg, tmp_path, "boxes", **alone)
    for name, test in cfg.test_cfg.others.items():
        loaders = dict(test_dataloader=test.dataloader, test_evaluator=test.evaluator)
        expected |= run(cfg, tmp_path, name, **alone, **loaders)
    assert {key.split("/")[0] for key in suite} == {"ov", "retrieval", "zero_shot"}
    assert suite == pytest.approx(expected, nan_ok=True)
    # and mmengine's file has all of them
    (file,) = tmp_path.glob("suite/*/*.json")
    assert '"retrieval/t2i_R@10"' in file.read_text()


def test_metrics_that_would_have_the_same_names_are_refused(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = load_config(NAME, clip=False)
    again = dict(dataloader=cfg.test_dataloader, evaluator=cfg.test_evaluator)
    cfg.test_cfg.others["again"] = again
    with pytest.raises(ValueError, match=r"\['ov'\].*another `prefix`"):
        run(cfg, tmp_path, "twice")


def test_a_detector_without_the_head_finds_boxes_alone(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = load_config(NAME, clip=False)
    cfg.model.global_head = None
    with pytest.raises(ValueError, match="need a model with a `global_head`"):
        run(cfg, tmp_path, "none")
