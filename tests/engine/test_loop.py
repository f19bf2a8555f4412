"""Killed at any moment and resumed, a training ends with the same bits."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from kdeov_mm.datasets.sampler import ResumableSampler, SeededDataset, SeededIndex
from kdeov_mm.engine.fill_store import fill_store
from kdeov_mm.engine.loop import ResumableTrainLoop

from ..conftest import ROOT, run_env

STEPS = 4
RESULTS = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")
MOMENTS: list[tuple[str, int]] = [
    *(("step", step) for step in (0, 1, 3)),
    *(("loss", step) for step in (0, 2)),
    *((how, 4) for how in ("half", "written", "renamed", "named")),
    ("half", 2),
    ("validation", 3),
]


# ------------------------------------------------------------------ killed runs


@pytest.fixture(scope="module")
def config_of(
    load_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The demo on the tiny world: four steps, checkpoints, validations, random steps."""
    folder = tmp_path_factory.mktemp("config")

    def write(teacher: str) -> Path:
        path = folder / f"{teacher}.py"
        if path.exists():
            return path
        cfg = load_config("kdeov_n_shapes.py")
        cfg.train_cfg.update(max_iters=STEPS, val_interval=3)
        cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = 2
        cfg.param_scheduler[1].T_max = STEPS - 2
        cfg.default_hooks.checkpoint.update(interval=2)
        cfg.default_hooks.logger.interval = 1
        cfg.custom_hooks.append(dict(type="KillAt"))
        cfg.visualizer.vis_backends = [dict(type="LocalVisBackend")]
        cfg.val_dataloader.dataset.indices = 4
        # random places in the images, and random colours
        region = cfg.model.distill.region
        if teacher == "live":
            region.sources = ("truth", "own", "random")
            colours = dict(type="PhotoMetricDistortion")
            cfg.train_dataloader.dataset.pipeline.insert(2, colours)
        else:
            region.sources = ("truth", "blocks")
            clip = cfg.model.text_encoder.model
            store = dict(type="CachedTeacher", store=str(folder / "store"), model=clip)
            cfg.model.teacher = store
            cfg.default_hooks.cache = dict(type="EmbeddingCacheHook")
            fill_store(cfg)
        cfg.dump(path)
        return path

    return write


def job(config: Path, folder: Path, *args: str, kill: Any = None) -> tuple[Any, Any]:
    return [str(config), "--work-dir", str(folder), *args], kill


def run(*jobs: tuple[Any, Any]) -> list[int]:
    """How each of the trainings ended: 0, or minus the signal."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.killed_runs", json.dumps(jobs)],
        capture_output=True, text=True, env=run_env(OMP_NUM_THREADS="1"), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads(done.stdout.splitlines()[-1])
    assert set(ends) <= {0, -signal.SIGKILL}, done.stderr[-3000:]
    return ends


def same(ours: Any, theirs: Any) -> bool:
    """Equal to the bit, tensors included."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(
            same(ours[key], theirs[key]) for key in ours
        )
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def end_of(folder: Path) -> dict[str, Any]:
    """What the training's last checkpoint holds; it is the only one left."""
    (path,) = folder.glob("*.pth*")
    assert (folder / "last_checkpoint").read_text() == str(path)
    assert path.name == f"iter_{STEPS}.pth"
    return torch.load(path, weights_only=True)


def check_kills(config: Path, folder: Path, moments: Any, *args: str) -> None:
    """Undisturbed, and killed at each of the moments and resumed."""
    jobs = [job(config, folder / "whole", *args)]
    for what, number in moments:
        place = folder / f"{what}{number}"
        jobs.append(job(config, place, *args, kill=(what, number)))
        jobs.append(job(config, place, "--resume", *args))
    assert run(*jobs) == [0, *[-signal.SIGKILL, 0] * len(moments)]
    whole = end_of(folder / "whole")
    assert len(whole["optimizer"]["state"]) > 50
    for what, number in moments:
        resumed = end_of(folder / f"{what}{number}")
        for key in RESULTS:
            assert same(resumed[key], whole[key]), (what, number, key)


WORKERS = ("--cfg-options", "train_dataloader.num_workers=2")


def test_a_killed_training_ends_with_the_bits_of_an_undisturbed_one(
    config_of: Callable[[str], Path], tmp_path: Path
) -> None:
    check_kills(config_of("live"), tmp_path, [("half", 4)])


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["live", "cached"])
@pytest.mark.parametrize("args", [(), WORKERS, ("--amp",)], ids=["0", "2", "amp"])
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    config_of: Callable[[str], Path],
    tmp_path: Path,
    teacher: str,
    args: tuple[str, ...],
) -> None:
    check_kills(config_of(teacher), tmp_path, MOMENTS, *args)


@pytest.mark.slow
def test_the_number_of_workers_does_not_matter(
    config_of: Callable[[str], Path], tmp_path: Path
) -> None:
    config = config_of("live")
    run(job(config, tmp_path / "a"), job(config, tmp_path / "b", *WORKERS))
    ours, theirs = end_of(tmp_path / "a"), end_of(tmp_path / "b")
    assert all(same(ours[key], theirs[key]) for key in RESULTS)
