"""Which novel classes had labels in what a checkpoint was trained on."""

import json
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config

from kdeov_mm.datasets import OVLVISDataset
from kdeov_mm.datasets.coco import COCO_BASE, COCO_NOVEL
from kdeov_mm.engine import TrainingRecordHook
from kdeov_mm.evaluation import LABEL_SETS, describe_leaks, leak_report
from kdeov_mm.evaluation.leaks import overlap, weight_files

from ..conftest import ROOT, load_tool

FROM_NOTHING = "model = dict(type='KDEOVDetector')\nload_from = None\nresume = False\n"


def write(
    path: Path,
    classes: tuple[str, ...] | None = COCO_BASE,
    cfg: Any = "",
    **dataset_meta: Any,
) -> Path:
    cfg = FROM_NOTHING + cfg if isinstance(cfg, str) else cfg
    meta: dict[str, Any] = dict(cfg=cfg)
    if classes is not None:
        meta["dataset_meta"] = dict(classes=classes, **dataset_meta)
    torch.save(dict(meta=meta, state_dict={}), path)
    return path


@pytest.mark.parametrize("name", ["coco", "objects365v1", "objects365v2", "lvis"])
def test_the_label_sets_that_void_ov_coco_have_all_17(name: str) -> None:
    assert set(overlap(COCO_NOVEL, LABEL_SETS[name])) == set(COCO_NOVEL)


@pytest.mark.parametrize(
    "name, label",
    [
        ("couch", "Sofa"),
        ("aerosol_can", "Aerosol Can"),
        ("monitor", "Monitor/TV"),
        ("bow_(weapon)", "bow"),
        ("bow", "bow_(weapon)"),
        ("knife", "knives"),
        ("bus", "Buses"),
        ("couch", "couches"),
        ("skateboard", "skate-board"),
        ("snowboard", "snow board"),
        ("cat", "Cat."),
        ("cat", "kitty"),
        ("cherry", "cherries"),
    ],
)
def test_names_are_matched_however_they_are_written(name: str, label: str) -> None:
    assert overlap([name], ["zebra", label]) == {name: label}


@pytest.mark.parametrize(
    "name, label",
    [("dog", "hot dog"), ("bow_(weapon)", "bow_(decorative_ribbons)"), ("bus", "bun")],
)
def test_other_things_are_no_leak(name: str, label: str) -> None:
    assert overlap([name], [label]) == {}


def test_kinds_of_a_class_are_found_among_image_labels() -> None:
    names = ["cat", "bus", "tie", "cup", "zebra"]
    found = overlap(names, LABEL_SETS["imagenet-1k"], kinds=True)
    assert set(found) == set(names)


def test_the_base_classes_of_lvis_hold_no_rare_one() -> None:
    meta = OVLVISDataset.METAINFO
    assert overlap(meta["novel_classes"], meta["base_classes"]) == {}
    assert len(overlap(meta["novel_classes"], meta["classes"])) == 337


def test_a_checkpoint_from_nothing_on_base_classes_is_clean(tmp_path: Path) -> None:
    report = leak_report(write(tmp_path / "a.pth"), COCO_NOVEL)
    assert report["clean"] is True and report["found"] == {"trained_on": {}}
    assert "no novel class" in describe_leaks(report)


def test_boxes_of_novel_classes_in_training_are_named(tmp_path: Path) -> None:
    report = leak_report(write(tmp_path / "a.pth", LABEL_SETS["coco"]), COCO_NOVEL)
    assert report["clean"] is False
    assert "17 novel: airplane, bus" in describe_leaks(report)


@pytest.mark.parametrize(
    "cfg",
    [
        "load_from = 'yolov8_s_coco.pth'",
        "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', "
        "checkpoint='cspdarknet.pth')))",
        "model = dict({'backbone': {'init_cfg': {'checkpoint': 'a.pth', 'a-b': 1}}})",
        "model = dict(backbone=dict(pretrained='torchvision://resnet50.pth'))",
        dict(load_from="coco.pth"),
        '{"load_from": "coco.pth", "resume": false}',
    ],
)
def test_weights_that_nobody_declares_are_not_called_clean(
    tmp_path: Path, cfg: Any
) -> None:
    path = write(tmp_path / "a.pth", cfg=cfg)
    if isinstance(cfg, str) and cfg.startswith("{"):
        torch.save(dict(meta=dict(cfg=cfg, dataset_meta=dict(classes=COCO_BASE))), path)
    report = leak_report(path, COCO_NOVEL)
    assert report["clean"] is None
    assert "undeclared labels" in describe_leaks(report)
    assert report["began_with"][0].endswith(".pth")
    assert leak_report(path, COCO_NOVEL, ["objects365v2"])["clean"] is False
    assert leak_report(path, COCO_NOVEL, [])["clean"] is True


