"""Every config builds, every part of one trains a step; and they can be read."""

import ast
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .conftest import ROOT, load_tool

CONFIGS = sorted(
    path
    for room in ("kdeov", "image_text", "seg", "vild", "yoloworld")
    for path in (ROOT / "configs" / room).rglob("*.py")
)
EVERY_PAGE = sorted((ROOT / "configs").rglob("*.py"))


def parts(value: Any, of_model: bool = False) -> Iterator[str]:
    """The types in a config; of its model the words, switches and keys as well."""
    if isinstance(value, dict):
        for key, v in value.items():
            if key == "type":
                yield v
            elif of_model and not isinstance(v, (dict, list, tuple)):
                yield f"{key}={v}" if isinstance(v, (str, bool)) else key
            yield from parts(v, of_model or key == "model")
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from [v] if of_model and isinstance(v, str) else parts(v, of_model)


def representatives() -> list[Path]:
    """Few configs that hold every part of all: the one with most new parts, again."""
    held = {
        path: set(parts(Config.fromfile(path, lazy_import=False).to_dict()))
        for path in CONFIGS
    }
    chosen, missing = [], set().union(*held.values())
    while missing:
        chosen.append(max(CONFIGS, key=lambda path: len(held[path] & missing)))
        missing -= held[chosen[-1]]
    return chosen


