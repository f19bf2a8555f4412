"""Killed at any moment and resumed, a training ends with the same bits."""

import itertools
import json
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
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from kdeov_mm.engine.fill_store import fill_store
from kdeov_mm.models import RandomVocabulary

from ..conftest import ROOT, make_sample, run_env

STEPS = 4
RESULTS = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")
MOMENTS: list[tuple[str, int]] = [
    *(("step", step) for step in (0, 1, 3)),
    *(("loss", step) for step in (0, 2)),
    *((how, 4) for how in ("half", "written", "renamed", "named")),
    ("half", 2),
    ("validation", 3),
]
SOME: list[tuple[str, int]] = [("step", 1), ("loss", 2), ("half", 4), ("named", 4)]


# ------------------------------------------------------------------ killed runs


@pytest.fixture(scope="module")
def config_of(
    load_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The demo on the tiny world, four steps; more of them random than usual."""
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
@pytest.mark.parametrize(
    "teacher, args, moments",
    [
        ("live", (), MOMENTS),
        ("cached", (), SOME),
        ("live", WORKERS, SOME),
        ("live", ("--amp",), SOME),
    ],
    ids=["live", "cached", "two workers", "amp"],
)
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    config_of: Callable[[str], Path],
    tmp_path: Path,
    teacher: str,
    args: tuple[str, ...],
    moments: list[tuple[str, int]],
) -> None:
    check_kills(config_of(teacher), tmp_path, moments, *args)


@pytest.mark.slow
def test_the_number_of_workers_does_not_matter(
    config_of: Callable[[str], Path], tmp_path: Path
) -> None:
    config = config_of("live")
    run(job(config, tmp_path / "a"), job(config, tmp_path / "b", *WORKERS))
    ours, theirs = end_of(tmp_path / "a"), end_of(tmp_path / "b")
    assert all(same(ours[key], theirs[key]) for key in RESULTS)


# ------------------------------------------------------------------------- loop


class Toy(BaseModel):
    """Fits a weight to what the data say, and keeps the random numbers of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
        self.drawn: list[tuple[float, ...]] = []

    def forward(self, x: list[float], mode: str) -> dict[str, torch.Tensor]:
        numbers = random.random(), float(np.random.rand()), float(torch.rand(()))
        self.drawn.append((*numbers, *x))
        return {"loss": (self.line(torch.tensor(x)[:, None]) - 1).square().mean()}


class Points:
    """What is asked for; counts how often."""

    def __init__(self, size: int = 1000) -> None:
        self.size, self.calls = size, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, float]:
        self.calls += 1
        return dict(x=index + random.random())


def toy(folder: Path, steps: int = 3, begin: int = 0, **options: Any) -> Runner:
    """A runner of a toy, its training moved to a step as by a checkpoint."""
    loader = dict(dataset=Points(), batch_size=4, num_workers=0)
    loader["sampler"] = dict(type="ResumableSampler")
    keep = options.pop("keep", 1)
    runner = Runner(
        model=Toy(),
        work_dir=str(folder),
        train_dataloader=options.pop("loader", None) or loader | options,
        train_cfg=dict(type="ResumableTrainLoop", max_iters=begin + steps),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=1e-7)),
        default_hooks=dict(
            checkpoint=dict(
                type="AtomicCheckpointHook",
                by_epoch=False,
                interval=2,
                max_keep_ckpts=keep,
            ),
            logger=None,
        ),
        randomness=dict(seed=3),
        experiment_name=f"{folder.name}-{time.time_ns()}",
        default_scope="mmdet",
    )
    load = runner.load_or_resume

    def moved() -> None:
        load()
        if begin:
            runner.train_loop._iter = begin

    runner.load_or_resume = moved
    return runner


def test_to_resume_late_calls_nothing_of_the_past_and_takes_no_longer(
    tmp_path: Path,
) -> None:
    def train(begin: int) -> float:
        runner = toy(tmp_path / str(begin), steps=3, begin=begin)
        started = time.perf_counter()
        runner.train()
        assert runner.iter == begin + 3
        assert runner.train_dataloader.dataset.calls == 3 * 4
        return time.perf_counter() - started

    train(0)
    early, late = (min(train(begin) for _ in range(3)) for begin in (10, 10**6))
    assert late < 2 * early + 0.5


def test_the_data_begin_where_they_were_and_the_numbers_are_those_of_the_step(
    tmp_path: Path,
) -> None:
    whole, rest = toy(tmp_path / "a", steps=8), toy(tmp_path / "b", steps=3, begin=5)
    whole.train()
    for _ in range(9):  # whatever else draws before
        random.random(), np.random.rand(), torch.rand(())
    rest.train()
    assert rest.model.drawn == whole.model.drawn[5:]
    assert len(set(whole.model.drawn)) == 8


def test_words_of_a_step_depend_on_seed_step_and_rank(tmp_path: Path) -> None:
    draw = RandomVocabulary(size=40, min_size=20)
    names = tuple(f"word {i}" for i in range(200))
    sample = make_sample([[1, 2, 30, 40]], [7], names)

    def words(seed: int, step: int, rank: int) -> Any:
        runner = toy(tmp_path, begin=step)
        loop = runner._train_loop = runner.build_train_loop(runner._train_loop)
        loop.seed, loop._iter, runner._rank = seed, step, rank
        runner.model.train_step = lambda *_, **__: found.append(draw([sample])[0])
        runner.call_hook = lambda *_, **__: None
        runner.optim_wrapper, found = None, []
        loop.run_iter([])
        return found[0]

    places = list(itertools.product((0, 1), (10, 11), (0, 1)))
    first = [words(*place) for place in places]
    assert len(set(first)) == len(places)
    assert [words(*place) for place in places[::-1]] == first[::-1]


@pytest.mark.parametrize(
    "change",
    [
        dict(sampler=dict(type="InfiniteSampler")),
        dict(sampler=dict(type="DefaultSampler", shuffle=True)),
        dict(batch_sampler=dict(type="AspectRatioBatchSampler")),
    ],
)
def test_other_samplers_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    runner = toy(tmp_path, **change)
    with pytest.raises(TypeError, match="sampler=dict.type='ResumableSampler'") as why:
        runner.train()
    (wanted,) = (part["type"] for part in change.values())
    assert wanted in str(why.value)


def test_a_loader_that_is_built_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="from a config"):
        toy(tmp_path, loader=DataLoader(Points())).train()


def test_what_changed_since_the_checkpoint_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    toy(tmp_path, steps=2).train()
    for batch, changed in ((4, False), (2, True)):
        runner = toy(tmp_path, steps=4, batch_size=batch, keep=-1)
        runner._resume, runner._load_from = True, str(tmp_path / "iter_2.pth")
        runner.train()
        said = "".join(capfd.readouterr())
        assert ("batch_size was 4, is 2" in said) == changed
        assert "images was" not in said