def test_the_weights_of_clip_are_no_start_of_the_student(tmp_path: Path) -> None:
    cfg = "clip = dict(pretrained='openai')\nmodel = dict(teacher=dict(pretrained='x'))"
    assert leak_report(write(tmp_path / "a.pth", cfg=cfg), COCO_NOVEL)["clean"] is True


@pytest.mark.parametrize(
    "cfg, reason",
    [
        ("resume = True", "it was resumed"),
        ("pretraining = ['imagenet-21k']", "not known here"),
        (
            "train_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[]))",
            "several data sets",
        ),
        (None, "no config that can be read"),
    ],
)
def test_what_is_unclear_is_not_called_clean(
    tmp_path: Path, cfg: Any, reason: str
) -> None:
    report = leak_report(write(tmp_path / "a.pth", cfg=cfg), COCO_NOVEL)
    assert report["clean"] is None
    assert re.search(reason, " ".join(report["unclear"]))


def resumed(path: Path, before: Path | None, **kwargs: Any) -> Path:
    """A checkpoint whose training went on from another one's, or from none."""
    hook, meta = TrainingRecordHook(), write(path, cfg="resume = True", **kwargs)
    content = torch.load(meta)
    if before is not None:
        runner: Any = SimpleNamespace(cfg=dict(resume=True))
        hook.after_load_checkpoint(runner, torch.load(before))
    hook.before_save_checkpoint(SimpleNamespace(), content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("first", "clean"),
    [
        (dict(), True),
        (dict(cfg="load_from = 'a.pth'"), None),
        (dict(cfg="load_from = 'a.pth'\npretraining = ['coco']"), False),
        (dict(cfg="load_from = 'a.pth'\npretraining = []"), True),
        (dict(classes=LABEL_SETS["coco"]), False),
        (dict(classes=None), None),
        (dict(cfg="resume = True"), None),
    ],
)
def test_a_resumed_training_began_as_its_first_part(
    first: dict[str, Any], clean: bool | None, tmp_path: Path
) -> None:
    """However often it was resumed; and with the labels of all its parts."""
    path = write(tmp_path / "0.pth", **first)
    for number in range(1, 4):
        path = resumed(tmp_path / f"{number}.pth", path)
        report = leak_report(path, COCO_NOVEL)
        assert report["clean"] is clean
        assert report["began_with"] == (["a.pth"] if "a.pth" in str(first) else [])
        assert leak_report(path, COCO_NOVEL, ["lvis"])["clean"] is False


def test_a_training_that_found_nothing_to_resume_began_from_nothing(
    tmp_path: Path,
) -> None:
    assert leak_report(resumed(tmp_path / "a.pth", None), COCO_NOVEL)["clean"] is True


def begun(path: Path, weights: Path, cfg: str = "") -> Path:
    """A checkpoint on base classes whose training began with a file, now gone."""
    cfg += f"\nmodel = dict(neck=dict(init_cfg=dict(checkpoint={str(weights)!r})))"
    hook, content = TrainingRecordHook(), torch.load(write(path, cfg=cfg))
    config = Config(dict(model=dict(neck=dict(init_cfg=dict(checkpoint=str(weights))))))
    hook.before_train(SimpleNamespace(cfg=config))  # type: ignore[arg-type]
    hook.before_save_checkpoint(SimpleNamespace(), content)  # type: ignore[arg-type]
    torch.save(content, path)
    weights.unlink()
    return path


