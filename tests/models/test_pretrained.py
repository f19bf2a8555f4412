"""Weights of files: all of them or an error, in each layout that the docs list."""

import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from safetensors.torch import save_file
from torch import Tensor, nn

from kdeov_mm.datasets.coco import COCO_NOVEL
from kdeov_mm.evaluation import LABEL_SETS, describe_leaks, leak_report
from kdeov_mm.models import KDEOVDetector

from ..conftest import ROOT

COUNTERS = "num_batches_tracked"
RESNET: dict[str, Any] = dict(type="mmdet.ResNet", depth=18, out_indices=(3,))
DARKNET: dict[str, Any] = dict(
    type="mmyolo.YOLOv8CSPDarknet",
    deepen_factor=0.33,
    widen_factor=0.25,
    out_indices=(4,),
)
EFFICIENTNET: dict[str, Any] = dict(type="mmdet.EfficientNet", out_indices=(6,))


def named(file: Any, **more: Any) -> dict[str, Any]:
    """The init_cfg of a file."""
    return dict(type="Pretrained", checkpoint=str(file), **more)


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def weights(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Random weights of a module; statistics, too, unlike those of a new one."""
    return {
        prefix + k: torch.rand_like(v) if v.is_floating_point() else v + 7
        for k, v in module.state_dict().items()
    }


def student(backbone: dict[str, Any], channels: int = 512) -> Any:
    """An initialised ImageTextModel with this backbone."""
    file = ROOT / "configs/image_text/r50_shapes.py"
    cfg = Config.fromfile(file, lazy_import=False).model
    cfg.teacher = cfg.global_head.contrast = None
    cfg.backbone = backbone
    cfg.global_head.projection.in_channels = [channels]
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def has(part: nn.Module, state: dict[str, Tensor], prefix: str = "") -> bool:
    """Whether all weights of a part are those of a file."""
    same = [
        value.equal(state[prefix + key])
        for key, value in part.state_dict().items()
        if prefix + key in state or not key.endswith(COUNTERS)
    ]
    return len(same) > 50 and all(same)


# --------------------------------------------------------------------- layouts


@pytest.mark.parametrize("depth, channels", [(18, 512), (50, 2048)])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_resnet_of_another_library(
    library: str, depth: int, channels: int, tmp_path: Path
) -> None:
    if library == "timm":
        state = weights(timm.create_model(f"resnet{depth}", pretrained=False))
    else:
        state = weights(torchvision.models.get_model(f"resnet{depth}", weights=None))
    # as it is, an old one without counters, a training's checkpoint, safetensors
    old = {k: v for k, v in state.items() if not k.endswith(COUNTERS)}
    files = [
        write(tmp_path / "plain.pth", state),
        write(tmp_path / "old.pth", old),
        write(tmp_path / "last.pth.tar", dict(state_dict=state, epoch=1, arch="r")),
        tmp_path / "model.safetensors",
    ]
    save_file(state, files[-1])
    for file in files:
        model = student(dict(RESNET, depth=depth, init_cfg=named(file)), channels)
        assert has(model.backbone, old if "old" in file.name else state), file


@pytest.mark.parametrize(
    "backbone, built, channels",
    [
        (RESNET, RESNET, 512),
        (DARKNET, DARKNET, 256),
        (EFFICIENTNET, EFFICIENTNET, 1280),
        # a detector builds it without its last stage
        (EFFICIENTNET, dict(EFFICIENTNET, out_indices=(5,)), 320),
    ],
    ids=["resnet", "csp_darknet", "efficientnet", "without_the_last_stage"],
)
def test_the_classifiers_of_mmpretrain(
    backbone: dict[str, Any], built: dict[str, Any], channels: int, tmp_path: Path
) -> None:
    state = weights(MODELS.build(backbone), "backbone.")
    state["head.fc.weight"] = torch.rand(1000, channels)
    file = write(tmp_path / "a.pth", dict(meta=dict(epoch=100), state_dict=state))
    for prefix in (None, "backbone", "backbone."):
        init_cfg = named(file, prefix=prefix)
        model = student(dict(built, init_cfg=init_cfg), channels)
        assert has(model.backbone, state, "backbone.")


@pytest.fixture(scope="module")
def yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain YOLOv8-n of mmyolo, trained on COCO's 80 classes."""
    cfg = Config.fromfile(ROOT / "configs/_base_/models/yolov8_n.py").model
    model = MODELS.build(cfg)
    content = dict(
        meta=dict(
            dataset_meta=dict(classes=LABEL_SETS["coco"]),
            cfg="model = dict(type='YOLODetector')\nload_from = None\n",
        ),
        state_dict=weights(model),
        ema_state_dict=weights(model, "module."),
        message_hub=dict(),
    )
    return write(tmp_path_factory.mktemp("yolo") / "yolov8_n_coco.pth", content)


def test_backbone_and_neck_of_a_detector(
    yolo: Path, build_detector: Callable[..., KDEOVDetector]
) -> None:
    state = torch.load(yolo)["state_dict"]
    both = {"backbone.init_cfg": named(yolo), "neck.init_cfg": named(yolo)}
    model = build_detector(**both)
    assert has(model.backbone, state, "backbone.")
    assert has(model.neck, state, "neck.")
    # the rest begins as without the file
    plain = build_detector()
    for name, value in plain.bbox_head.state_dict().items():
        if "classifier" in name:
            assert value.equal(model.bbox_head.state_dict()[name])
    # and the neck does where only the backbone is asked for
    model = build_detector(**{"backbone.init_cfg": named(yolo)})
    assert has(model.backbone, state, "backbone.")
    assert not has(model.neck, state, "neck.")


def test_weights_of_another_part_by_their_prefix(tmp_path: Path) -> None:
    state = weights(MODELS.build(RESNET), "image.body.")
    file = write(tmp_path / "a.pth", dict(state_dict=state))
    model = student(dict(RESNET, init_cfg=named(file, prefix="image.body")))
    assert has(model.backbone, state, "image.body.")


def test_torchvisions_name_is_the_file_that_torch_hub_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    kinds = torchvision.models.ResNet18_Weights
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / Path(kinds.IMAGENET1K_V1.url).name
    state = weights(torchvision.models.resnet18())
    write(file, state)
    for name in ("resnet18", "resnet18.imagenet1k_v1"):
        init_cfg = named(f"torchvision://{name}")
        assert has(student(dict(RESNET, init_cfg=init_cfg)).backbone, state)
    # mmdet's older way to say it
    model = student(dict(RESNET, pretrained="torchvision://resnet18"))
    assert has(model.backbone, state)


def test_other_entries_of_the_init_cfg_stay(tmp_path: Path) -> None:
    state = weights(torchvision.models.resnet18())
    file = write(tmp_path / "a.pth", state)
    ones = dict(type="Constant", val=1.0, layer="Conv2d")
    model = student(dict(RESNET, init_cfg=[named(file), ones]))
    assert has(model.backbone, state)
    assert model.backbone.init_cfg == [ones]


# -------------------------------------------------------------------- refusals


def refused(init_cfg: dict[str, Any], backbone: dict[str, Any] = RESNET) -> str:
    """What is said; one sentence, whichever the error."""
    with pytest.raises((ValueError, OSError)) as error:
        student(dict(backbone, init_cfg=init_cfg))
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    return text


@pytest.mark.parametrize(
    "name, parts",
    [
        # another depth: fewer weights, other shapes, more weights
        ("resnet34", ["96 names or shapes", "layer1.2.conv1.weight has no place"]),
        ("resnet50", ["layer1.0.conv1.weight is (64, 64, 1, 1), not (64, 64, 3, 3)"]),
        (
            "mobilenet_v2",
            ["conv1.weight is missing", "names begin with classifier, features"],
        ),
    ],
)
def test_another_architecture(name: str, parts: list[str], tmp_path: Path) -> None:
    state = torchvision.models.get_model(name, weights=None).state_dict()
    said = refused(named(write(tmp_path / "other.pth", state)))
    assert "other.pth does not fit model.backbone, a ResNet" in said
    assert "names or shapes differ" in said
    for part in parts:
        assert part in said, said


def test_a_deeper_resnet_has_all_weights_and_is_another(tmp_path: Path) -> None:
    state = torchvision.models.resnet101().state_dict()
    deep = dict(RESNET, depth=50)
    said = refused(named(write(tmp_path / "r101.pth", state)), deep)
    assert "306 names or shapes differ (layer3.6.conv1.weight has no place" in said


def test_a_part_that_the_file_does_not_have(yolo: Path, tmp_path: Path) -> None:
    said = refused(named(yolo, prefix="student.backbone."), DARKNET)
    assert "begin with backbone, bbox_head, neck" in said and "`prefix`" in said
    file = write(tmp_path / "a.pth", torchvision.models.resnet18().state_dict())
    assert "begin with bn1, conv1, fc, layer1" in refused(named(file, prefix="neck"))


@pytest.mark.parametrize(
    "content, start",
    [
        (b"<!DOCTYPE html><html></html>", "<!DOCTYPE html>"),
        (b"", "b''"),
        (b"PK\x03\x04 and then nothing", "PK"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_without_weights(
    content: bytes, start: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    said = refused(named(tmp_path / name))
    assert f"{name} holds no weights" in said and start in said


def test_a_whole_pickled_model_is_no_file_of_weights(tmp_path: Path) -> None:
    for content in (nn.Linear(1, 1), [torch.ones(1)]):
        said = refused(named(write(tmp_path / "a.pt", content)))
        assert "whole pickled model" in said


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    said = refused(named(tmp_path / "gone.pth"))
    assert "gone.pth are not there" in said and "torchvision://" in said


def test_a_download_that_fails_says_where_the_file_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    said = refused(named("torchvision://resnet18"))
    assert "https://download.pytorch.org/models/resnet18-" in said
    assert f"store it as {tmp_path}/checkpoints/resnet18-" in said
    said = refused(named("https://example.org/weights/a.pth?download=1"))
    assert "no network" in said and f"{tmp_path}/checkpoints/a.pth" in said
    assert "no weights 'resnet51'" in refused(named("torchvision://resnet51"))


# ------------------------------------------------------------------- trainings


class Start(Hook):
    """Ends a training after a step; keeps the backbone as it began."""

    def before_train(self, runner: Runner) -> None:
        state = runner.model.backbone.state_dict()
        self.state = {k: v.clone() for k, v in state.items()}

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        runner.train_loop.stop_training = True


def test_a_training_begins_with_them_and_its_checkpoint_says_so(
    yolo: Path, load_config: Callable[..., Config], tmp_path: Path
) -> None:
    """The novel classes had labels, though nobody declares it and the file is gone."""
    state = torch.load(yolo)["state_dict"]
    file = tmp_path / "start.pth"
    file.write_bytes(yolo.read_bytes())
    cfg = load_config("ablations/default.py")
    cfg.update(work_dir=str(tmp_path / "work"), experiment_name="start")
    cfg.train_cfg.max_iters, cfg.param_scheduler = 1, None
    cfg.model.backbone.init_cfg = named(file)
    runner, start = Runner.from_cfg(cfg), Start()
    runner.register_hook(start)
    runner.train()
    own = start.state
    assert len(own) > 50 and all(
        v.equal(state[f"backbone.{k}"]) for k, v in own.items()
    )
    file.unlink()
    report = leak_report(tmp_path / "work/iter_1.pth", COCO_NOVEL)
    assert report["began_with"] == [str(file)]
    assert set(report["found"][str(file)]) == set(COCO_NOVEL)
    assert report["clean"] is False
    assert "NOT open-vocabulary figures" in describe_leaks(report)
