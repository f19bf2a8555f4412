"""Figures of open-vocabulary detection."""

import contextlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kdeov_mm.datasets import OVCocoDataset
from kdeov_mm.evaluation import OpenVocabularyMetric, coco_average_precision

from .test_datasets import NAMES, load, make_coco, permuted

GROUPS = {"base": NAMES[:2], "novel": NAMES[2:]}


def truth_as_predictions(coco: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("image_id", "category_id", "bbox")
    return [{k: a[k] for k in keys} | {"score": 1.0} for a in coco["annotations"]]


def random_predictions(coco: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Moved, renamed, missed and invented boxes; scores with ties."""
    rng = np.random.default_rng(seed)
    ids = [c["id"] for c in coco["categories"]]
    found = []
    for image in coco["images"]:
        boxes = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        for a in boxes * 3:
            label = a["category_id"] if rng.random() < 0.8 else int(rng.choice(ids))
            moved = np.array(a["bbox"]) + rng.normal(0, 2, 4)
            found.append((label, moved.clip(1).tolist()))
        for _ in range(4):
            found.append((int(rng.choice(ids)), rng.uniform(5, 40, 4).tolist()))
        found = [f if len(f) == 3 else (image["id"], *f) for f in found]
    return [
        dict(image_id=i, category_id=c, bbox=b, score=float(rng.integers(1, 12)) / 12)
        for i, c, b in found
    ]


def reference(
    coco: dict[str, Any], found: list[dict[str, Any]], names: tuple[str, ...]
) -> list[float]:
    """pycocotools' AP and AP50 of some classes, which it gets one by one."""
    ids = {c["name"]: c["id"] for c in coco["categories"]}
    precisions = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco
        truth.createIndex()
        for name in names:
            run = COCOeval(truth, truth.loadRes(found), "bbox")
            run.params.catIds = [ids[name]]
            run.evaluate()
            run.accumulate()
            precisions.append(run.eval["precision"][:, :, 0, 0, -1])
    values = np.stack(precisions)  # (classes, IoU, recall)
    return [values[values > -1].mean(), values[:, 0][values[:, 0] > -1].mean()]


def hard_truth(seed: int) -> dict[str, Any]:
    """With crowds, an image without objects, and a class without objects."""
    coco = make_coco(seed, images=8)
    rng = np.random.default_rng(seed)
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = int(rng.random() < 0.15)
    coco["images"].append(dict(id=99, file_name="99.jpg", width=100, height=100))
    coco["categories"].append(dict(id=50, name="never there"))
    return coco


# ------------------------------------------------------------------------ core


def test_the_truth_scores_one_everywhere() -> None:
    coco = make_coco()
    figures = coco_average_precision(coco, truth_as_predictions(coco), GROUPS)
    assert set(figures) == {
        "AP", "AP50", "AP75", "base_AP", "base_AP50", "novel_AP", "novel_AP50"
    }  # fmt: skip
    assert all(value == pytest.approx(1) for value in figures.values())


def test_annotation_ids_do_not_matter_not_even_zero() -> None:
    """pycocotools takes a match with annotation 0 for no match."""
    coco = make_coco()
    for annotation in coco["annotations"]:
        annotation["id"] -= 1
    figures = coco_average_precision(coco, truth_as_predictions(coco), GROUPS)
    assert all(value == pytest.approx(1) for value in figures.values())


def test_nothing_found_scores_zero_and_no_objects_score_nan() -> None:
    groups = {**GROUPS, "absent": ("never there",)}
    figures = coco_average_precision(hard_truth(0), [], groups)
    assert figures["AP"] == figures["AP50"] == figures["novel_AP50"] == 0
    assert math.isnan(figures["absent_AP"]) and math.isnan(figures["absent_AP50"])
    found = truth_as_predictions(hard_truth(0))
    figures = coco_average_precision(hard_truth(0), found, groups)
    assert math.isnan(figures["absent_AP"])


@pytest.mark.parametrize("seed", range(6))
def test_figures_agree_with_pycocotools(seed: int) -> None:
    coco = hard_truth(seed)
    found = random_predictions(coco, seed)
    figures = coco_average_precision(coco, found, GROUPS)
    every = tuple(c["name"] for c in coco["categories"])
    for prefix, names in {"": every, "base_": GROUPS["base"],
                          "novel_": GROUPS["novel"]}.items():  # fmt: skip
        wanted = reference(coco, found, names)
        got = [figures[f"{prefix}AP"], figures[f"{prefix}AP50"]]
        assert got == pytest.approx(wanted, abs=1e-4)
    assert 0.05 < figures["AP"] < 0.95  # else the agreement would say little


def test_a_group_is_its_names_and_nothing_else() -> None:
    """The truth of one group and nothing of the other: one and zero."""
    coco = make_coco()
    names = {c["id"]: c["name"] for c in coco["categories"]}
    found = [
        p for p in truth_as_predictions(coco) if names[p["category_id"]] in NAMES[:2]
    ]
    figures = coco_average_precision(coco, found, GROUPS)
    assert figures["base_AP50"] == pytest.approx(1)
    assert figures["novel_AP50"] == 0
    assert 0 < figures["AP50"] < 1


def test_only_so_many_boxes_per_image_count() -> None:
    coco = make_coco()
    wrong = [
        dict(p, bbox=[90, 90, 5, 5], score=2.0)
        for p in truth_as_predictions(coco)
        for _ in range(3)
    ]
    found = truth_as_predictions(coco) + wrong
    few = coco_average_precision(coco, found, {}, max_dets=1)
    many = coco_average_precision(coco, found, {}, max_dets=100)
    assert few["AP50"] == 0 < many["AP50"]


def test_the_order_of_the_predictions_does_not_matter() -> None:
    coco = make_coco()
    found = random_predictions(coco, 3)
    for i, prediction in enumerate(found):
        prediction["score"] = i / len(found)  # no ties, whose order is the file's
    forward, backward = (
        coco_average_precision(coco, f, GROUPS) for f in (found, found[::-1])
    )
    assert forward == pytest.approx(backward)


# ---------------------------------------------------------------------- metric


def evaluate(
    coco: dict[str, Any], dataset: Any, tmp_path: Path, **meta: Any
) -> dict[str, float]:
    """The metric's figures when a data set's own truth is what was found."""
    file = load(OVCocoDataset, coco, tmp_path / "metric.json").ann_file
    metric = OpenVocabularyMetric(file, protocol="a test")
    metric.dataset_meta = dict(dataset.metainfo, **meta)
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        boxes = [instance["bbox"] for instance in info["instances"]]
        labels = [instance["bbox_label"] for instance in info["instances"]]
        found = dict(
            bboxes=torch.tensor(boxes).reshape(-1, 4),
            scores=torch.ones(len(boxes)),
            labels=torch.tensor(labels, dtype=torch.long),
        )
        metric.process({}, [dict(img_id=info["img_id"], pred_instances=found)])
    return metric.evaluate(len(dataset))


def test_permuted_categories_give_the_same_ap(tmp_path: Path) -> None:
    coco = make_coco()
    groups = {f"{name}_classes": classes for name, classes in GROUPS.items()}
    for number, file in enumerate((coco, permuted(coco), permuted(coco, seed=2))):
        dataset = load(OVCocoDataset, file, tmp_path / f"{number}.json")
        figures = evaluate(file, dataset, tmp_path, **groups)
        assert figures["ov/AP"] == pytest.approx(1)
        assert figures["ov/novel_AP50"] == pytest.approx(1)


def test_labels_of_another_file_with_the_same_names_fit(tmp_path: Path) -> None:
    """Trained on one file, evaluated on another: ids never meet, names do."""
    coco = make_coco()
    dataset = load(OVCocoDataset, coco, tmp_path / "a.json")
    assert evaluate(permuted(coco), dataset, tmp_path)["ov/AP"] == pytest.approx(1)


def test_wrong_labels_do_not_score(tmp_path: Path) -> None:
    dataset = load(OVCocoDataset, make_coco(), tmp_path / "a.json")
    turned = dict(classes=NAMES[1:] + NAMES[:1])
    assert evaluate(make_coco(), dataset, tmp_path, **turned)["ov/AP"] < 0.3


def test_a_class_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    dataset = load(OVCocoDataset, make_coco(), tmp_path / "a.json")
    with pytest.raises(ValueError, match="giraffe"):
        evaluate(make_coco(), dataset, tmp_path, classes=(*NAMES, "giraffe"))


def test_categories_that_nobody_asks_for_do_not_count(tmp_path: Path) -> None:
    """Two words of a file with more: AP is the mean of these two."""
    dataset = load(
        OVCocoDataset,
        make_coco(),
        tmp_path / "a.json",
        metainfo=dict(classes=NAMES[:2]),
    )
    figures = evaluate(make_coco(), dataset, tmp_path, classes=NAMES[:2])
    assert figures["ov/AP"] == pytest.approx(1)


def test_the_protocol_stands_beside_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    class Logger:
        def info(self, message: str) -> None:
            lines.append(message)

    monkeypatch.setattr(
        "kdeov_mm.evaluation.MMLogger.get_current_instance", lambda: Logger()
    )
    dataset = load(OVCocoDataset, make_coco(), tmp_path / "a.json")
    evaluate(make_coco(), dataset, tmp_path)
    (text,) = lines
    assert "Protocol: a test (6 images, 5 words, 100 boxes per word and image)" in text
    assert "AP50" in text
