"""Options of a command line, and configs with slips."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from kdeov_mm.options import ConfigOptions, config_of, merge_options, work_dir_of

from .conftest import ROOT

DEMO = ROOT / "configs/kdeov/kdeov_n_shapes.py"


def parsed(*given: str) -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=ConfigOptions)
    return parser.parse_args(["--cfg-options", *given]).cfg_options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['a photo of a {}','a {}']", ["a photo of a {}", "a {}"]),
        ("[a photo of a {}, a {}]", ["a photo of a {}", "a {}"]),
        ("('a, b', 'c')", ("a, b", "c")),
        ("a photo of a {}", "a photo of a {}"),
        ("'my data/'", "my data/"),
        ("[(1, 2), (3, 4)]", [(1, 2), (3, 4)]),
        ("1, 2.5,true", [1, 2.5, True]),
        ("[a b, [c d, 3]]", ["a b", ["c d", 3]]),
        ("{'type': 'nms', 'iou_threshold': 0.7}", dict(type="nms", iou_threshold=0.7)),
        ("None", None),
        ("3", 3),
    ],
)
def test_values_are_taken_as_typed(text: str, value: Any) -> None:
    assert parsed(f"key={text}") == dict(key=value)


@pytest.mark.parametrize("text", ["key", "key=a,(b", "key=dict(type='nms',a=1)"])
def test_what_is_no_option_ends_with_usage(text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(text)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("data_root", "nothing uses.*variable.*train_dataloader.dataset.data_root"),
        ("image_size", r"variable.*pipeline.2.scale"),
        ("train_pipeline.0.type", "variable"),
        ("modle.neck", "nothing reads 'modle', did you mean model"),
        ("no_such_thing", "nothing reads 'no_such_thing'"),
        ("train_cfg.max_iter", "max_iter', did you mean max_iters"),
        ("model.bakcbone.depth", "did you mean backbone"),
        ("train_dataloader.dataset.pipeline.9.type", "is a list of 5"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(option: str, message: str) -> None:
    cfg = Config.fromfile(DEMO, lazy_import=False)
    before = cfg.to_dict()
    with pytest.raises(ValueError, match=message):
        merge_options(cfg, {option: 1})
    assert cfg.to_dict() == before


def test_options_that_are_read_change_the_config() -> None:
    options = {
        "train_cfg.max_iters": 3,
        "train_dataloader.prefetch_factor": 2,
        "train_dataloader.dataset.pipeline.2.scale": (64, 64),
        "load_from": "a.pth",
        "default_hooks.checkpoint.save_best": "auto",
        "tta_model.type": "DetTTAModel",
    }
    cfg = config_of(DEMO, options)
    for key, value in options.items():
        place: Any = cfg
        for part in key.split("."):
            place = place[int(part)] if part.isdigit() else place[part]
        assert place == value


@pytest.mark.parametrize(
    "text",
    [
        'base = ("raccoon")\nnovel = ()\nwords = base + novel\n',
        'train_dataloader = dict(dataset=dict(metainfo=dict(classes=("raccoon"))))',
        'test_dataloader = dict(dataset=dict(metainfo=dict(novel_classes="cat")))',
    ],
)
def test_a_missing_comma_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "my_data.py").write_text(text)
    with pytest.raises(ValueError, match="my_data.py.*a tuple of one needs a comma"):
        config_of(tmp_path / "my_data.py")


def test_a_file_of_names_is_no_missing_comma(tmp_path: Path) -> None:
    names, file = tmp_path / "names.txt", tmp_path / "my_data.py"
    names.write_text("cat\ndog\n")
    file.write_text(f"val_dataloader = dict(metainfo=dict(classes={str(names)!r}))")
    assert config_of(file).val_dataloader.metainfo.classes == str(names)


def test_the_folder_of_a_run_is_named_or_refused() -> None:
    assert work_dir_of("configs/a.py", Config(), None) == "work_dirs/a"
    cfg = Config(dict(work_dir="b"))
    assert work_dir_of("configs/a.py", cfg, None) == "b"
    assert work_dir_of("configs/a.py", cfg, "c") == "c"
    for empty in ("", " "):
        with pytest.raises(ValueError, match="--work-dir: expected a path, got"):
            work_dir_of("configs/a.py", cfg, empty)