@pytest.mark.parametrize(
    "meta, clean",
    [
        (dict(dataset_meta=dict(classes=LABEL_SETS["coco"]), cfg=FROM_NOTHING), False),
        (dict(dataset_meta=dict(CLASSES=LABEL_SETS["coco"])), False),
        (dict(CLASSES=LABEL_SETS["coco"], cfg="load_from = 'a.pth'"), False),
        (dict(dataset_meta=dict(classes=COCO_BASE), cfg=FROM_NOTHING), True),
        (dict(dataset_meta=dict(classes=COCO_BASE)), None),
        (dict(dataset_meta=dict(classes=COCO_BASE), cfg="load_from = 'b.pth'"), None),
        (dict(cfg=FROM_NOTHING), None),
    ],
)
def test_weights_say_themselves_what_they_were_trained_on(
    meta: dict[str, Any], clean: bool | None, tmp_path: Path
) -> None:
    """Whatever is declared; and as long as a training is resumed."""
    start = tmp_path / "start.pth"
    for cfg, declared in (("", clean), ("pretraining = []", clean is not False)):
        torch.save(dict(meta=meta, state_dict={}), start)
        path = begun(tmp_path / "0.pth", start, cfg)
        for number in range(3):
            report = leak_report(path, COCO_NOVEL)
            assert report["clean"] is declared
            assert report["began_with"] == [str(start)]
            if clean is False:
                assert len(report["found"][str(start)]) == 17
                assert f"'{start}': 17 novel" in describe_leaks(report)
            path = resumed(tmp_path / f"{number + 1}.pth", path)


def test_what_the_weights_began_with_counts_too(tmp_path: Path) -> None:
    torch.save(dict(meta=dict(CLASSES=("cat",))), tmp_path / "first.pth")
    second = begun(tmp_path / "second.pth", tmp_path / "first.pth")
    report = leak_report(begun(tmp_path / "third.pth", second), COCO_NOVEL)
    assert report["found"][str(tmp_path / "first.pth")] == {"cat": "cat"}
    assert report["began_with"] == [str(second)] and report["clean"] is False


def test_the_names_of_mms_imagenet_are_read_one_by_one(tmp_path: Path) -> None:
    names = ("tench, Tinca tinca", "tabby, tabby cat", "trolleybus, trolley coach")
    torch.save(dict(meta=dict(dataset_meta=dict(classes=names))), tmp_path / "a.pth")
    report = leak_report(begun(tmp_path / "b.pth", tmp_path / "a.pth"), COCO_NOVEL)
    assert report["found"][str(tmp_path / "a.pth")] == {"cat": "tabby cat"}


def test_declared_label_sets_stand_in_the_config(tmp_path: Path) -> None:
    cfg = "load_from = 'a.pth'\npretraining = ['objects365v1', 'imagenet-1k']"
    report = leak_report(write(tmp_path / "a.pth", cfg=cfg), COCO_NOVEL)
    assert set(report["found"]) == {"trained_on", "objects365v1", "imagenet-1k"}
    assert report["clean"] is False and not report["unclear"]
    assert report["found"]["objects365v1"]["couch"] == "couch"
    cfg = "load_from = 'a.pth'\npretraining = 'coco'"
    report = leak_report(write(tmp_path / "b.pth", cfg=cfg), COCO_NOVEL)
    assert len(report["found"]["coco"]) == 17


def test_synonyms_that_were_trained_on_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", ("feline",), synonyms=(("feline", "cat"),))
    assert leak_report(path, ["cat"])["found"]["trained_on"] == {"cat": "cat"}


def test_a_checkpoint_that_says_nothing_cannot_be_told(tmp_path: Path) -> None:
    report = leak_report(write(tmp_path / "a.pth", None), COCO_NOVEL)
    assert report["clean"] is None
    torch.save({"weight": torch.ones(1)}, tmp_path / "bare.pth")
    assert leak_report(tmp_path / "bare.pth", COCO_NOVEL)["clean"] is None


def test_an_unknown_label_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['flickr'\] are not known.*objects365v1"):
        leak_report(write(tmp_path / "a.pth"), COCO_NOVEL, ["flickr"])


def test_the_config_in_a_checkpoint_is_read_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    cfg = f"open({str(mark)!r}, 'w').close()\nload_from = 'a.pth'"
    assert leak_report(write(tmp_path / "a.pth", cfg=cfg), COCO_NOVEL)["unclear"]
    assert not mark.exists()


def test_the_tool_ends_with_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool, config = load_tool("leaks"), str(ROOT / "configs/kdeov/kdeov_n_ovcoco.py")
    path = str(write(tmp_path / "a.pth"))
    assert tool.main([config, path]) == 0
    assert tool.main([config, path, "--pretraining", "coco"]) == 1
    assert tool.main([config, str(write(tmp_path / "b.pth", None))]) == 2
    assert "17 novel classes" in capsys.readouterr().out


