"""What benchmark.py measures besides speed: filter, new words, training."""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmark_models import (
    FILTER,
    ours,
    picture,
    random_vocabulary,
    some_words,
    torch_calls,
    trained,
)
from kdeov_mm.clip import CLIPTextEncoder
from kdeov_mm.datasets import shapes
from kdeov_mm.vocabulary import Asked, as_vocabulary
from pages import ROOT

TRAINED = "configs/kdeov/kdeov_n_shapes.py"


@torch.no_grad()
def share_kept(args: argparse.Namespace, locations: int = FILTER) -> dict[str, Any]:
    """How much of the exact result the filter of candidate locations keeps.

    ``scores``: of the 300 best pairs of a location and a word; ``boxes``: of the boxes
    after the suppression, at most 300, those that come out again within half a pixel.
    """
    model = trained(args) if args.checkpoint else ours(args, "n")
    number = max(args.words)
    words: Asked = random_vocabulary(model, number)
    if args.checkpoint:
        words = some_words(number)
    # two folded detectors, of which one looks at a few locations
    exact, near = model.fold(words), model.fold(words, candidates=locations)
    kept: dict[str, list[float]] = dict(scores=[], boxes=[])
    for i in range(args.scenes):
        scene = shapes.draw_scene(shapes.scene_rng(0, 1, i), shapes.WORLD_1203)
        whole = Image.fromarray(scene.image).resize((args.side, args.side))
        image = np.ascontiguousarray(np.asarray(whole)[..., ::-1])
        kept["scores"].append(share_of_places(exact, near, image))
        # a box is kept if one of the same word lies within half a pixel
        one, other = (boxes_of(each, image) for each in (exact, near))
        far = torch.cdist(one.bboxes, other.bboxes, p=torch.inf)
        far = far + (one.labels[:, None] != other.labels) * 1e4
        if len(one):
            kept["boxes"].append((far.amin(1) < 0.5).float().mean().item())
    return dict(
        model=str(args.checkpoint or "random weights"),
        words=number,
        places=locations,
        scenes=args.scenes,
        **{key: round(statistics.mean(v), 5) for key, v in kept.items() if v},
        worst_scene={key: round(min(v), 5) for key, v in kept.items() if v},
    )


def boxes_of(model: Any, image: np.ndarray) -> Any:
    """All that a folded detector finds in a picture."""
    meta = dict(img_shape=image.shape[:2], ori_shape=image.shape[:2])
    sample = DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0)))
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return model.test_step(dict(inputs=[pixels], data_samples=[sample]))[
        0
    ].pred_instances


def share_of_places(exact: Any, near: Any, image: np.ndarray) -> float:
    """Of the 300 best scores, the share on places that the filter lets through."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    data = exact.data_preprocessor(dict(inputs=[pixels], data_samples=None), False)
    module = exact.bbox_head.head_module
    hidden, layers, _, _ = module.split_last(exact.extract_feat(data["inputs"]))
    rows = [level[0].flatten(1).T for level in hidden]
    # the 300 best scores of all levels and their locations, in parts: memory
    best: list[Tensor] = [torch.zeros(0), torch.zeros(0, dtype=torch.long)]
    start = 0
    for level, (kernel, bias) in zip(rows, [layer.of(0) for layer in layers]):
        for part in range(0, len(level), 1000):
            scores = torch.addmm(bias, level[part : part + 1000], kernel.T).cpu()
            values, at = scores.flatten().topk(300)
            best[0] = torch.cat([best[0], values])
            best[1] = torch.cat([best[1], at // len(kernel) + part + start])
        start += len(level)
    places = best[1][best[0].topk(300).indices]
    its = [layer.of(0) for layer in layers]
    return torch.isin(places, near.candidates(rows, its).cpu()).float().mean().item()


@torch.no_grad()
def time_vocabulary(args: argparse.Namespace) -> dict[str, float]:
    """To 80 new words with a text tower of a ViT-B/32's size, random weights."""
    figures: dict[str, list[float]] = dict(new_words_s=[], cached_words_ms=[])
    with tempfile.TemporaryDirectory() as folder:
        save_tower(Path(folder))
        encoder = CLIPTextEncoder(f"local-dir:{folder}", cache_dir=f"{folder}/cache")
        model = ours(args, "n")
        model.text_encoder = encoder
        image = picture(args.side)
        words = [word.split(" ", 1)[-1] for word in some_words(13000)][1203:]
        # the tower is loaded before anything is timed
        encoder(["thing"])
        detector = model.fold(["thing"])
        for turn in range(6):
            new = tuple(f"{word} {turn}" for word in dict.fromkeys(words))[:80]
            started = time.perf_counter()
            model.fold(new, into=detector)
            figures["new_words_s"].append(time.perf_counter() - started)
            started = time.perf_counter()
            model.fold(new, into=detector)
            figures["cached_words_ms"].append(1000 * (time.perf_counter() - started))
        # what other detectors do: the text tower for each image
        calls = torch_calls(model, image, as_vocabulary(new))
        inside = []
        for _ in range(4):
            started = time.perf_counter()
            encoder.encode(new)
            calls[1]()
            inside.append(time.perf_counter() - started)
    figures["image_with_text_tower_s"] = inside
    return {key: round(statistics.median(v[1:]), 4) for key, v in figures.items()}


def save_tower(folder: Path) -> None:
    """A CLIP ViT-B/32 with random weights, in open_clip's layout."""
    cfg = open_clip.get_model_config("ViT-B-32")
    model = open_clip.CLIP(**cfg)
    save_file(model.state_dict(), str(folder / "open_clip_model.safetensors"))
    half = dict(mean=[0.5] * 3, std=[0.5] * 3)
    about = dict(model_cfg=cfg, preprocess_cfg=half)
    (folder / "open_clip_config.json").write_text(json.dumps(about))


def time_training(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of the demo's training, and the share of time without data."""
    cfg = Config.fromfile(str(ROOT / TRAINED), lazy_import=False)
    cfg.train_cfg = dict(type="ResumableTrainLoop", max_iters=30, val_interval=10**6)
    cfg.default_hooks.logger.interval = 1
    cfg.param_scheduler = None
    cfg.log_level = "ERROR"
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        runner = Runner.from_cfg(cfg)
        runner.train()
    # the first ten steps warm up
    history = runner.message_hub.log_scalars
    whole, data = (
        history[f"train/{key}"].data[0][10:] for key in ("time", "data_time")
    )
    return dict(
        config=TRAINED,
        batch_size=cfg.train_dataloader.batch_size,
        images_per_s=round(cfg.train_dataloader.batch_size / statistics.mean(whole), 1),
        share_waiting_for_data=round(sum(data) / sum(whole), 4),
    )
