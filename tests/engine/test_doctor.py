"""The doctor names what is wrong, and finds nothing where nothing is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from mmengine.config import Config

from kdeov_mm.datasets import shapes
from kdeov_mm.engine.doctor import ADVICE
from kdeov_mm.engine.doctor.data import ExaminedData, check_objects

from ..conftest import ROOT, load_tool, make_sample, write_clip

Change = Callable[[Config], None]


@pytest.fixture(scope="module")
def doctor() -> Any:
    return load_tool("doctor")


@pytest.fixture
def examine(
    doctor: Any, load_config: Callable[..., Config], tmp_path: Path, capsys: Any
) -> Callable[..., tuple[int, str]]:
    """Exit code and report of a config of ours, changed."""

    def run(name: str | Path, change: Change = lambda cfg: None) -> tuple[int, str]:
        cfg = load_config(name) if isinstance(name, str) else Config.fromfile(name)
        change(cfg)
        path = tmp_path / "examined.py"
        cfg.dump(path)
        capsys.readouterr()
        code = doctor.main([str(path), "--batches", "1"])
        return code, capsys.readouterr().out

    return run


def named(report: str) -> list[str]:
    return [
        line.removeprefix("WRONG: ")
        for line in report.splitlines()
        if line.startswith("WRONG: ")
    ]


@pytest.mark.parametrize(
    "name",
    [
        "kdeov_n_shapes.py",
        "kdeov_n_shapes_nodistill.py",
        "kdeov_n_shapes_oracle.py",
        "kdeov_n_raccoon.py",
        "ablations/norm_gn.py",
        "ablations/fusion_attention.py",
        "../vild/vild_ensemble_r18_shapes.py",
    ],
)
def test_good_configs_are_in_order(name: str, examine: Any) -> None:
    code, report = examine(name)
    assert (code, named(report)) == (0, [])
    for line in ("positives per level", "scores at step 0", "objects per image"):
        assert line in report
    assert ("accepted by the config: novel boxes" in report) == ("oracle" in name)


def coco_by_file_order(cfg: Config) -> None:
    """mmdet's own data set, its classes listed in another order than the file's."""
    old = cfg.train_dataloader.dataset
    words = dict(type="LoadWords", words=shapes.BASE_CLASSES[::-1])
    old.pipeline.insert(2, words)
    cfg.train_dataloader.dataset = dict(
        type="CocoDataset",
        data_root=old.data_root,
        ann_file=old.ann_file,
        data_prefix=old.data_prefix,
        metainfo=dict(classes=shapes.BASE_CLASSES[::-1]),
        pipeline=old.pipeline,
    )


def words_of_another_order(cfg: Config) -> None:
    words = (*shapes.BASE_CLASSES[1:], shapes.BASE_CLASSES[0])
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type="LoadWords", words=words))


def all_boxes(cfg: Config) -> None:
    cfg.train_dataloader.dataset.update(
        vocabulary="all", ann_file="annotations/instances_train_all.json"
    )


def all_words(cfg: Config) -> None:
    data = cfg.train_dataloader.dataset
    data.update(vocabulary="all", ann_file="annotations/instances_val.json")
    words = (*shapes.BASE_CLASSES, *shapes.NOVEL_CLASSES)
    data.pipeline.insert(2, dict(type="LoadWords", words=words))
    data.update(vocabulary="base", ann_file="annotations/instances_train_base.json")


def normalise(cfg: Config) -> None:
    step = dict(type="Normalize", mean=[0.0] * 3, std=[255.0] * 3, to_rgb=False)
    cfg.train_dataloader.dataset.pipeline.insert(-1, step)


def normalise_around_zero(cfg: Config) -> None:
    step = dict(type="Normalize", mean=[123.0] * 3, std=[58.0] * 3, to_rgb=False)
    cfg.train_dataloader.dataset.pipeline.insert(-1, step)


def no_classes(cfg: Config) -> None:
    cfg.train_dataloader.dataset.update(vocabulary="all", metainfo=dict(classes=()))


def no_words(cfg: Config) -> None:
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type="LoadWords", words=[]))


def words_not_packed(cfg: Config) -> None:
    pack = cfg.train_dataloader.dataset.pipeline[-1]
    assert pack.type == "PackInputs"
    pack.meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")


def frozen_backbone(cfg: Config) -> None:
    cfg.model.backbone.frozen_stages = 4


def frozen_by_rate(cfg: Config) -> None:
    cfg.optim_wrapper.paramwise_cfg.custom_keys["neck"] = dict(lr_mult=0.0)


def zero_weight(cfg: Config) -> None:
    cfg.model.distill.region.distances.cosine.loss_weight = 0.0


def frozen_stage(cfg: Config) -> None:
    cfg.model.backbone.update(frozen_stages=2, init_cfg=None)


def normalised_test(cfg: Config) -> None:
    step = dict(type="Normalize", mean=[0.0] * 3, std=[255.0] * 3, to_rgb=False)
    cfg.test_dataloader.dataset.pipeline.insert(-1, step)


def normalised_for_the_teacher(cfg: Config) -> None:
    cfg.model.data_preprocessor.update(mean=None, std=None)
    normalise(cfg)


def leak_beside_the_base(cfg: Config) -> None:
    base = cfg.train_dataloader.dataset
    whole = Config(dict(data=base.to_dict())).data
    whole.update(vocabulary="all", ann_file="annotations/instances_train_all.json")
    words = dict(type="LoadWords", words=shapes.CLASSES)
    base.update(vocabulary="all", ann_file="annotations/instances_train_all.json")
    base.pipeline.insert(2, words)
    cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[base, whole])


@pytest.mark.parametrize(
    "change, name",
    [
        (coco_by_file_order, "class order"),
        (words_of_another_order, "class order"),
        (all_boxes, "novel boxes"),
        (all_words, "novel words"),
        (normalise, "normalised twice"),
        (normalise_around_zero, "normalised twice"),
        (no_classes, "empty vocabulary"),
        (no_words, "empty vocabulary"),
        (words_not_packed, "empty vocabulary"),
        (frozen_backbone, "frozen student"),
        (frozen_by_rate, "frozen student"),
        (zero_weight, "zero loss"),
        (frozen_stage, "frozen student"),
        (normalised_test, "normalised twice"),
        (normalised_for_the_teacher, "normalised twice"),
        (leak_beside_the_base, "novel boxes"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_config_is_named(change: Change, name: str, examine: Any) -> None:
    code, report = examine("kdeov_n_shapes.py", change)
    assert code == 1
    assert named(report) == [name]
    assert "Likely cause: " in report and "Fix: " in report


def test_a_store_of_another_teacher_is_named(
    examine: Any, load_config: Callable[..., Config], tmp_path: Path, doctor: Any
) -> None:
    tool, other = load_tool("cache_embeddings"), write_clip(tmp_path / "other", seed=1)

    def cached(cfg: Config) -> None:
        cfg.model.teacher.update(type="CachedTeacher", store=str(tmp_path / "store"))
        cfg.model.distill.region.sources = ("truth",)
        cfg.default_hooks.cache = dict(type="EmbeddingCacheHook")

    cfg = load_config("kdeov_n_shapes.py")
    cached(cfg)
    own = dict(cfg.model.text_encoder)
    cfg.model.teacher.model = cfg.model.text_encoder.model = other
    cfg.dump(tmp_path / "other.py")
    assert tool.main([str(tmp_path / "other.py")]) == 0
    code, report = examine("kdeov_n_shapes.py", cached)
    assert (code, named(report)) == (1, ["cache of another teacher"])
    code, report = examine(tmp_path / "other.py")
    assert (code, named(report)) == (0, [])

    def half(cfg: Config) -> None:
        cached(cfg)
        cfg.model.teacher.model, cfg.model.text_encoder = other, own

    code, report = examine("kdeov_n_shapes.py", half)
    assert (code, named(report)) == (1, ["cache of another teacher"])


def test_underscores_are_spaces(examine: Any) -> None:
    def underscored(cfg: Config) -> None:
        words = [name.replace(" ", "_") for name in shapes.BASE_CLASSES]
        pipeline = cfg.train_dataloader.dataset.pipeline
        pipeline.insert(2, dict(type="LoadWords", words=words))

    assert examine("kdeov_n_shapes.py", underscored)[0] == 0


def test_own_boxes_alone_and_no_validation_are_in_order(examine: Any) -> None:
    def own(cfg: Config) -> None:
        cfg.model.distill.region.sources = ("own",)
        cfg.model.vocabulary = None
        cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None

    assert examine("kdeov_n_shapes.py", own)[0] == 0


def test_a_store_without_its_hook_is_named(examine: Any, tmp_path: Path) -> None:
    def cached(cfg: Config) -> None:
        cfg.model.teacher.update(type="CachedTeacher", store=str(tmp_path / "store"))

    code, report = examine("kdeov_n_shapes.py", cached)
    assert (code, named(report)) == (1, ["cache"]) and "EmbeddingCacheHook" in report


def test_missing_pictures_are_a_finding(examine: Any) -> None:
    def elsewhere(cfg: Config) -> None:
        cfg.train_dataloader.dataset.data_prefix.img = "no/such/folder/"

    code, report = examine("kdeov_n_shapes.py", elsewhere)
    assert (code, named(report)) == (1, ["pipeline"]) and "no/such" in report


def test_what_cannot_be_built_is_a_finding_too(examine: Any) -> None:
    def elsewhere(cfg: Config) -> None:
        cfg.train_dataloader.dataset.data_root = "no/such/place"

    code, report = examine("kdeov_n_shapes.py", elsewhere)
    assert (code, named(report)) == (1, ["data set"])
    assert "The rest was not looked at" in report


def test_objects_that_the_pipeline_drops_are_counted(examine: Any) -> None:
    def strict(cfg: Config) -> None:
        step = dict(
            type="FilterAnnotations", min_gt_bbox_wh=(300, 300), keep_empty=False
        )
        cfg.train_dataloader.dataset.pipeline.insert(-1, step)

    code, report = examine("kdeov_n_shapes.py", strict)
    assert code == 1 and "objects lost" in named(report)


@pytest.mark.parametrize(("left", "lost"), [(2, False), (0, True)])
def test_objects_are_compared_with_those_of_the_same_images(
    left: int, lost: bool
) -> None:
    """One crowded image among those that were not looked at changes nothing."""
    box = dict(bbox=[0, 0, 20, 20], bbox_label=0)
    infos = [dict(img_id=i, instances=[box] * n) for i, n in enumerate((2, 2, 100))]
    samples = [make_sample([[0, 0, 20, 20]] * left, [0] * left) for _ in range(2)]
    for i, sample in enumerate(samples):
        sample.set_metainfo(dict(img_id=i))
    dataset = MagicMock(spec=["get_data_info", "__len__"])
    dataset.get_data_info.side_effect = infos.__getitem__
    dataset.__len__.return_value = len(infos)
    packed = [dict(data_samples=sample) for sample in samples]
    _, *findings = check_objects(ExaminedData("train", dataset, packed))
    assert [f.name for f in findings] == (["objects lost"] if lost else [])


def test_a_module_that_makes_nan_is_named(
    examine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmyolo.models import YOLOv8PAFPN

    forward = YOLOv8PAFPN.forward
    monkeypatch.setattr(
        YOLOv8PAFPN, "forward", lambda *a: tuple(f * float("nan") for f in forward(*a))
    )
    code, report = examine("kdeov_n_shapes.py")
    assert code == 1
    assert "loss not finite" in named(report) and "such an output: neck" in report


def test_a_config_that_is_not_there_is_a_usage_error(doctor: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        doctor.main(["no_such.py"])
    assert stop.value.code == 2


def test_every_finding_has_advice_and_is_in_the_docs() -> None:
    page = (ROOT / "docs/distillation.md").read_text()
    assert all(f"`{name}`" in page for name in ADVICE)
    files = (ROOT / "kdeov_mm/engine/doctor").glob("*.py")
    code = "".join(file.read_text() for file in files)
    names = re.findall(r'(?:Finding|Stop|stage)\(\s*"([^"]+)"', code)
    assert len(set(names)) > 15 and set(names) <= set(ADVICE)