def test_captions_that_were_learnt_are_read_for_novel_names(tmp_path: Path) -> None:
    """Plurals and names of several words count, parts of words do not; no labels."""
    sentences = {
        1: ["two cats on a couch", "a Cat."],
        2: ["a skate-board", "buses by a bus stop"],
        3: ["a category of knives", "a wooden cupboard"],
    }
    file = tmp_path / "captions.json"
    annotations = [
        dict(image_id=i, caption=c) for i, cs in sentences.items() for c in cs
    ]
    file.write_text(json.dumps(dict(images=[], annotations=annotations)))
    learnt = "model = dict(global_head=dict(contrast=dict(type='InfoNCE')))\n"
    data = (
        "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadCaptions', "
        f"ann_file='{file}')]))\n"
    )
    report = leak_report(write(tmp_path / "a.pth", cfg=learnt + data), COCO_NOVEL)
    counts = {"cat": 1, "couch": 1, "skateboard": 1, "bus": 1, "knife": 1}
    assert report["captions"] == {str(file): counts}
    assert report["clean"] is True
    assert "name 5 novel: " in describe_leaks(report)
    # a caption that nothing is compared with teaches nothing
    report = leak_report(write(tmp_path / "b.pth", cfg=data), COCO_NOVEL)
    assert report["captions"] == {}
    # the recipe's file, which is not here
    path = ROOT / "configs/kdeov/kdeov_n_ovcoco.py"
    cfg = Config.fromfile(path, lazy_import=False).to_dict()
    report = leak_report(write(tmp_path / "c.pth", cfg=cfg), COCO_NOVEL)
    assert report["captions"] == {"data/coco/annotations/captions_train2017.json": None}
    assert "not there to be read" in describe_leaks(report)


def test_files_of_weights_are_found_wherever_they_stand() -> None:
    """In lists and tuples too; those of CLIP are not the student's."""
    model = dict(
        backbone=dict(init_cfg=[dict(checkpoint="a.pth"), dict(checkpoint="b.pth")]),
        necks=({"pretrained": "c.pth"}, dict(pretrained=None)),
        text_encoder=dict(pretrained="clip.pth"),
        teacher=[dict(checkpoint="clip.pth")],
    )
    assert weight_files(dict(model=model)) == ["a.pth", "b.pth", "c.pth"]
    assert weight_files(dict(model={}, load_from="d.pth")) == ["d.pth"]
    assert weight_files({}) == []


@pytest.mark.parametrize("content", [b"", b"[]", b'{"annotations": [3]}', None])
def test_captions_that_a_checkpoint_names_are_read_as_json_alone(
    tmp_path: Path, content: bytes | None
) -> None:
    """Not as a pickle, whatever the file is called."""
    file = tmp_path / "captions.pkl"
    file.write_bytes(content if content is not None else pickle.dumps(Ran(tmp_path)))
    cfg = dict(
        model=dict(global_head=dict(contrast=dict(type="InfoNCE"))),
        train_dataloader=dict(type="LoadCaptions", ann_file=str(file)),
    )
    report = leak_report(write(tmp_path / "a.pth", cfg=cfg), COCO_NOVEL)
    assert report["captions"] == {str(file): None}
    assert not (tmp_path / "ran").exists()


class Ran:
    """A pickle that makes a folder where it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder / "ran"),)


def test_the_tool_says_what_is_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool, config = load_tool("leaks"), str(ROOT / "configs/kdeov/kdeov_n_ovcoco.py")
    (tmp_path / "a.pth").write_bytes(b"PK" * 40)
    for name in ("a", "gone"):
        with pytest.raises(SystemExit) as end:
            tool.main([config, str(tmp_path / f"{name}.pth")])
        assert end.value.code == 2 and f"{name}.pth" in capsys.readouterr().err


def test_weights_of_yolo_world_say_what_they_have_seen(tmp_path: Path) -> None:
    file = tmp_path / "yolo_world.pth"
    weights = {"backbone.image_model.stem.conv.weight": torch.ones(1)}
    meta = dict(dataset_meta=dict(classes=COCO_BASE), cfg=FROM_NOTHING)
    torch.save(dict(meta=meta, state_dict=weights), file)
    report = leak_report(file, COCO_NOVEL)
    assert report["clean"] is False and len(report["found"]["objects365v1"]) == 17
    assert [name in str(report["unclear"]) for name in ("GoldG", "CC3M")] == [True] * 2
