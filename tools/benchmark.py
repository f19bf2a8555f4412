"""How long an image takes with few words and with many, from pixels to boxes.

    python tools/benchmark.py configs/kdeov/kdeov_n_shapes1203.py CHECKPOINT

One process; the numbers of words take turns, and their ratio is what counts: other
work on the machine slows all of them. Text vectors are at hand, as they are after the
first image. Without a checkpoint the weights are random.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import kdeov_mm  # isort: skip  # noqa: F401  (compat comes before mmdet)

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope

from kdeov_mm.datasets import shapes
from kdeov_mm.inference import load_model, read_image
from kdeov_mm.models import KDEOVDetector


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file")
    parser.add_argument("--words", type=int, nargs="+", default=[80, 1203])
    parser.add_argument("--image", type=Path, help="default: a scene of the world")
    parser.add_argument("--size", type=int, default=640, help="side in pixels")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args(argv)
    model = build(args.config, args.checkpoint)
    image = picture(args.image, args.size)
    runs = {number: prepared(model, image, number) for number in args.words}
    times: dict[int, list[float]] = {number: [] for number in args.words}
    for turn in range(args.rounds + 2):
        for number, run in runs.items():
            started = time.perf_counter()
            boxes = run()
            if turn >= 2:  # the first ones warm up
                times[number].append(time.perf_counter() - started)
            elif turn == 1:
                print(f"{number} words: {boxes} boxes")
    first = statistics.median(times[args.words[0]])
    for number, seconds in times.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        print(
            f"{number:>6} words: {1000 * middle:.1f} ms, quartiles "
            f"{1000 * low:.1f} to {1000 * high:.1f}; {middle / first:.2f} of "
            f"{args.words[0]} words"
        )
    return 0


def build(config: str, checkpoint: str | None) -> KDEOVDetector:
    """The detector, without its teacher."""
    cfg = Config.fromfile(config, lazy_import=False)
    cfg.model.update(teacher=None, distill=None)
    if checkpoint:
        return load_model(cfg, checkpoint)
    init_default_scope("mmdet")
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.eval()


def picture(path: Path | None, size: int) -> np.ndarray:
    """(size, size, 3) uint8 BGR."""
    if path is None:
        scene = shapes.draw_scene(shapes.scene_rng(0, 1, 0), shapes.WORLD_1203)
        image = scene.image[..., ::-1]
    else:
        image = read_image(path)
    return np.ascontiguousarray(cv2.resize(image, (size, size)))


def prepared(model: KDEOVDetector, image: np.ndarray, number: int) -> Callable[[], int]:
    """A call that detects that many words in the image; it returns how many boxes."""
    words = shapes.WORLD_1203.classes
    extra = (f"thing number {i}" for i in range(number))
    text = [*words[:number], *extra][:number]
    shape = image.shape[:2]
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    sample = DetDataSample(metainfo=dict(meta, text=tuple(text)))
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    data = dict(inputs=[pixels], data_samples=[sample])

    def run() -> int:
        with torch.no_grad():
            return len(model.test_step(data)[0].pred_instances)

    return run


if __name__ == "__main__":
    sys.exit(main())
