"""Fixtures: a tiny CLIP with random weights, a tiny world, a small detector."""

import gc
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import kdeov_mm  # isort: skip  (compat comes before anything of mmdet or mmyolo)

import numpy as np
import open_clip
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from kdeov_mm.clip.source import TEACHERS
from kdeov_mm.datasets.shapes_files import write_world
from kdeov_mm.models import KDEOVDetector, OVHead, RegionDistillation, RegionEmbeds
from kdeov_mm.vocabulary import as_vocabulary

from .standins import write_label_maps, write_standins

ROOT = Path(kdeov_mm.__file__).resolve().parents[1]
WORDS = ("red ball", "blue cube", "green star", "old house", "small dog", "tall tree")
EMBED_DIMS = 32
IMAGE_SIZE = 32
CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": EMBED_DIMS,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, a text cache of our own, and no second spent on nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDEOV_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        # a Runner formats its config six times: two thirds of a run of one step
        patch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, 0))
        # every data set of mmengine collects garbage: what is imported is none
        gc.freeze()
        yield


@pytest.fixture(autouse=True)
def same_start() -> None:
    """Every test begins with the same seed, in mmdet's scope, outside of a training."""
    MessageHub._instance_dict.clear()
    torch.manual_seed(0)
    init_default_scope("mmdet")


def write_clip(folder: Path, seed: int = 0) -> str:
    """A CLIP with random weights in open_clip's layout; its `model` string."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**CLIP_CONFIG)
    for parameter in model.transformer.parameters():
        if parameter.ndim == 2:  # as initialised, it hardly reads the words
            torch.nn.init.normal_(parameter, std=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), str(folder / "open_clip_model.safetensors"))
    statistics = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CLIP_CONFIG, "preprocess_cfg": statistics})
    )
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def build_detector(tiny_clip: str) -> Callable[..., KDEOVDetector]:
    """Build the base student around the tiny CLIP; keywords change its config."""
    return partial(detector_of, tiny_clip)


def detector_of(clip: str, **changes: Any) -> KDEOVDetector:
    """The base student around a CLIP; keywords change its config."""
    file = ROOT / "configs/_base_/models/kdeov_yolov8_n.py"
    cfg = Config(Config.fromfile(file, lazy_import=False).model.to_dict())
    cfg.merge_from_dict(
        {
            "text_encoder.model": clip,
            "teacher.model": clip,
            "bbox_head.head_module.embed_dims": EMBED_DIMS,
            **changes,
        }
    )
    torch.manual_seed(0)
    init_default_scope("mmdet")  # fixtures of a module come before same_start
    model = MODELS.build(cfg)
    model.init_weights()
    return model


@pytest.fixture(scope="session")
def lively(build_detector: Callable[..., KDEOVDetector]) -> KDEOVDetector:
    """An eval-mode student that, untrained, finds many boxes and keeps them all."""
    keep = dict(score_thr=0.0, nms_pre=10**6, max_per_img=10**6)
    changes = {f"test_cfg.{key}": value for key, value in keep.items()}
    return enliven(build_detector(teacher=None, distill=None, **changes))


def enliven(model: KDEOVDetector) -> KDEOVDetector:
    """Scores about one half, boxes of a few strides, statistics of noise pictures."""
    torch.manual_seed(0)
    model.train()
    head = model.bbox_head.head_module
    bins = torch.arange(head.reg_max, dtype=torch.float)
    with torch.no_grad():
        head.classifier.bias.zero_()
        for branch in head.reg_preds:
            branch[-1].bias.copy_(-(bins - 1).square().repeat(4) / 4)
        for _ in range(8):
            head.embed(model.extract_feat(torch.rand(4, 3, 64, 64)))
    return model.eval()


def loss_and_regions(
    head: OVHead, feats: Sequence[Tensor], vectors: Tensor, samples: list[Any]
) -> tuple[dict[str, Tensor], RegionEmbeds]:
    """Detection losses and locations, without a distillation between."""
    located = head.embed(feats)
    return head.losses(located, vectors, samples), located.regions


def match(
    head: RegionDistillation, boxes: Tensor, regions: RegionEmbeds, image: Any = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The matched pairs: locations, boxes and weights, (m,) each."""
    images = torch.as_tensor(image).expand(len(boxes))
    where, weight = head.match(boxes, regions, images)
    which = (weight > 0).nonzero()[:, 0]
    return where[weight > 0], which, weight[weight > 0]


