"""Time LVIS's figures against the official lvis package, and compare them.

    python tools/studies/time_evaluator.py --images 5000
    python tools/studies/time_evaluator.py --images 98000 --metric

Makes up annotations and predictions of LVIS's kind, and evaluates them both ways, each
in a process of its own, one after the other: seconds, peak memory, figures. The lvis
package comes with ``make install``. With --metric the predictions go image by image
through the metric that trainings use, alone; classes are as uneven as words of a text.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kdeov_mm.evaluation import (
    RULES,
    GroundTruth,
    OpenVocabularyMetric,
    Predictions,
    average_precision,
)

KEYS = ("AP", "AP50", "AP75", "APr", "APc", "APf")
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=300, help="boxes per image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metric", action="store_true", help="through the metric")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        truth, found = Path(folder) / "truth.json", Path(folder) / "found.npz"
        content = make_truth(rng, args.classes, args.images)
        truth.write_text(json.dumps(content))
        if args.metric:
            del content
            apart(through_metric, truth, args.classes, args.images, args.boxes)
            return 0
        np.savez(found, **make_predictions(rng, content, args.boxes)._asdict())
        del content
        results = {}
        for name in ("ours", "official"):
            print(f"{name}: evaluating ...", flush=True)
            results[name] = apart(evaluate, name, truth, found)
            seconds, most, figures = results[name]
            told = "  ".join(f"{k} {v:.4f}" for k, v in figures.items())
            print(f"{name}: {seconds:.1f} s, peak {most / 1e9:.2f} GB, {told}")
    ours, official = results["ours"], results["official"]
    difference = max(abs(ours[2][key] - official[2][key]) for key in KEYS)
    print(f"{official[0] / ours[0]:.1f} times as fast; figures within {difference:.1e}")
    return int(not difference <= 1e-4)


def make_truth(
    rng: np.random.Generator, classes: int, images: int
) -> dict[str, list[dict[str, Any]]]:
    """LVIS-format annotations: 11 boxes of 4 classes an image, 11 classes absent."""
    records: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        chosen = rng.choice(classes, min(15, classes), False) + 1
        there, absent = chosen[:4].tolist(), chosen[4:].tolist()
        records.append(
            dict(
                id=image,
                file_name=f"{image}.jpg",
                width=640,
                height=480,
                neg_category_ids=absent,
                not_exhaustive_category_ids=there[:1],
            )
        )
        for label in (*there, *rng.choice(there, 7).tolist()):
            x, y, w, h = rng.uniform(10, 200, 4).round(2).tolist()
            boxes.append(
                dict(
                    id=len(boxes) + 1,
                    image_id=image,
                    category_id=label,
                    bbox=[x, y, w, h],
                    area=w * h,
                )
            )
    categories = [
        dict(id=i, name=f"class {i}", frequency="rcf"[i % 3])
        for i in range(1, classes + 1)
    ]
    return dict(images=records, annotations=boxes, categories=categories)


def make_predictions(
    rng: np.random.Generator, content: dict[str, Any], number: int
) -> Predictions:
    """Per image: moved boxes of the truth, and made-up ones of any class."""
    truth = content["annotations"]
    images = np.array([a["image_id"] for a in truth])
    moved = np.array([a["bbox"] for a in truth]) + rng.normal(0, 8, (len(truth), 4))
    per_image = np.bincount(images)[1:]
    invented = np.repeat(np.arange(1, len(per_image) + 1), number - per_image)
    labels = rng.integers(1, len(content["categories"]) + 1, len(invented))
    return Predictions(
        np.concatenate([images, invented]),
        np.concatenate([[a["category_id"] for a in truth], labels]),
        np.concatenate([moved.clip(1), rng.uniform(1, 300, (len(invented), 4))]),
        rng.uniform(size=len(images) + len(invented)).round(3),
    )


def apart(call: Callable[..., T], *args: Any) -> T:
    """What a call returns, in a process of its own, whose memory is its alone."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(call, args)


def through_metric(truth: Path, classes: int, images: int, number: int) -> None:
    """Predictions of one image after the other, and what the metric makes of them."""
    rng = np.random.default_rng(1)
    odds = 1 / np.arange(1, classes + 1) ** 1.1
    steps = (odds / odds.sum()).cumsum()
    metric = OpenVocabularyMetric(str(truth), "made up", rules="lvis")
    metric.dataset_meta = dict(classes=[f"class {i}" for i in range(1, classes + 1)])
    print(f"file read: {peak() / 1e9:.2f} GB at most", flush=True)
    started = time.perf_counter()
    for image in range(1, images + 1):
        corners = rng.uniform(1, 300, (number, 2))
        boxes = np.concatenate(
            [corners, corners + rng.uniform(1, 200, corners.shape)], 1
        )
        labels = np.searchsorted(steps, rng.uniform(0, steps[-1], number))
        found = dict(bboxes=boxes, scores=rng.uniform(size=number), labels=labels)
        sample = dict(img_id=image, pred_instances=found, ori_shape=(480, 640))
        metric.process(None, [dict(sample, max_per_img=number)])
    print(f"boxes kept: {peak() / 1e9:.2f} GB, {time.perf_counter() - started:.0f} s")
    started = time.perf_counter()
    figures = metric.evaluate(images)
    print(f"evaluated: {time.perf_counter() - started:.0f} s")
    print(f"peak {peak() / 1e9:.2f} GB; the most frequent class has {steps[0]:.2f} of")
    print(f"the boxes; {figures}")


def peak() -> int:
    """Bytes of this process in memory, at most since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def evaluate(
    name: str, truth: Path, found: Path
) -> tuple[float, int, dict[str, float]]:
    boxes = Predictions(**np.load(found))
    columns = boxes.images, boxes.categories, boxes.boxes, boxes.scores
    results = [
        dict(image_id=i, category_id=c, bbox=b, score=s)
        for i, c, b, s in zip(*(values.tolist() for values in columns))
    ]
    del boxes, columns
    started = time.perf_counter()
    figures = dict(ours=ours, official=official)[name](truth, results)
    seconds = time.perf_counter() - started
    return seconds, peak(), figures


def ours(path: Path, results: list[dict[str, Any]]) -> dict[str, float]:
    truth = GroundTruth(json.loads(path.read_text()))
    figures = average_precision(truth, Predictions.from_coco(results), RULES["lvis"])
    return {key: figures[key] for key in KEYS}


def official(path: Path, results: list[dict[str, Any]]) -> dict[str, float]:
    np.float = float  # type: ignore[attr-defined]  # what lvis 0.5.3 asks numpy for
    from lvis import LVIS, LVISEval, LVISResults

    truth = LVIS(str(path))
    run = LVISEval(truth, LVISResults(truth, results), "bbox")
    run.run()
    return {key: float(run.results[key]) for key in KEYS}


if __name__ == "__main__":
    sys.exit(main())
