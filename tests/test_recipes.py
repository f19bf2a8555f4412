"""The OV-COCO and OV-LVIS recipes by mm's commands, on stand-ins of their data."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from mmengine.config import Config

from .conftest import ROOT, load_tool, run_env
from .standins import write_standins

RECIPES = ["ovcoco", "ovlvis"]
# a leaf that is tested, the recipe that it was trained by, and its annotation file
LEAVES = {
    "ovcoco": ("ovcoco", "coco/annotations/ov_coco_val_65.json"),
    "ovcoco_80": ("ovcoco", "coco/annotations/ov_coco_val_80.json"),
    "ovlvis": ("ovlvis", "lvis/annotations/lvis_v1_val.json"),
    "ovlvis_minival": ("ovlvis", "lvis/annotations/lvis_v1_minival.json"),
}
# the form of ViT-B-32-quickgelu, thinner
VIT_B_32: dict[str, Any] = dict(
    embed_dim=512,
    quick_gelu=True,
    vision_cfg=dict(image_size=224, layers=2, width=128, patch_size=32),
    text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=2),
)


def leaf(name: str) -> str:
    return str(ROOT / f"configs/kdeov/kdeov_n_{name}.py")


def write_clip(folder: Path) -> list[str]:
    """A CLIP of ViT-B/32's form with random weights; the options that name it."""
    config, weights = folder / "vit_b_32_thin.json", folder / "weights.pt"
    config.write_text(json.dumps(VIT_B_32))
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(**VIT_B_32).state_dict(), weights)
    return [
        f"model.{tower}.{key}={file}"
        for tower in ("text_encoder", "teacher")
        for key, file in (("model", config), ("pretrained", weights))
    ]


def small(batch: int = 2, others: Iterable[str] = ()) -> list[str]:
    """Loaders for this machine, also of other tests, and nothing else of the recipe."""
    loaders = [f"{part}_dataloader" for part in ("train", "val", "test")]
    loaders += [f"test_cfg.others.{name}.dataloader" for name in others]
    values = dict(batch_size=batch, num_workers=0, persistent_workers=False)
    return [f"{name}.{k}={v}" for name in loaders for k, v in values.items()]


