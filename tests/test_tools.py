"""mm's command line: train, resume, test, on one process and on two."""

import importlib.util
import json
import math
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner

from kdeov_mm import KDEOV
from kdeov_mm.files import locked
from kdeov_mm.models import KDEOVDetector

from .conftest import ROOT, Program, run_env

STATES: list[dict[str, Any]] = []


@HOOKS.register_module()
class RecordStart(Hook):
    """Keep where a training begins."""

    priority = "LOWEST"

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        if not STATES:
            model, optimizer = runner.model.state_dict(), runner.optim_wrapper
            state = dict(iter=runner.iter, model=model, optim=optimizer.state_dict())
            STATES.append(pickle.loads(pickle.dumps(state)))


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Each test records its own start, and leaves the environment as it was."""
    STATES.clear()
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train, test = tool("train"), tool("test")


@pytest.fixture(scope="module")
def config(
    load_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The demo on the tiny world: two iterations, a checkpoint after each."""
    cfg = load_config("kdeov_n_shapes.py")
    cfg.train_cfg.max_iters = 2
    cfg.param_scheduler = [dict(type="ConstantLR", by_epoch=False, factor=1.0)]
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=-1)
    cfg.default_hooks.logger.interval = 1
    cfg.custom_hooks.append(dict(type="RecordStart"))
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    cfg.dump(path)
    return path


