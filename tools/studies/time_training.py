"""How fast a training step and the loading of its images are, on this machine.

    python tools/studies/time_training.py --device cuda --out figures.json
    python tools/studies/time_training.py --size 160 --batches 2 --steps 1  # a CPU

Makes a stand-in for COCO, and times plain YOLOv8-n, ours without and with the live
teacher (ViT-B/32, random weights), for each batch size and, on a GPU, with and without
AMP; then the data loading of one worker. On the built-in world, 16 images of 160 px:
plain YOLOv8-n, the demo, and the demo with a store in place of its teacher, which has
the crops at the labelled boxes alone. All models of a data set see one fixed batch.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.profiler import ProfilerActivity, profile

from benchmark_models import picture
from benchmark_parts import save_tower
from kdeov_mm.datasets import OVCocoDataset
from kdeov_mm.datasets.shapes_files import write_world
from kdeov_mm.engine.fill_store import fill_store
from pages import ROOT, write_json

OURS = "configs/kdeov/kdeov_n_ovcoco.py"
PLAIN = "configs/_base_/models/yolov8_n.py"
DEMO = "configs/kdeov/kdeov_n_shapes.py"
KINDS = ("plain", "no teacher", "live teacher")
DEMO_KINDS = ("demo, plain", "demo", "demo, cached teacher")
# operators after which the host knows a value of the device
STOPS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", type=int, default=640, help="side of the inputs")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    kinds = (*KINDS, *DEMO_KINDS)
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--images", type=int, default=128, help="of the stand-in")
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args(argv)
    init_default_scope("mmdet")
    MMLogger.get_instance("time_training", log_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        report = measure(args, Path(folder))
    print(json.dumps(report, indent=1))
    if args.out:
        write_json(args.out, report)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures, of one stand-in."""
    make_stand_in(folder, args.images)
    save_tower(folder)
    cfg = config_of(args, folder)
    report: dict[str, Any] = dict(device=args.device, torch=torch.__version__, steps=[])
    report["loading"] = time_loading(cfg)
    data = batch_of(cfg, max(args.batches))
    precisions = (False, True) if args.device != "cpu" else (False,)
    for kind, amp in itertools.product(args.kinds, precisions):
        if kind in DEMO_KINDS:
            world = demo_config_of(kind, folder)
            parts = [batch_of(world, 16)]
        else:
            world = cfg
            parts = [{k: v[:batch] for k, v in data.items()} for batch in args.batches]
        for part in parts:
            figures = time_step(kind, world, part, amp, args)
            batch = len(part["inputs"])
            report["steps"].append(dict(kind=kind, amp=amp, batch=batch, **figures))
    return report


def batch_of(cfg: Config, size: int) -> dict[str, Any]:
    """The first batch of a training."""
    loader = dict(
        cfg.train_dataloader, batch_size=size, num_workers=0, persistent_workers=False
    )
    return next(iter(Runner.build_dataloader(loader, seed=0)))


def make_stand_in(folder: Path, number: int) -> None:
    """Pictures of COCO's size, seven boxes and a caption of each, in its layout."""
    rng = np.random.default_rng(0)
    (folder / "train2017").mkdir()
    (folder / "annotations").mkdir()
    whole = picture(1280)
    names = OVCocoDataset.METAINFO["classes"]
    base = [
        i for i, n in enumerate(names) if n in OVCocoDataset.METAINFO["base_classes"]
    ]
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for i in range(number):
        y, x = rng.integers(0, (1280 - 480, 1280 - 640))
        file = f"{i:06d}.jpg"
        part, quality = whole[y : y + 480, x : x + 640], [cv2.IMWRITE_JPEG_QUALITY, 90]
        cv2.imwrite(str(folder / "train2017" / file), part, quality)
        images.append(dict(id=i, file_name=file, width=640, height=480))
        captions.append(dict(id=i, image_id=i, caption=f"picture {i}"))
        for _ in range(7):
            w, h = np.exp(rng.uniform(np.log(12), np.log(400), 2)).tolist()
            box = [*rng.uniform(0, (640 - w, 480 - h)).tolist(), w, h]
            about = dict(id=len(boxes) + 1, image_id=i, area=w * h, iscrowd=0)
            boxes.append(dict(about, bbox=box, category_id=int(rng.choice(base)) + 1))
    kinds = [dict(id=i + 1, name=name) for i, name in enumerate(names)]
    for name, content in (
        ("ov_coco_train_base", boxes),
        ("captions_train2017", captions),
    ):
        record = dict(images=images, annotations=content, categories=kinds)
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(record))