STEPPED = representatives()
# a step of these takes half a minute or more
SLOW = {"vild_mask_r50_ovlvis", "vild_kdeov_r50_ovcoco"}
SLOW |= {"seg_pcontext", "seg_coco_stuff"}
BUILT = [path for path in CONFIGS if path not in STEPPED]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_config_is_either_stepped_or_built() -> None:
    assert sorted(STEPPED + BUILT) == CONFIGS
    assert len(STEPPED) <= 36  # else the parts that are listed are no parts


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_leaf_says_how_to_run_it_and_only_the_difference(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "no docstring"
    assert re.search(rf"tools/(train|test)\.py {relative(path)}", docstring)
    assert len(path.read_text().splitlines()) <= 35


@pytest.mark.parametrize("path", EVERY_PAGE, ids=relative)
def test_a_page_begins_with_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


# what a leaf of the whole system changes, and nothing else
CHANGES = {
    "no_film": ["model.bbox_head.head_module.adapter"],
    "no_regions": ["model.distill"],
    "no_cosine": ["model.global_head.distances"],
    "no_infonce": ["model.global_head.contrast"],
    "no_global_head": ["model.global_head", "test_cfg"],
    "backbone_yolov5": ["model.backbone.type"],
    "projection_gn": ["model.bbox_head.head_module.projection_norm"],
    "film_shift": ["model.bbox_head.head_module.adapter.shift"],
    "film_maps": ["model.bbox_head.head_module.adapter", "model.fusion"],
    "attention_maps": ["model.bbox_head.head_module.adapter", "model.fusion"],
}
WHOLE = dict(
    ovcoco="kdeov_n_ovcoco.py",
    ovlvis="kdeov_n_ovlvis.py",
    shapes="kdeov_n_shapes_whole.py",
)


def difference(a: Any, b: Any, where: str = "") -> list[str]:
    """The entries of two configs that differ, the outermost where one has it alone."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = {*a, *b} - {"captions"}
        inner = [difference(a.get(k), b.get(k), f"{where}.{k}") for k in keys]
        return [name for names in inner for name in names]
    return [] if a == b else [where.removeprefix(".")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_cosine_ends_with_the_training(path: Path) -> None:
    """And says so itself: mmengine's end is that of a training cut short."""
    cfg = Config.fromfile(path, lazy_import=False)
    ends = [
        (s["end"], s["begin"] + s["T_max"])
        for s in cfg.get("param_scheduler") or []
        if "T_max" in s
    ]
    assert all(end == (cfg.train_cfg.max_iters,) * 2 for end in ends)


@pytest.mark.parametrize("world", WHOLE)
@pytest.mark.parametrize("name", CHANGES)
def test_a_leaf_of_the_whole_system_changes_what_its_name_says(
    name: str, world: str
) -> None:
    folder = ROOT / "configs/kdeov"
    leaf, whole = (
        Config.fromfile(path, lazy_import=False).to_dict()
        for path in (folder / f"parts/{world}_{name}.py", folder / WHOLE[world])
    )
    changed = difference(leaf, whole)
    assert changed
    for entry in changed:
        assert any(f"{entry}.".startswith(f"{c}.") for c in CHANGES[name]), entry


def test_every_part_of_the_whole_system_has_its_leaves() -> None:
    found = {path.stem for path in (ROOT / "configs/kdeov/parts").glob("*.py")}
    assert found == {f"{world}_{name}" for world in WHOLE for name in CHANGES}


@pytest.mark.parametrize("world", WHOLE)
def test_the_whole_system_has_all_its_parts(world: str) -> None:
    cfg = Config.fromfile(ROOT / "configs/kdeov" / WHOLE[world], lazy_import=False)
    model = cfg.model
    assert model.backbone.type == "mmyolo.YOLOv8CSPDarknet"
    assert model.bbox_head.head_module.adapter.type == "ClassFiLM"
    assert model.distill.region.type == "RegionDistillation"
    assert model.global_head.type == "GlobalHead"
    assert model.global_head.contrast.type == "InfoNCE"
    assert model.global_head.distances.cosine.type == "CosineDistance"


class OneStep(Hook):
    """End the training after one step or some, whatever its schedule; keep losses."""

    def __init__(self, steps: int = 1) -> None:
        self.steps = steps
        self.losses: dict[str, torch.Tensor] = {}

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        self.losses = outputs
        runner.train_loop.stop_training = batch_idx + 1 == self.steps


def load_run(path: Path, load_config: Callable[..., Config], work_dir: Path) -> Config:
    cfg = load_config(path, clip=False)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f"{path.parent.name}_{path.stem}"
    return cfg


@pytest.mark.parametrize("path", BUILT, ids=lambda path: path.stem)
def test_every_config_builds(
    path: Path, load_config: Callable[..., Config], tmp_path: Path
) -> None:
    """Everything that a run needs before its first step; one sample of each data."""
    runner = Runner.from_cfg(load_run(path, load_config, tmp_path))
    tests = getattr(runner.test_loop, "tests", {})
    loops = runner.val_loop, runner.test_loop
    pairs = [(loop.dataloader, loop.evaluator) for loop in loops] + [*tests.values()]
    for loader in (runner.train_loop.dataloader, *(loader for loader, _ in pairs)):
        assert loader.dataset[0]["inputs"].isfinite().all()
    assert all(evaluator.metrics for _, evaluator in pairs)
    optimizer = runner.build_optim_wrapper(runner.optim_wrapper)
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    wanted = {id(p) for p in runner.model.parameters() if p.requires_grad}
    assert wanted and wanted <= given
    runner.optim_wrapper = optimizer
    assert runner.build_param_scheduler(runner.param_schedulers)


def smaller(value: Any) -> Any:
    """A config with a quarter of the sides of large images, and with few proposals."""
    if isinstance(value, dict):
        result = {key: smaller(entry) for key, entry in value.items()}
        for key in {"scale", "crop_size"} & {*value}:
            if isinstance(value[key], (list, tuple)) and min(value[key]) >= 320:
                result[key] = tuple(side // 4 for side in value[key])
        if value.get("type") == "RandomSampler":
            result["num"] = 32
        if "mask_thr_binary" in value:
            result["max_per_img"] = 10
        return result
    return [*map(smaller, value)] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else [])
        for p in STEPPED
    ],
)
def test_every_part_of_a_config_trains_and_tests_a_step(
    path: Path, load_config: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = Config(smaller(load_run(path, load_config, tmp_path).to_dict()))
    if (cfg.model.get("teacher") or {}).get("type") == "CachedTeacher":
        fill_store(cfg, tmp_path)
    runner, once = Runner.from_cfg(cfg), OneStep()
    runner.register_hook(once)
    before = {k: v.clone() for k, v in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 1
    head = cfg.model.get("bbox_head") or cfg.model.get("roi_head")
    if cfg.model.get("seg_head"):
        assert "loss_seg" in once.losses
    elif head is None or cfg.model.get("frozen"):
        assert any(name.startswith("loss_global_") for name in once.losses)
    elif head.get("supervised", True):
        learns = path.stem != "vild_image_r18_shapes"  # there by no word
        assert (once.losses["loss_cls"] > 0) == learns
    else:
        assert not {"loss_cls", "loss_bbox", "loss_dfl"} & set(once.losses)
    assert all(value.isfinite() for value in once.losses.values())
    after = dict(runner.model.named_parameters())
    assert all(after[k].isfinite().all() for k in before)
    assert any((after[k] != v).any() for k, v in before.items())
    figures = runner.test()
    numbers = ("rank", "/images", "/captions")  # and no shares
    shares = {k: v for k, v in figures.items() if not k.endswith(numbers)}
    # of a student that finds next to nothing, some have no value: a recall that is not
    # reached, calibration without boxes, the background of data without one
    empty = ("FPPI@R0.3", "FPPI@R0.5", "FPPI@R0.7", "_ECE", "_right@0.7", "_background")
    wrong = {k: v for k, v in shares.items() if not 0 <= v <= 1}
    assert shares and [k for k in wrong if not k.endswith(empty)] == []
    assert all(map(math.isnan, wrong.values()))


def fill_store(cfg: Config, folder: Path) -> None:
    """The store that a config asks for, with the boxes of an untrained student."""
    cfg.model.teacher.store = str(folder / "store")
    path, weights = folder / "cached.py", folder / "student.pth"
    cfg.dump(path)
    student = Config(dict(model=cfg.model.to_dict())).model
    student.update(teacher=None, distill=None)
    torch.save(MODELS.build(student).state_dict(), weights)
    tool = load_tool("cache_embeddings")
    assert tool.main([str(path), "--proposals", str(weights)]) == 0


@pytest.mark.parametrize(
    "name",
    ["kdeov_n_shapes_hard", "hard/none", "hard/oracle", "hard/joint", "hard/vild"],
)
def test_the_hard_world_trains_two_steps_and_has_lvis_figures(
    name: str, load_config: Callable[..., Config], tmp_path: Path
) -> None:
    path = ROOT / f"configs/kdeov/{name}.py"
    cfg = load_run(path, load_config, tmp_path)
    runner, twice = Runner.from_cfg(cfg), OneStep(steps=2)
    runner.register_hook(twice)
    runner.train()
    assert runner.iter == 2
    assert all(value.isfinite() for value in twice.losses.values())
    without = name in ("hard/none", "hard/oracle")
    assert any("region" in key for key in twice.losses) != without
    assert any("contrast" in key for key in twice.losses) == (name == "hard/joint")
    words = runner.train_dataloader.dataset.vocabulary.names
    assert len(words) == (501 if name == "hard/oracle" else 359)
    figures = runner.test()
    for rules in ("lvis", "lvis-fixed"):
        for key in ("AP", "APr", "APc", "APf"):
            assert any(rules in k and k.endswith(key) for k in figures), figures


def test_without_its_teacher_the_demo_has_no_distillation(
    load_config: Callable[..., Config],
) -> None:
    taught, alone = (
        load_config(name)
        for name in ("kdeov_n_shapes.py", "kdeov_n_shapes_nodistill.py")
    )
    assert taught.model.teacher and taught.model.distill
    assert not alone.model.teacher and not alone.model.distill
    for cfg in (taught, alone):  # and nothing else is different
        cfg.model.teacher = cfg.model.distill = None
    assert alone.to_dict() == taught.to_dict()


def test_voc_boxes_of_other_classes_stay_out(
    load_config: Callable[..., Config], raccoons: Path
) -> None:
    from mmdet.registry import DATASETS

    cfg = load_config("kdeov_n_raccoon.py", clip=False)
    train, test = (
        DATASETS.build(loader.dataset)
        for loader in (cfg.train_dataloader, cfg.test_dataloader)
    )
    assert (len(train), len(test)) == (5, 3)
    for dataset in (train, test):
        for i in range(len(dataset)):
            assert len(dataset.get_data_info(i)["instances"]) == 1  # of two objects
            assert dataset[i]["data_samples"].words == (("raccoon",),)
    (box,) = (instance["bbox"] for instance in test.get_data_info(0)["instances"])
    truth = test[0]["data_samples"].gt_instances.bboxes.tensor
    assert truth.tolist() == [box]  # pixels of the file, as VOCMetric wants