def make_sample(
    boxes: Sequence[Sequence[float]] | Tensor = (),
    labels: Sequence[int] = (),
    words: Sequence[str | Sequence[str]] = WORDS,
    shape: tuple[int, int] = (64, 64),
    **metainfo: Any,
) -> DetDataSample:
    """A sample with ground truth: boxes xyxy in pixels, labels that index `words`."""
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_shape=shape,
            ori_shape=shape,
            batch_input_shape=shape,
            pad_shape=shape,
            scale_factor=(1.0, 1.0),
            words=as_vocabulary(words).words,
            **metainfo,
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.as_tensor(labels, dtype=torch.long),
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    return sample


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in world, tiny."""
    root = tmp_path_factory.mktemp("world") / "shapes"
    write_world(root, num_train=12, num_val=8)
    return root


@pytest.fixture(scope="session")
def raccoons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures in VOC's format; the last object of each is no raccoon."""
    root, rng = tmp_path_factory.mktemp("raccoon"), np.random.default_rng(0)
    for folder in ("images", "annotations"):
        (root / folder).mkdir()
    for i in range(8):
        pixels = rng.integers(256, size=(90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/r-{i}.jpg")
        x, y = rng.integers(1, 40, 2)
        box = (x, y, x + 50, y + 40)
        names = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        bndbox = "".join(f"<{name}>{value}</{name}>" for name, value in names)
        objects = "".join(
            f"<object><name>{name}</name><bndbox>{bndbox}</bndbox></object>"
            for name in ("raccoon", "fence")
        )
        (root / f"annotations/r-{i}.xml").write_text(
            "<annotation><size><width>120</width><height>90</height></size>"
            f"{objects}</annotation>"
        )
    for name, part in (("train", range(5)), ("test", range(5, 8))):
        (root / f"{name}.txt").write_text("".join(f"r-{i}\n" for i in part))
    return root


@pytest.fixture(scope="session")
def world_1203(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in world of LVIS's size, tiny."""
    root = tmp_path_factory.mktemp("world") / "shapes_1203"
    write_world(root, num_train=12, num_val=8, world="1203")
    return root


@pytest.fixture(scope="session")
def world_8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in world to fine-tune on, tiny."""
    root = tmp_path_factory.mktemp("world") / "shapes_8"
    write_world(root, num_train=12, num_val=8, world="8")
    # as if a student had found them all
    everything = root / "annotations/instances_train_all.json"
    (root / "annotations/kept.json").write_bytes(everything.read_bytes())
    return root


@pytest.fixture(scope="session")
def world_hard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hard built-in world, tiny."""
    root = tmp_path_factory.mktemp("world") / "shapes_hard"
    write_world(root, num_train=12, num_val=8, world="hard")
    return root


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO, LVIS and VOC: stand-ins of a few pictures, and their splits."""
    root = tmp_path_factory.mktemp("stock")
    write_standins(root, train=8, val=4)
    write_label_maps(root / "VOCdevkit", root / "coco")
    # as if a large detector had found them all
    folder = root / "coco/annotations"
    labels = (folder / "instances_train2017.json").read_bytes()
    (folder / "world_labels.json").write_bytes(labels)
    return root


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of ImageNet's folders, pictures of noise."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for folder in ("n01443537", "n01514859", "n01518878"):
        (root / "val" / folder).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(256, size=(60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "val" / folder / f"{i}.JPEG")
    return root


@pytest.fixture(scope="session")
def load_config(
    world: Path,
    world_1203: Path,
    world_8: Path,
    world_hard: Path,
    raccoons: Path,
    stock: Path,
    imagenet: Path,
    tiny_clip: str,
) -> Callable[..., Config]:
    """Read a config of ours, with tiny data and (unless `clip` is False) CLIP."""
    places = {
        "data/shapes/": f"{world}/",
        "data/shapes_1203/": f"{world_1203}/",
        "data/shapes_8/": f"{world_8}/",
        "data/shapes_hard/": f"{world_hard}/",
        "data/raccoon/": f"{raccoons}/",
        "data/coco/": f"{stock}/coco/",
        "data/lvis/": f"{stock}/lvis/",
        "data/imagenet/": f"{imagenet}/",
        "data/VOCdevkit/": f"{stock}/VOCdevkit/",
    }

    def load(name: str | Path, clip: bool = True) -> Config:
        cfg = Config.fromfile(ROOT / "configs/kdeov" / name, lazy_import=False)
        cfg = Config(moved(cfg.to_dict(), places))
        # another config's checkpoint and a download, which may not be there
        cfg.load_from = None
        cfg.model.backbone.pop("init_cfg", None)
        others = (cfg.test_cfg.get("others") or {}).values()
        loaders = cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader
        for loader in (*loaders, *(test.dataloader for test in others)):
            loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        if not clip and cfg.model.text_encoder.model in TEACHERS:
            return cfg
        towers = [cfg.model.text_encoder, cfg.model.get("teacher")]
        for tower in filter(None, towers):
            tower.update(model=tiny_clip, pretrained=None)
        if cfg.model.get("fusion"):
            cfg.model.fusion.text_dims = EMBED_DIMS
        if cfg.model.get("bbox_head"):
            module = cfg.model.bbox_head.head_module
            module.embed_dims = EMBED_DIMS
            if module.get("adapter"):
                module.adapter.text_dims = EMBED_DIMS
        for name in ("bbox_head", "image_head"):
            if region_head := (cfg.model.get("roi_head") or {}).get(name):
                region_head.embed_dims = EMBED_DIMS
        if cfg.model.get("global_head"):
            cfg.model.global_head.projection.embed_dims = EMBED_DIMS
        if cfg.model.get("seg_head"):
            dims = EMBED_DIMS if cfg.model.get("clip_proj") is None else 16
            cfg.model.proj.embed_dims = cfg.model.seg_head.embed_dims = dims
            if dims != EMBED_DIMS:
                cfg.model.clip_proj = EMBED_DIMS
            if whole := (cfg.model.get("distill") or {}).get("whole"):
                whole.projection.embed_dims = dims
        return cfg

    return load


def moved(value: Any, places: dict[str, str]) -> Any:
    """The config with each of `places`, at the start of a string, moved; smaller."""
    if value in ((640, 640), (224, 224)):
        return (160, 160)
    if value == "imagenet-1k":  # words of its own for the three folders of the test
        return ("goldfish", "hen", "ostrich")
    if isinstance(value, dict):
        return {key: moved(v, places) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(v, places) for v in value)
    if isinstance(value, str):
        for old, new in places.items():
            if value.startswith(old):
                return new + value.removeprefix(old)
    return value


def load_tool(name: str) -> Any:
    """A script of tools/ as a module."""
    (path,) = (ROOT / "tools").rglob(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


class Program:
    """What a pickle of it makes when it is read: a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def run_env(**extra: str) -> dict[str, str]:
    """The environment of a tool that a test starts."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **extra}


def run_two_processes(script: str, folder: Path, *arguments: str) -> None:
    """Run a script in two distributed processes; it is given a folder and arguments."""
    file = folder / "process.py"
    # gloo's threads now and then abort a process that ends in the ordinary way
    file.write_text(f"{script}\ndist.barrier()\nimport os\nos._exit(0)\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, f"--master_port={port}", str(file), str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=run_env(CUDA_VISIBLE_DEVICES=""),
    )
    assert done.returncode == 0, done.stderr[-3000:]
