"""Boxes for what is not there, and what a score is worth."""

from typing import Any

import numpy as np
import pytest
from torch import Tensor
from torchvision.ops import box_iou

from kdeov_mm.evaluation import RULES, GroundTruth, Predictions, reliability
from kdeov_mm.evaluation.average_precision import Rules, outcomes
from kdeov_mm.evaluation.reliability import calibration, false_positives

from .test_detection import (
    hard_truth,
    lvis_truth,
    one_image,
    random_predictions,
    truth_as_predictions,
)


def slow_outcomes(
    coco: dict[str, Any], found: list[dict[str, Any]], federated: bool
) -> list[int]:
    """The rules, box by box."""
    images = {i["id"]: i for i in coco["images"]}
    verdicts = [-1] * len(found)
    taken: set[int] = set()
    for i in sorted(range(len(found)), key=lambda i: -found[i]["score"]):
        image, label = found[i]["image_id"], found[i]["category_id"]
        mine = [
            a
            for a in coco["annotations"]
            if (a["image_id"], a["category_id"]) == (image, label)
        ]
        if federated and not mine and label not in images[image]["neg_category_ids"]:
            continue
        crowds = [a for a in mine if not federated and a["iscrowd"]]
        objects = [a for a in mine if a not in crowds and a["id"] not in taken]
        best = max(objects, key=lambda a: iou(found[i], a), default=None)
        if best is not None and iou(found[i], best) >= 0.5:
            taken.add(best["id"])
            verdicts[i] = 1
        elif any(inside(found[i], c) >= 0.5 for c in crowds) or (
            federated and label in images[image]["not_exhaustive_category_ids"]
        ):
            verdicts[i] = -1
        else:
            verdicts[i] = 0
    return verdicts


def corners(box: dict[str, Any]) -> Tensor:
    x, y, w, h = box["bbox"]
    return Tensor([[x, y, x + w, y + h]])


def iou(a: dict[str, Any], b: dict[str, Any]) -> float:
    return box_iou(corners(a), corners(b)).item()


def inside(box: dict[str, Any], crowd: dict[str, Any]) -> float:
    """Share of a box that is on a crowd."""
    a, b = corners(box)[0], corners(crowd)[0]
    sides = (a[2:].minimum(b[2:]) - a[:2].maximum(b[:2])).clip(min=0)
    return float(sides.prod() / (a[2:] - a[:2]).prod())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("federated", [False, True])
def test_verdicts_are_those_of_the_rules(seed: int, federated: bool) -> None:
    coco = lvis_truth(seed) if federated else hard_truth(seed)
    found = random_predictions(coco, seed)
    for i, box in enumerate(found):
        box["score"] = ((i * 7919) % len(found)) / len(found)  # no ties
    rules = Rules("test", federated=federated)
    got = outcomes(GroundTruth(coco), Predictions.from_coco(found), rules)
    assert got.tolist() == slow_outcomes(coco, found, federated)
    assert {*got.tolist()} == {-1, 0, 1}


def test_boxes_beyond_the_caps_do_not_count() -> None:
    coco = one_image()
    right = dict(image_id=1, category_id=1, bbox=[0, 0, 10, 10])
    found = [dict(right, score=0.9), dict(right, score=0.8)]
    rules = Rules("test", per_image=1)
    assert outcomes(
        GroundTruth(coco), Predictions.from_coco(found), rules
    ).tolist() == [
        1,
        -1,
    ]


def test_false_positives_are_counted_on_verified_images_only() -> None:
    """Class 2 in three images: listed as absent, not listed, unknown to the file."""
    coco = dict(
        images=[
            dict(id=1, neg_category_ids=[2], not_exhaustive_category_ids=[]),
            dict(id=2, neg_category_ids=[2], not_exhaustive_category_ids=[]),
            dict(id=3, neg_category_ids=[], not_exhaustive_category_ids=[]),
            dict(id=4, neg_category_ids=[], not_exhaustive_category_ids=[]),
        ],
        annotations=[
            dict(id=1, image_id=4, category_id=2, bbox=[0, 0, 10, 10], area=100)
        ],
        categories=[dict(id=i, name=f"n{i}", frequency="f") for i in (1, 2)],
    )
    found = [
        dict(image_id=4, category_id=2, bbox=[0, 0, 10, 10], score=0.5),  # right
        dict(image_id=1, category_id=2, bbox=[0, 0, 10, 10], score=0.6),  # wrong
        dict(image_id=1, category_id=2, bbox=[9, 9, 10, 10], score=0.5),  # wrong
        dict(image_id=1, category_id=2, bbox=[9, 9, 10, 10], score=0.4),  # too low
        dict(image_id=3, category_id=2, bbox=[9, 9, 10, 10], score=0.9),  # unknown
        dict(image_id=4, category_id=2, bbox=[50, 50, 9, 9], score=0.9),  # it is there
    ]
    groups = {"novel": ["n2"], "base": ["n1"]}
    truth, boxes = GroundTruth(coco), Predictions.from_coco(found)
    report = reliability(truth, boxes, RULES["lvis"], groups)
    assert report["novel"]["questions"] == 2
    assert report["novel"]["at_recall"]["0.5"] == dict(threshold=0.5, per_image=1.0)
    assert report["base"]["at_recall"]["0.5"] == dict(threshold=None, per_image=None)