def train_in(folder: Path, config: Path, *args: str, **options: object) -> None:
    """tools/train.py into a folder, with a visualizer of its own."""
    options = {"visualizer.name": folder.name, **options}
    given = ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]
    train.main([str(config), "--work-dir", str(folder), *args, *given])


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of a finished training."""
    folder = tmp_path_factory.mktemp("work")
    train_in(folder, config)
    return folder


# ------------------------------------------------------------------------ train


def test_training_leaves_checkpoints_a_log_and_tensorboard(trained: Path) -> None:
    last = Path((trained / "last_checkpoint").read_text().strip())
    assert last == trained / "iter_2.pth" and last.is_file()
    assert (trained / "tiny.py").is_file()
    (events,) = trained.rglob("events.out.tfevents*")
    assert events.stat().st_size > 0
    (scalars,) = trained.rglob("vis_data/scalars.json")
    steps = [json.loads(line) for line in scalars.read_text().splitlines()]
    assert [s["iter"] for s in steps if "loss" in s] == [1, 2]


def test_a_checkpoint_is_data_and_holds_the_moving_average(trained: Path) -> None:
    checkpoint = torch.load(trained / "iter_2.pth", weights_only=True)
    assert {"state_dict", "ema_state_dict", "optimizer"} <= set(checkpoint)
    assert checkpoint["meta"]["iter"] == 2
    kept = checkpoint["state_dict"]
    assert not any("teacher" in key or "text_encoder" in key for key in kept)
    averaged = {
        key.removeprefix("module."): value
        for key, value in checkpoint["ema_state_dict"].items()
        if key.startswith("module.")
    }
    assert set(averaged) == set(kept)
    assert any((averaged[key] != kept[key]).any() for key in kept)


def test_resume_goes_on_where_the_training_stopped(
    config: Path, trained: Path, tmp_path: Path
) -> None:
    checkpoint = torch.load(trained / "iter_1.pth", weights_only=True)
    train_in(tmp_path, config, "--resume", str(trained / "iter_1.pth"))
    (start,) = STATES
    assert start["iter"] == 1
    average = checkpoint["ema_state_dict"]  # mmengine saves the two swapped
    for key, value in start["model"].items():
        assert torch.equal(value, average[f"module.{key}"]), key
    for index, state in checkpoint["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(start["optim"]["state"][index][key], value)
    end = torch.load(tmp_path / "iter_2.pth", weights_only=True)
    assert end["meta"]["iter"] == 2
    assert not (tmp_path / "iter_1.pth").exists()


def test_resume_alone_takes_the_latest_checkpoint(
    config: Path, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "iter_1.pth"
    path.write_bytes((trained / "iter_1.pth").read_bytes())
    (tmp_path / "last_checkpoint").write_text(str(path))
    train_in(tmp_path, config, "--resume")
    assert STATES[0]["iter"] == 1
    assert (tmp_path / "iter_2.pth").is_file()


@pytest.mark.parametrize("harm", ["missing", "cut"])
@pytest.mark.parametrize("named", [True, False])
def test_resume_from_a_checkpoint_that_is_not_whole_says_so(
    config: Path, trained: Path, tmp_path: Path, harm: str, named: bool
) -> None:
    path = tmp_path / "iter_1.pth"
    if harm == "cut":
        content = (trained / "iter_1.pth").read_bytes()
        path.write_bytes(content[: len(content) // 2])
    (tmp_path / "last_checkpoint").write_text(str(path))
    arguments = ["--resume", str(path)] if named else ["--resume"]
    with pytest.raises(SystemExit, match="--resume CKPT") as why:
        train_in(tmp_path, config, *arguments)
    assert str(path) in str(why.value)
    what = "does not exist" if harm == "missing" else "damaged"
    assert what in str(why.value) and ("last_checkpoint" in str(why.value)) != named


def test_resume_takes_the_newest_whole_checkpoint_and_says_so(
    config: Path, trained: Path, tmp_path: Path, capsys: Any
) -> None:
    for name in ("iter_1.pth", "iter_2.pth"):
        shutil.copy(trained / name, tmp_path)
    torn = tmp_path / "iter_2.pth"
    torn.write_bytes(torn.read_bytes()[:1000])
    (tmp_path / "last_checkpoint").write_text(str(torn))
    train_in(tmp_path, config, "--resume")
    assert STATES[0]["iter"] == 1
    said = capsys.readouterr().err
    assert "iter_2.pth is no checkpoint, or damaged" in said
    assert f"It goes on from {tmp_path / 'iter_1.pth'}." in said


def test_weights_alone_are_no_checkpoint_to_resume(
    config: Path, trained: Path, tmp_path: Path
) -> None:
    state = torch.load(trained / "iter_2.pth", weights_only=True)["state_dict"]
    torch.save(dict(state_dict=state), tmp_path / "w.pth")
    with pytest.raises(SystemExit, match=r"no \['meta'\].*load_from"):
        train_in(tmp_path, config, "--resume", str(tmp_path / "w.pth"))


def changed(path: Path, changes: dict[str, Any], place: Path) -> Path:
    """A checkpoint with other parts, ``optimizer.param_groups.0.lr`` -> value."""
    content: Any = torch.load(path, weights_only=True)
    for key, value in changes.items():
        *names, last = [int(n) if n.isdecimal() else n for n in key.split(".")]
        part = content
        for name in names:
            part = part[name]
        part[last] = value
    torch.save(content, place)
    return place


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("optimizer", None, "NoneType"),
        ("optimizer.param_groups.0.lr", "x", "its optimizer has lr='x', expected"),
        ("optimizer.param_groups.0.betas", 3, r"betas=3, expected one like .0"),
        ("optimizer.state.0.exp_avg", torch.ones(3), "the state of other weights"),
        ("message_hub", [1], "'list' object"),
        ("meta.iter", "x", r"meta\['iter'\] is at least 0, a whole number, got 'x'"),
        ("ema_state_dict", [3], r"expected weights in ema_state_dict, got \[3\]"),
    ],
)
def test_resume_from_odd_parts_says_so(
    part: str, value: Any, reason: str, config: Path, trained: Path, tmp_path: Path
) -> None:
    path = changed(trained / "iter_1.pth", {part: value}, tmp_path / "odd.pth")
    with pytest.raises(SystemExit, match=rf"odd\.pth.*{reason}"):
        train_in(tmp_path, config, "--resume", str(path))
    assert not list(tmp_path.glob("*.txt"))  # foreseen: no traceback


def test_resume_goes_on_without_what_only_describes(
    config: Path, trained: Path, tmp_path: Path
) -> None:
    loop: dict[str, Any] = {}
    loop["x"] = loop
    info = "message_hub.runtime_info"
    odd = {"meta.cfg": loop, "meta.experiment_name": "x" * 10**7}
    odd |= {f"{info}.data_sequence": 3, f"{info}.keep_ckpt_ids": 3}
    path = changed(trained / "iter_1.pth", odd, tmp_path / "odd.pth")
    train_in(tmp_path, config, "--resume", str(path))
    assert (tmp_path / "iter_2.pth").is_file()


def test_what_was_not_foreseen_ends_with_a_sentence_and_its_traceback_is_kept(
    config: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="(?s)train.py: ValueError.*foreseen") as ended:
        train_in(tmp_path, config, **{"train_cfg.max_iters": "x"})
    (kept,) = tmp_path.glob("train.py-*.txt")
    assert str(kept) in str(ended.value) and "loop.py" in kept.read_text()


def test_resume_without_a_checkpoint_begins_as_the_config_says(
    config: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = trained / "iter_2.pth"
    train_in(tmp_path, config, "--resume", load_from=weights)
    assert "begins anew" in capsys.readouterr().out
    (start,) = STATES
    assert start["iter"] == 0
    loaded = torch.load(weights, weights_only=True)["state_dict"]
    for key, value in loaded.items():
        assert torch.equal(start["model"][key], value), key


def test_a_loss_that_is_no_number_ends_the_training(
    config: Path, tmp_path: Path
) -> None:
    options = {"optim_wrapper.optimizer.lr": 1e30, "train_cfg.max_iters": 6}
    with pytest.raises(SystemExit) as ended:
        train_in(tmp_path, config, **options)
    said = re.search(r"step (\d): .*'loss': (nan|inf).* of images \[", str(ended.value))
    assert said and "tools/doctor.py" in str(ended.value)
    # nothing is saved of the step that went wrong
    (step, _), last = said.groups(), (tmp_path / "last_checkpoint").read_text()
    assert last.endswith(f"iter_{int(step) - 1}.pth") and last in str(ended.value)


def test_weights_that_are_no_numbers_are_not_saved(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a finite loss a gradient may be NaN; the step itself would be saved."""
    step = KDEOVDetector.train_step

    def spoil(model: Any, *args: Any, **kwargs: Any) -> Any:
        losses = step(model, *args, **kwargs)
        if (tmp_path / "last_checkpoint").exists():
            next(model.backbone.parameters()).data[0] = math.nan
        return losses

    monkeypatch.setattr(KDEOVDetector, "train_step", spoil)
    with pytest.raises(SystemExit, match="after step 2 weights are no finite.*iter_1"):
        train_in(tmp_path, config)
    assert (tmp_path / "last_checkpoint").read_text().endswith("iter_1.pth")
    assert [p.name for p in tmp_path.glob("*.pth")] == ["iter_1.pth"]


