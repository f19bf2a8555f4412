"""mIoU against a slow reference; groups, sizes, and what is not counted."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.structures import PixelData

from kdeov_mm.datasets.segmentation import BACKGROUND, IGNORED
from kdeov_mm.evaluation import SegMetric, count_pixels, segmentation_scores

from ..conftest import make_sample

CLASSES = ("a", "b", "c", "d", "e")
META = dict(classes=CLASSES, base_classes=("a", "b", "c"), novel_classes=("d", "e"))


def maps(number: int = 6, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions and truths of several sizes; class e is nowhere."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(number):
        size = rng.integers(5, 40, 2)
        truth = rng.integers(IGNORED, 4, size)
        predicted = np.where(rng.random(size) < 0.6, truth, rng.integers(-1, 4, size))
        pairs.append((np.where(predicted == IGNORED, 0, predicted), truth))
    return pairs


def slow(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[int, dict[str, float]]:
    """Pixel by pixel, of each class and of background."""
    found: dict[int, dict[str, float]] = {}
    for label in (*range(len(CLASSES)), BACKGROUND):
        both = either = true = 0
        for predicted, truth in pairs:
            for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist()):
                if t == IGNORED:
                    continue
                both += p == label and t == label
                either += p == label or t == label
                true += t == label
        found[label] = dict(
            iou=both / either if either else math.nan,
            acc=both / true if true else math.nan,
        )
    return found


def run(metric: SegMetric, pairs: list[Any], ids: list[int] | None = None) -> Any:
    metric.dataset_meta = META
    for i, (predicted, truth) in enumerate(pairs):
        sample = make_sample()
        sample.set_metainfo(dict(img_id=ids[i] if ids else i))
        sample.pred_sem_seg = PixelData(sem_seg=torch.from_numpy(predicted)[None])
        sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(truth)[None])
        metric.process({}, [sample.to_dict()])
    return {k.removeprefix("seg/"): v for k, v in metric.evaluate(len(pairs)).items()}


def test_the_scores_are_those_of_a_slow_count(tmp_path: Path) -> None:
    pairs, file = maps(), tmp_path / "scores.json"
    metrics = run(SegMetric("shapes, five", out_file=str(file)), pairs)
    expected = slow(pairs)

    def mean(labels: range, key: str = "iou") -> float:
        return float(np.nanmean([expected[i][key] for i in labels]))

    assert metrics["mIoU"] == pytest.approx(mean(range(5)), abs=1e-9)
    assert metrics["mAcc"] == pytest.approx(mean(range(5), "acc"), abs=1e-9)
    base, novel = mean(range(3)), mean(range(3, 5))
    assert metrics["mIoU_base"] == pytest.approx(base, abs=1e-9)
    assert metrics["mIoU_novel"] == pytest.approx(novel, abs=1e-9)
    assert metrics["hIoU"] == pytest.approx(2 * base * novel / (base + novel), abs=1e-9)
    assert metrics["IoU_background"] == pytest.approx(expected[BACKGROUND]["iou"])
    known = [(p[t != IGNORED] == t[t != IGNORED]) for p, t in pairs]
    accuracy = np.concatenate(known).mean()
    assert metrics["aAcc"] == pytest.approx(accuracy, abs=1e-9)
    # the file has all classes, and what the numbers are of
    content = json.loads(file.read_text())
    assert content["protocol"] == "shapes, five"
    assert content["classes"]["a"]["IoU"] == pytest.approx(expected[0]["iou"])
    assert content["classes"]["e"]["IoU"] is None


def test_an_image_that_came_twice_counts_once() -> None:
    pairs = maps(3)
    once = run(SegMetric("p"), pairs)
    twice = run(SegMetric("p"), [*pairs, pairs[0]], [0, 1, 2, 0])
    assert once == twice


def test_counts_are_whole_numbers_beyond_what_a_float_holds() -> None:
    counts = torch.zeros(3, 3, dtype=torch.long)
    counts[:, 0] = 2**24 + 1
    counts[1, 0] += 2**24
    counts[:, 2] = 1
    metrics, iou, _ = segmentation_scores(counts, ("a", "b"), {})
    assert iou[0].item() == (2**24 + 1) / (2**25 + 1)
    assert metrics["mIoU"] == iou[0].item()  # b is nowhere
    assert "hIoU" not in metrics


def test_the_mean_of_nothing_found_is_zero() -> None:
    counts = torch.tensor([[0, 0, 4], [3, 0, 4], [0, 3, 4]])
    groups = dict(base=("a",), novel=("b",))
    assert segmentation_scores(counts, ("a", "b"), groups)[0]["hIoU"] == 0


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="loads labels after Resize"):
        count_pixels(torch.zeros(4, 4).long(), torch.zeros(4, 5).long(), 3)


def test_the_table_of_classes_is_printed(capfd: Any) -> None:
    MMLogger.get_instance(f"table {time.time_ns()}")
    run(SegMetric("p", classwise=True), maps(2))
    printed = "".join(capfd.readouterr())
    for name in CLASSES:
        assert re.search(rf"\|\s+{name}\s+\|\s+[\d.na]+\s+\|\s+[\d.na]+\s+\|", printed)