def test_where_all_is_annotated_every_other_image_is_verified() -> None:
    coco = hard_truth(0)
    truth = GroundTruth(coco)
    report = reliability(
        truth,
        Predictions.from_coco(truth_as_predictions(coco)),
        RULES["coco"],
        {"all": truth.names},
    )["all"]
    pairs = {(a["image_id"], a["category_id"]) for a in coco["annotations"]}
    assert report["questions"] == len(coco["images"]) * len(truth.names) - len(pairs)
    assert report["objects"] == sum(not a["iscrowd"] for a in coco["annotations"])
    assert report["at_recall"]["0.7"]["per_image"] == 0


def test_a_higher_recall_costs_false_positives() -> None:
    rng = np.random.default_rng(0)
    report = false_positives(rng.uniform(size=80), rng.uniform(size=500), 100, 50)
    rates = [at["per_image"] for at in report["at_recall"].values()]
    assert rates == sorted(rates) and rates[0] < rates[-1]
    least = false_positives(rng.uniform(size=60), rng.uniform(size=9), 100, 50)
    assert least["at_recall"]["0.7"]["per_image"] is None  # never reached
    assert least["at_recall"]["0.5"]["per_image"] is not None


def test_honest_scores_are_calibrated_and_boasts_are_not() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=40_000)
    honest = calibration(scores, rng.uniform(size=len(scores)) < scores)
    assert honest["ece"] < 0.01
    assert honest["at_0.7"] == pytest.approx(0.7, abs=0.02)
    boast = calibration(scores, rng.uniform(size=len(scores)) < scores / 2)
    assert boast["ece"] == pytest.approx(0.25, abs=0.01)
    assert boast["at_0.7"] == pytest.approx(0.35, abs=0.02)
    assert sum(b["boxes"] for b in boast["bins"]) == len(scores)


def test_each_score_is_in_one_bin() -> None:
    scores = np.array([0.0, 0.0999, 0.1, 0.55, 0.65, 0.7499, 0.75, 0.95, 1.0])
    right = np.array([0, 1, 0, 1, 1, 0, 1, 1, 1]) == 1
    curve = calibration(scores, right)
    assert [b["boxes"] for b in curve["bins"]] == [2, 1, 0, 0, 0, 1, 1, 2, 0, 2]
    assert [b["low"] for b in curve["bins"]] == pytest.approx(np.arange(10) / 10)
    assert [b["high"] for b in curve["bins"]] == pytest.approx(np.arange(1, 11) / 10)
    assert [b["right"] for b in curve["bins"]] == [0.5, 0, 0, 0, 0, 1, 1, 0.5, 0, 1]
    assert curve["bins"][7]["score"] == pytest.approx((0.7499 + 0.75) / 2)
    # 0.65 is near 0.7, 0.75 is not
    assert (curve["boxes_at_0.7"], curve["at_0.7"]) == (2, 0.5)
    # sums of score minus right, by bin: what 9 boxes are off by, on average
    off = [0.0999 - 1, 0.1, 0.55 - 1, 0.65 - 1, 1.4999 - 1, 1.95 - 2]
    assert curve["ece"] == pytest.approx(np.abs(off).sum() / 9)


def test_a_threshold_is_the_score_of_the_box_that_reaches_the_recall() -> None:
    """Of ten objects 3, 5 and 7; a wrong box of the same score counts."""
    right, wrong = np.arange(1, 8) / 10, np.array([0.7, 0.5, 0.3, 0.1, 0.1])
    at = false_positives(right, wrong, objects=10, questions=5)["at_recall"]
    assert at["0.3"] == dict(threshold=0.5, per_image=0.4)
    assert at["0.5"] == dict(threshold=0.3, per_image=0.6)
    assert at["0.7"] == dict(threshold=0.1, per_image=1.0)
    fewer = false_positives(right[1:], wrong, objects=10, questions=5)["at_recall"]
    assert fewer["0.5"]["threshold"] == 0.3
    for nothing in (
        fewer["0.7"],
        *(
            false_positives(right, wrong, *numbers)["at_recall"]["0.3"]
            for numbers in ((0, 5), (10, 0))
        ),
    ):
        assert nothing == dict(threshold=None, per_image=None)
    one = false_positives(right[:1], wrong, objects=1, questions=1)["at_recall"]
    assert {value["threshold"] for value in one.values()} == {0.1}


def test_no_boxes_at_all_have_no_calibration() -> None:
    empty = calibration(np.zeros(0), np.zeros(0, bool))
    assert empty["at_0.7"] is None and empty["ece"] is None


def test_a_class_that_is_both_absent_and_unfinished_asks_no_question() -> None:
    coco = one_image(neg_category_ids=[2], not_exhaustive_category_ids=[2])
    found = [dict(image_id=1, category_id=2, bbox=[0, 0, 9, 9], score=0.9)]
    truth = GroundTruth(coco)
    report = reliability(
        truth, Predictions.from_coco(found), RULES["lvis"], {"all": truth.names}
    )
    assert report["all"]["questions"] == 0