@pytest.mark.parametrize("name", ["RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"])
def test_the_first_process_of_any_launcher_is_known(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train.rank() == 0
    monkeypatch.setenv(name, "3")
    assert train.rank() == 3


def test_fewer_iterations_than_the_schedule_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = Config.fromfile(ROOT / "configs/kdeov/kdeov_n_shapes.py", lazy_import=False)
    check = tool("train").check_schedule
    check(cfg)
    assert capsys.readouterr().err == ""
    cfg.merge_from_dict({"train_cfg.max_iters": 1})
    check(cfg)
    assert "max_iters is 1" in (said := capsys.readouterr().err)
    assert "for 1600 iterations" in said
    # one iteration of the warm-up, and no error of the cosine that never comes
    for kwargs in cfg.param_scheduler:
        PARAM_SCHEDULERS.build(
            kwargs | dict(optimizer=torch.optim.SGD([torch.zeros(1)], 0.1))
        )


def test_two_trainings_do_not_share_a_folder(config: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(SystemExit, match="another training writes"):
        train_in(tmp_path, config)
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [("nan", "no finite numbers, in 1 of"), ("gone", "is of another model: 1 of the")]
    + [("shape", "1 have other shapes, e.g. .'backbone")],
)
def test_weights_that_do_not_fit_are_refused(
    harm: str, reason: str, config: Path, trained: Path, tmp_path: Path
) -> None:
    content = torch.load(trained / "iter_2.pth", weights_only=True)
    state = content["state_dict"]
    key = next(key for key in state if key.startswith("backbone"))
    if harm == "nan":
        state[key][0] = math.nan
    elif harm == "gone":
        del state[key]
    else:
        state[key] = state[key][:1]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(SystemExit, match=rf"test.py: .*a\.pth .*{reason}"):
        test.main([str(config), str(tmp_path / "a.pth"), "--work-dir", str(tmp_path)])
    with pytest.raises(ValueError, match=reason):
        KDEOV.from_config(config, tmp_path / "a.pth")


# -------------------------------------------------------- files from strangers

DOORS = ["test", "load_from", "resume", "proposals"]


def enter(door: str, config: Path, checkpoint: Path, folder: Path) -> None:
    """Give a checkpoint to a tool that has a config of its own."""
    if door == "test":
        test.main([str(config), str(checkpoint), "--work-dir", str(folder / door)])
    elif door == "proposals":
        cfg = Config.fromfile(config, lazy_import=False)
        cfg.model.distill.region.sources = ("truth", "stored")
        cfg.model.teacher.update(type="CachedTeacher", store=str(folder / door))
        cfg.train_dataloader.dataset.indices = 1
        cfg.dump(folder / "stored.py")
        given = ["--proposals", str(checkpoint), "--store", str(folder / door)]
        if tool("cache_embeddings").main([str(folder / "stored.py"), *given]):
            raise SystemExit("refused")
    else:
        given = ["--resume", str(checkpoint)] if door == "resume" else []
        options = {"load_from": checkpoint} if door == "load_from" else {}
        train_in(folder / door, config, *given, **options)


@pytest.mark.parametrize("door", DOORS)
def test_what_a_checkpoint_names_is_neither_run_nor_fetched(
    door: str,
    config: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its weights are taken: the config that is built is the user's."""
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, None)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    # forms of :data:`tests.test_checkpoints.FOREIGN`, all at once
    address = "https://example.org/a.pth"
    model = dict(type="subprocess.call", backbone=dict(type="antigravity.geohash"))
    model["text_encoder"] = model["teacher"] = dict(model="hf-hub:someone/thing")
    model["neck"] = dict(init_cfg=dict(type="Pretrained", checkpoint=address))
    theirs = dict(
        model=model,
        custom_imports=dict(imports=["antigravity"]),
        default_scope="antigravity",
        custom_hooks=[dict(type="antigravity.geohash")],
        optim_wrapper=dict(_delete_=True, type="os.system"),
        load_from=address,
    )
    precious = tmp_path / "best_precious.pth"
    precious.touch()
    info = "message_hub.runtime_info"
    changes = {"meta.cfg": theirs, f"{info}.best_ckpt": str(precious)}
    changes[f"{info}.last_ckpt"] = address
    path = changed(trained / "iter_1.pth", changes, tmp_path / "theirs.pth")
    enter(door, config, path, tmp_path)
    assert precious.exists() and "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["--out", "--show-dir", "--work-dir"])
def test_an_empty_path_is_refused(
    name: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        test.main([str(config), "a.pth", name, ""])
    said = f"{ended.value}{capsys.readouterr().err}"
    assert f"{name}: expected a path, got ''" in said


@pytest.mark.parametrize("door", DOORS)
def test_a_program_in_a_checkpoint_is_not_run(
    door: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, path = Program(tmp_path / "ran"), tmp_path / "theirs.pth"
    for content in (dict(state_dict={}, meta=program), dict(state_dict=program)):
        torch.save(content, path)
        with pytest.raises(SystemExit) as ended:
            enter(door, config, path, tmp_path)
        assert "which could run code" in f"{ended.value}{capsys.readouterr().err}"
    assert not program.file.exists()


def test_amp_trains_on_this_machine(config: Path, tmp_path: Path) -> None:
    train_in(tmp_path, config, "--amp", **{"train_cfg.max_iters": 1})
    checkpoint = torch.load(tmp_path / "iter_1.pth", weights_only=True)
    weights = checkpoint["state_dict"].values()
    assert all(w.isfinite().all() for w in weights)
    assert not any(w.dtype in (torch.float16, torch.bfloat16) for w in weights)
    dumped = Config.fromfile(tmp_path / "tiny.py", lazy_import=False)
    assert dumped.optim_wrapper.type == "AmpOptimWrapper"


def test_scaling_the_learning_rate_needs_to_know_from_what(
    config: Path, tmp_path: Path
) -> None:
    if "auto_scale_lr" in Config.fromfile(config, lazy_import=False):
        pytest.skip("the demo says its batch size")
    with pytest.raises(SystemExit, match="base_batch_size"):
        train.main([str(config), "--work-dir", str(tmp_path), "--auto-scale-lr"])


# ------------------------------------------------------------------------- test


def test_testing_writes_metrics_predictions_and_drawings(
    config: Path, trained: Path, tmp_path: Path
) -> None:
    dump = tmp_path / "found.pkl"
    figures = test.main(
        [str(config), str(trained / "iter_2.pth"), "--work-dir", str(tmp_path),
         "--out", str(dump), "--show-dir", "pictures"]
    )  # fmt: skip
    written = [
        json.loads(file.read_text())
        for file in tmp_path.glob("*/*.json")
        if "ov/AP" in file.read_text()
    ]
    assert len(written) == 1
    for group in ("", "base_", "combo_", "novel_"):
        assert f"ov/{group}AP50" in written[0] and f"ov/{group}AP50" in figures
    assert len(pickle.loads(dump.read_bytes())) == 8  # images
    assert len(list(tmp_path.rglob("pictures/*.jpg"))) == 8


def test_testing_does_not_load_the_teacher(
    config: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words are in the cache, and its image tower is for training."""

    def load(self: Any) -> Any:
        raise AssertionError("the CLIP was loaded")

    monkeypatch.setattr("kdeov_mm.clip.CLIPSource.load", load)
    arguments = [str(config), str(trained / "iter_2.pth"), "--work-dir", str(tmp_path)]
    assert "ov/AP" in test.main(arguments)


def test_an_image_and_its_mirror_image_are_tested(
    trained: Path, config: Path, tmp_path: Path
) -> None:
    given = [str(config), str(trained / "iter_2.pth"), "--work-dir", str(tmp_path)]
    out = tmp_path / "both.pkl"
    figures = test.main([*given, "--tta", "--out", str(out)])
    assert "ov/AP50" in figures
    samples = pickle.loads(out.read_bytes())
    assert samples and all("bboxes" in s["pred_instances"] for s in samples)


def test_predictions_go_to_a_pickle(config: Path) -> None:
    with pytest.raises(SystemExit):
        test.parse_args([str(config), "a.pth", "--out", "found.json"])


def test_weights_between_two_checkpoints_are_one_to_test(
    config: Path, trained: Path, tmp_path: Path
) -> None:
    before, after, out = trained / "iter_1.pth", trained / "iter_2.pth", tmp_path / "m"
    given = [str(config), str(after), str(out)]
    with pytest.raises(SystemExit, match="no load_from: give --before"):
        tool("interpolate").main(given)
    tool("interpolate").main([*given, "--before", str(before), "--part", "0.25"])
    ends = [torch.load(p, weights_only=True)["state_dict"] for p in (before, after)]
    found = torch.load(out, weights_only=True)
    key = "backbone.stem.conv.weight"
    expected = 0.75 * ends[0][key] + 0.25 * ends[1][key]
    torch.testing.assert_close(found["state_dict"][key], expected)
    assert found["meta"]["interpolated"] == dict(part=0.25)
    # its figures, and its config, are those of a checkpoint
    figures = test.main([str(config), str(out), "--work-dir", str(tmp_path)])
    assert "ov/novel_AP50" in figures
    assert KDEOV.from_checkpoint(out).model.cfg.model.type == "KDEOVDetector"
    train_in(tmp_path / "more", config, load_from=out)
    with pytest.raises(SystemExit, match="no checkpoint to go on from"):
        train_in(tmp_path / "resumed", config, "--resume", str(out))


# ------------------------------------------------------------------ mmdet's own


@pytest.fixture(scope="module")
def predictions(config: Path, trained: Path) -> Path:
    """What the student of two steps finds, as ``tools/test.py --out`` writes it."""
    out, work = trained / "found.pkl", trained / "found"
    checkpoint = str(trained / "iter_2.pth")
    test.main([str(config), checkpoint, "--work-dir", str(work), "--out", str(out)])
    return out


@pytest.mark.parametrize(
    "name",
    [
        "get_flops",
        "browse_dataset",
        "analyze_results",
        pytest.param("confusion_matrix", marks=pytest.mark.slow),
    ],
)
def test_mmdets_own_tools_run_with_our_configs(
    name: str,
    config: Path,
    predictions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: dict[str, tuple[str, ...]] = dict(
        get_flops=("--num-images", "1"),
        browse_dataset=("--output-dir", str(tmp_path), "--not-show"),
        analyze_results=(str(predictions), str(tmp_path), "--topk", "2"),
        confusion_matrix=(str(predictions), str(tmp_path)),
    )
    monkeypatch.setattr(sys, "argv", ["mm.py", name, str(config), *given[name]])
    tool("mm").main()
    if name == "get_flops":
        count = re.search(r"Flops: ([\d.]+)([GM])", capsys.readouterr().out)
        # a YOLOv8-n of 160 pixels, a sixteenth of 8.7 G operations by two
        flops = float(count[1]) * (1000 if count[2] == "G" else 1)
        assert 200 < flops < 500
    else:
        pictures = [p for p in tmp_path.rglob("*") if p.suffix in (".jpg", ".png")]
        number = dict(browse_dataset=12, analyze_results=4, confusion_matrix=1)[name]
        assert len(pictures) == number


# ------------------------------------------------------------------ distributed


LAUNCHER = """
import sys
import torch.distributed
torch.distributed.init_process_group("gloo")  # mmengine's own way asks for a GPU
sys.path.insert(0, {tools!r})
import {tool}
{tool}.main(sys.argv[1:])
torch.distributed.destroy_process_group()
"""


def on_two_processes(tool: str, folder: Path, *args: object, steps: int = 1) -> str:
    """Run a tool of ours with two processes on the CPU; return its output."""
    script = folder / f"run_{tool}.py"
    script.write_text(LAUNCHER.format(tools=str(ROOT / "tools"), tool=tool))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [f"--master_port={port}", script, *args, "--launcher", "pytorch"]
    command += ["--work-dir", folder, "--cfg-options", f"train_cfg.max_iters={steps}"]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=240,
        env=run_env(CUDA_VISIBLE_DEVICES=""),
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    return output


@pytest.mark.slow
def test_two_processes_train_and_test_one_model(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = load_config("kdeov_n_shapes.py")
    config, checkpoint = tmp_path / "tiny.py", tmp_path / "iter_1.pth"
    cfg.param_scheduler = []
    cfg.model_wrapper_cfg = dict(  # mmengine's default is a GPU
        type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False
    )
    cfg.dump(config)
    on_two_processes("train", tmp_path, config)
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert not any(key.startswith("module.") for key in weights)
    assert all(w.isfinite().all() for w in weights.values())
    output = on_two_processes("test", tmp_path, config, checkpoint)
    assert output.count("(8 images,") == 1  # those of both, by the first alone


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits(
    load_config: Callable[..., Config], tmp_path: Path
) -> None:
    """Though each has norms of its own, and the student embeds crops by them."""
    cfg = load_config("kdeov_n_shapes_joint.py")
    cfg.model.frozen = False
    cfg.train_dataloader.batch_size = 2
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=-1)
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False,
        find_unused_parameters=True,
    )  # fmt: skip
    folders = tmp_path / "whole", tmp_path / "rest"
    for folder in folders:
        folder.mkdir()
    cfg.dump(tmp_path / "tiny.py")
    whole, rest = folders
    on_two_processes("train", whole, tmp_path / "tiny.py", steps=5)
    resume = ("--resume", whole / "iter_2.pth")
    on_two_processes("train", rest, tmp_path / "tiny.py", *resume, steps=5)
    ends = [torch.load(folder / "iter_5.pth", weights_only=True) for folder in folders]
    ours, theirs = (end["state_dict"] for end in ends)
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