def config_of(args: argparse.Namespace, folder: Path) -> Config:
    """The training on OV-COCO, its files in the folder."""
    cfg = Config.fromfile(str(ROOT / OURS), lazy_import=False)
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = f"{folder}/"
    for step in dataset.pipeline:
        if step.type == "LoadCaptions":
            step.ann_file = f"{folder}/annotations/captions_train2017.json"
        if step.type == "LargeScaleJitter":
            step.size = args.size
    clip = dict(model=f"local-dir:{folder}", pretrained=None)
    cfg.model.text_encoder.update(clip, cache_dir=f"{folder}/cache")
    cfg.model.teacher.update(clip)
    return cfg


def demo_config_of(kind: str, folder: Path) -> Config:
    """The demo on a small world of its own; with a store, filled, where asked for."""
    write_world(folder / "shapes", num_train=32, num_val=1)
    cfg = Config.fromfile(str(ROOT / DEMO), lazy_import=False)
    cfg.train_dataloader.dataset.data_root = f"{folder}/shapes/"
    if kind == "demo, cached teacher":
        store = f"{folder}/embeddings"
        cfg.model.teacher.update(type="CachedTeacher", store=store)
        cfg.model.distill.region.sources = ("truth",)
        fill_store(cfg)
    return cfg


def time_loading(cfg: Config, batches: int = 6) -> dict[str, float]:
    """Images per second of one worker."""
    loader = dict(cfg.train_dataloader, num_workers=1, batch_size=16)
    made = iter(Runner.build_dataloader(loader, seed=0))
    for _ in range(3):  # the worker starts, and is ahead
        next(made)
    start = time.perf_counter()
    number = sum(1 for _, _ in zip(range(batches), made))
    return dict(images_per_s=round(16 * number / (time.perf_counter() - start), 1))


def time_step(
    kind: str, cfg: Config, data: dict[str, Any], amp: bool, args: argparse.Namespace
) -> dict[str, Any]:
    """Milliseconds of a step (the median), and what a profile of one shows."""
    torch.manual_seed(0)
    model_cfg = cfg.model.copy()
    if kind.endswith("plain"):
        model_cfg = Config.fromfile(str(ROOT / PLAIN), lazy_import=False).model
    elif kind == "no teacher":
        model_cfg.update(teacher=None, distill=None, global_head=None)
    model = MODELS.build(model_cfg)
    model.init_weights()
    if kind == "demo, cached teacher":
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        model.teacher.admit(dataset, model.distill_heads, model.data_preprocessor)
    model.to(args.device).train()
    optim = cfg.optim_wrapper.copy()
    if amp:
        optim.update(type="AmpOptimWrapper", loss_scale="dynamic")
    wrapper = build_optim_wrapper(model, optim)
    gpu = args.device != "cpu"

    def step() -> float:
        # a step changes its samples
        samples = [sample.clone() for sample in data["data_samples"]]
        if kind.endswith("plain"):  # it has 80 classes
            for sample in samples:
                sample.gt_instances.labels %= 80
        start = time.perf_counter()
        model.train_step(dict(inputs=data["inputs"], data_samples=samples), wrapper)
        if gpu:
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    for _ in range(3 if gpu else 1):
        step()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    took = statistics.median(step() for _ in range(args.steps))
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=kinds) as seen:
        step()
    counts = {event.key: event.count for event in seen.key_averages()}
    figures: dict[str, Any] = dict(
        ms=round(took, 1),
        images_per_s=round(1000 * len(data["inputs"]) / took, 1),
        operators=sum(n for key, n in counts.items() if key.startswith("aten::")),
        stops=sum(counts.get(key, 0) for key in STOPS),
    )
    if gpu:
        busy = sum(event.self_device_time_total for event in seen.key_averages()) / 1000
        figures.update(
            launches=counts.get("cudaLaunchKernel", 0),
            synchronisations=counts.get("cudaStreamSynchronize", 0),
            gpu_ms=round(busy, 1),
            busy=round(busy / took, 3),
            peak_mib=round(torch.cuda.max_memory_allocated() / 2**20),
        )
    return figures


if __name__ == "__main__":
    main()
