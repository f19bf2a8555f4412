"""The part of benchmark.py that runs in an environment of ultralytics.

    python -m venv ultra && ultra/bin/pip install ultralytics
    python tools/studies/benchmark.py --ultralytics ultra/bin/python

Reads lines of JSON, answers each with one: {"build": [file, words]} makes a model with
random weights and random text embeddings, {"run": [number, whole]} times one image.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import ultralytics
from ultralytics import YOLO, YOLOE, YOLOWorld


def build(file: str, words: int, image: np.ndarray, settings: dict[str, Any]) -> Any:
    """The network alone and the whole way of an image, as calls."""
    torch.manual_seed(0)
    file, _, folded = file.partition(" ")
    kinds = {"yoloe": YOLOE, "world": YOLOWorld}
    model = next((kind for key, kind in kinds.items() if key in file), YOLO)(file)
    names = [f"thing {i}" for i in range(words)]
    text = torch.nn.functional.normalize(torch.randn(1, words, 512), dim=-1)
    inner = model.model.eval()
    if "yoloe" in file:
        inner.set_classes(names, text)
        if folded:
            inner.model[-1].fuse(text)  # the words become a convolution
    elif "world" in file:
        inner.txt_feats, inner.model[-1].nc = text, words
        inner.names = dict(enumerate(names))
    elif words != 80:
        raise ValueError("a closed-set model of ultralytics has 80 classes")
    # on a GPU `predict` moves a copy, or moves it later than the network is asked
    inner.fuse().to(settings["device"])
    options = dict(
        imgsz=settings["size"],
        conf=settings["score_threshold"],
        iou=settings["iou_threshold"],
        max_det=settings["most"],
        device=settings["device"],
        half=settings["half"],
        verbose=False,
    )
    pixels = torch.rand(1, 3, *image.shape[:2], device=settings["device"])
    if settings["half"]:
        inner, pixels = inner.half(), pixels.half()

    def network() -> int:
        with torch.no_grad():
            inner(pixels)
        return 0

    def whole() -> int:
        return len(model.predict(image, **options)[0].boxes)

    return [network, whole]


def main() -> None:
    runs: list[list[Callable[[], int]]] = []
    settings: dict[str, Any] = {}
    image = np.zeros(0)
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {}
        if "settings" in asked:
            settings = asked["settings"]
            image = np.load(settings["image"])
            answer["version"] = ultralytics.__version__
        elif "build" in asked:
            file, words = asked["build"]
            runs.append(build(file, words, image, settings))
            answer["boxes"] = [run() for run in runs[-1]][1]
        elif "run" in asked:
            number, kind = asked["run"]
            torch.set_num_threads(settings["threads"])  # ultralytics takes one less
            started = time.perf_counter()
            runs[number][kind]()
            if settings["device"] != "cpu":
                torch.cuda.synchronize()
            answer["seconds"] = time.perf_counter() - started
        print("benchmark:" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