def schedule(steps: int, warmup: int, every: int) -> list[str]:
    """The options of docs/data.md for a trial run."""
    return [
        f"train_cfg.max_iters={steps}",
        f"param_scheduler.0.end={warmup}",
        f"param_scheduler.1.begin={warmup}",
        f"param_scheduler.1.T_max={steps - warmup}",
        f"default_hooks.checkpoint.interval={every}",
        "default_hooks.checkpoint.max_keep_ckpts=-1",
        "default_hooks.logger.interval=1",
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's working directory, with ``data``."""
    folder, before = tmp_path_factory.mktemp("user"), Path.cwd()
    write_standins(folder / "data", train=24, val=12)
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_clip(tmp_path_factory.mktemp("clip"))


def train(name: str, folder: Path, options: list[str], *args: str) -> None:
    options = [*options, f"visualizer.name={folder.name}"]
    options += ["train_cfg.val_begin=1000"]  # no test after the last of a few steps
    load_tool("train").main(
        [leaf(name), "--work-dir", str(folder), *args, "--cfg-options", *options]
    )


@pytest.fixture(scope="module", params=RECIPES)
def trained(request: Any, place: Path, clip: list[str]) -> tuple[str, Path]:
    """A recipe after three steps, and its folder."""
    folder = place / f"work_dirs/{request.param}"
    train(request.param, folder, [*clip, *small(), *schedule(3, 1, 1)])
    return request.param, folder


def steps(folder: Path) -> list[dict[str, float]]:
    """What the last run in a folder logged of its steps."""
    log = max(folder.rglob("vis_data/scalars.json"), key=os.path.getmtime)
    lines, *_ = log.read_text().rpartition("\n")  # the last may be half written
    rows = map(json.loads, lines.splitlines())
    return [row for row in rows if "loss" in row]


def test_a_recipe_trains(trained: tuple[str, Path]) -> None:
    """All its losses, at the recipe's 640 pixels."""
    rows = steps(trained[1])
    assert [row["iter"] for row in rows] == [1, 2, 3]
    for row in rows:
        losses = {key: value for key, value in row.items() if "loss" in key}
        wanted = {"loss_cls", "loss_bbox", "loss_region_cosine", "loss_global_cosine"}
        assert wanted | {"loss_global_contrast"} <= set(losses)
        assert all(0 <= value < 1e4 for value in losses.values())
    assert sum(row["loss_bbox"] for row in rows) > 0


def test_a_recipe_is_resumed(
    trained: tuple[str, Path], clip: list[str], place: Path
) -> None:
    name, folder = trained
    other = place / f"work_dirs/resumed_{name}"
    other.mkdir()
    (other / "iter_2.pth").write_bytes((folder / "iter_2.pth").read_bytes())
    (other / "last_checkpoint").write_text(str(other / "iter_2.pth"))
    options = [*clip, *small(), *schedule(3, 1, 1)]
    train(name, other, options, "--resume")
    assert [row["iter"] for row in steps(other)] == [3]
    assert not (other / "iter_1.pth").exists()
    # and ends with the bits of the undisturbed one
    ends = [torch.load(f / "iter_3.pth", weights_only=True) for f in (folder, other)]
    for key in ("state_dict", "ema_state_dict"):
        assert ends[0][key].keys() == ends[1][key].keys()
        assert all((ends[1][key][k] == v).all() for k, v in ends[0][key].items()), key
    # the leak report still knows what it began with
    assert load_tool("leaks").main([leaf(name), str(other / "iter_3.pth")]) == 0


@pytest.mark.slow
def test_a_recipe_trains_in_half_precision(
    trained: tuple[str, Path], clip: list[str], place: Path
) -> None:
    """bfloat16 on a CPU: the losses of the same first step are near float32's."""
    name, folder = trained
    other = place / f"work_dirs/amp_{name}"
    train(name, other, [*clip, *small(), *schedule(2, 1, 9)], "--amp")
    (first, *_), (wanted, *_) = steps(other), steps(folder)
    for key in ("loss_cls", "loss_bbox", "loss_dfl"):
        assert first[key] == pytest.approx(wanted[key], rel=0.1), key
    weights = torch.load(other / "iter_2.pth", weights_only=True)["state_dict"]
    assert all(w.isfinite().all() for w in weights.values())


def check_whole_images(
    name: str, cfg: Config, out: Path, figures: dict[str, float]
) -> None:
    """Both protocols of COCO, captions and single objects, in one run's figures."""
    names = ["way80", "retrieval", "zero_shot"][name == "ovlvis" :]
    assert [*cfg.test_cfg.others] == names
    for test in names:
        report = json.loads((out / f"figures_{test}.json").read_text())
        assert report["protocol"] == cfg.test_cfg.others[test].evaluator.protocol
    gallery = json.loads((out / "figures_retrieval.json").read_text())["gallery"]
    assert gallery == dict(images=12, captions=60)
    keys = ["ov/AP", "ov/novel_AP", "retrieval/t2i_R@10", "zero_shot/novel_top1"]
    keys += ["ov80/novel_AP50"] if name == "ovcoco" else ["ov/lvis-fixed_APr"]
    assert all(0 <= figures[key] <= 1 for key in keys)


@pytest.mark.parametrize("trained", RECIPES, indirect=True)
def test_a_recipe_is_tested_by_all_its_leaves(
    trained: tuple[str, Path], clip: list[str], place: Path
) -> None:
    """Figures under the protocol's name, and which labels it has seen."""
    name, folder = trained
    for tested, (recipe, file) in LEAVES.items():
        if recipe != name:
            continue
        out = place / f"work_dirs/test_{tested}"
        cfg = Config.fromfile(leaf(tested), lazy_import=False)
        others = [*(cfg.test_cfg.get("others") or ())]
        figures = load_tool("test").main(
            [leaf(tested), str(folder / "iter_3.pth"), "--work-dir", str(out)]
            + ["--cfg-options", *clip, *small(4, others), f"visualizer.name={tested}"]
        )
        # whole images in the same run, each under its protocol
        if tested == recipe:
            check_whole_images(tested, cfg, out, figures)
        truth = json.loads((place / "data" / file).read_text())
        report = json.loads((out / "figures.json").read_text())
        assert report["protocol"] == cfg.test_evaluator.protocol
        assert report["images"] == len(truth["images"])
        assert report["words"] == len(truth["categories"])
        assert report["max_per_img"] == cfg.model.test_cfg.max_per_img
        assert {*report["reliability"]} >= {"all", "base", "novel"}
        leaks = json.loads((out / "leaks.json").read_text())
        assert leaks["clean"] is True and leaks["found"] == {"trained_on": {}}
        assert leaks["novel"] == (17 if name == "ovcoco" else 337)
        tool = load_tool("leaks")
        assert tool.main([leaf(tested), str(folder / "iter_3.pth")]) == 0


@pytest.mark.parametrize(
    "name", ["ovlvis", pytest.param("ovcoco", marks=pytest.mark.slow)]
)
def test_the_doctor_has_nothing_to_say(
    name: str, clip: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = Config.fromfile(leaf(name), lazy_import=False)
    cfg.merge_from_dict(dict(option.split("=") for option in clip))
    cfg.dump(place / f"{name}.py")
    assert load_tool("doctor").main([str(place / f"{name}.py"), "--batches", "1"]) == 0
    report = capsys.readouterr().out
    assert "WRONG" not in report and "Nothing is wrong in what" in report
    assert "train data: 21 images" in report
    assert f"{17 if name == 'ovcoco' else 337} classes are held out" in report


# ------------------------------------------------------------------- for real, slow

BETWEEN = 50  # steps between checkpoints


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's working directory with a few hundred pictures."""
    folder = tmp_path_factory.mktemp("large")
    write_standins(folder / "data", train=240, val=100)
    return folder


def command(tool: str, *args: object) -> list[str]:
    return [sys.executable, str(ROOT / f"tools/{tool}.py"), *map(str, args)]


def run(folder: Path, tool: str, *args: object) -> str:
    """Run a tool of ours as a user does, in a folder; its output."""
    done = subprocess.run(
        command(tool, *args), cwd=folder, env=run_env(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name, number", [("ovcoco", 100), ("ovlvis", 200)])
def test_a_recipe_killed_resumed_and_tested(
    name: str, number: int, large: Path, clip: list[str]
) -> None:
    """Minutes: the losses fall, boxes are found, the doctor has nothing to say."""
    work = large / "work_dirs" / name
    options = [*clip, *small(), *schedule(number, 30, BETWEEN)]
    training = [leaf(name), "--work-dir", work, "--cfg-options", *options]
    first = subprocess.Popen(
        command("train", *training), cwd=large, env=run_env(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # killed at some step after the first checkpoint
    while first.poll() is None:
        logs = [*work.rglob("vis_data/scalars.json")]
        if logs and (done := steps(work)) and done[-1]["iter"] > BETWEEN:
            break
        time.sleep(1)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    before = steps(work)
    assert before[-1]["iter"] > BETWEEN
    run(large, "train", *training[:3], "--resume", *training[3:])
    after = steps(work)
    assert (after[0]["iter"], after[-1]["iter"]) == (BETWEEN + 1, number)
    for key in ("loss_cls", "loss_bbox", "loss_dfl", "loss_region_cosine"):
        begin, end = (
            sum(row[key] for row in rows) / len(rows)
            for rows in (before[:20], after[-20:])
        )
        assert end < begin, key
    # tests by all leaves, and what else a user asks
    checkpoint = work / f"iter_{number}.pth"
    for tested, (recipe, _) in LEAVES.items():
        if recipe == name:
            out = large / f"work_dirs/test_{tested}"
            args = [leaf(tested), checkpoint, "--work-dir", out]
            run(large, "test", *args, "--cfg-options", *clip, *small())
            report = json.loads((out / "figures.json").read_text())
            print(tested, json.dumps(report["metrics"]))
            assert report["boxes"] > 0
    cfg = Config.fromfile(leaf(name), lazy_import=False)
    cfg.merge_from_dict(dict(option.split("=") for option in clip))
    cfg.dump(large / f"{name}.py")
    said = run(large, "doctor", f"{name}.py", "--batches", "1")
    assert "Nothing is wrong in what" in said
