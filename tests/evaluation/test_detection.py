"""Figures of open-vocabulary detection."""

import contextlib
import copy
import importlib
import io
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kdeov_mm.datasets import OVCocoDataset
from kdeov_mm.evaluation import RULES, GroundTruth, OpenVocabularyMetric, Predictions
from kdeov_mm.evaluation.average_precision import (
    Rules,
    outcomes,
    precision_table,
    summary,
)

from ..datasets.test_datasets import NAMES, load, make_coco, permuted

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


def coco_figures(
    coco: dict[str, Any], found: list[dict[str, Any]], groups: Any, boxes: int = 100
) -> dict[str, float]:
    truth, rules = GroundTruth(coco), Rules("test", per_pair=boxes)
    table = precision_table(truth, Predictions.from_coco(found), rules)
    return summary(truth, table, groups)


# ------------------------------------------------------------------------ COCO


def test_the_truth_scores_one_everywhere() -> None:
    coco = make_coco()
    figures = coco_figures(coco, truth_as_predictions(coco), GROUPS)
    assert set(figures) == {
        "AP", "AP50", "AP75", "base_AP", "base_AP50", "novel_AP", "novel_AP50"
    }  # fmt: skip
    assert all(value == pytest.approx(1) for value in figures.values())


def test_annotation_ids_do_not_matter_not_even_zero() -> None:
    """pycocotools takes a match with annotation 0 for no match."""
    coco = make_coco()
    for annotation in coco["annotations"]:
        annotation["id"] -= 1
    figures = coco_figures(coco, truth_as_predictions(coco), GROUPS)
    assert all(value == pytest.approx(1) for value in figures.values())


def test_nothing_found_scores_zero_and_no_objects_score_nan() -> None:
    groups = {**GROUPS, "absent": ("never there",)}
    figures = coco_figures(hard_truth(0), [], groups)
    assert figures["AP"] == figures["AP50"] == figures["novel_AP50"] == 0
    assert math.isnan(figures["absent_AP"]) and math.isnan(figures["absent_AP50"])
    found = truth_as_predictions(hard_truth(0))
    figures = coco_figures(hard_truth(0), found, groups)
    assert math.isnan(figures["absent_AP"])


@pytest.mark.parametrize("seed", range(6))
def test_figures_agree_with_pycocotools(seed: int) -> None:
    coco = hard_truth(seed)
    found = random_predictions(coco, seed)
    figures = coco_figures(coco, found, GROUPS)
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
    figures = coco_figures(coco, found, GROUPS)
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
    few = coco_figures(coco, found, {}, boxes=1)
    many = coco_figures(coco, found, {}, boxes=100)
    assert few["AP50"] == 0 < many["AP50"]


def test_the_order_of_the_predictions_does_not_matter() -> None:
    coco = make_coco()
    found = random_predictions(coco, 3)
    for i, prediction in enumerate(found):
        prediction["score"] = i / len(found)  # no ties, whose order is the file's
    forward, backward = (coco_figures(coco, f, GROUPS) for f in (found, found[::-1]))
    assert forward == pytest.approx(backward)


# ------------------------------------------------------------------------ LVIS


def lvis_truth(seed: int, images: int = 30, classes: int = 12) -> dict[str, Any]:
    """Shuffled ids, images without objects, classes without, unfinished ones."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(1, 3 * classes, 3)).tolist()
    kinds = dict(zip(ids, "rcf" * classes))
    records, annotations = [], []
    for image in rng.permutation(np.arange(5, 5 + images)).tolist():
        there = rng.choice(ids, rng.integers(0, 4), False).tolist()
        absent = [i for i in rng.choice(ids, 3, False).tolist() if i not in there]
        open_ids = [i for i in there + absent if rng.random() < 0.25]
        records.append(
            dict(id=image, width=100, height=100, coco_url=f"http://x/val/{image}.jpg",
                 neg_category_ids=absent, not_exhaustive_category_ids=open_ids)
        )  # fmt: skip
        for label in there:
            for _ in range(rng.integers(1, 4)):
                box = rng.uniform(1, 50, 4).round(1).tolist()
                annotations.append(
                    dict(id=len(annotations) + 1, image_id=image, category_id=label,
                         bbox=box, area=box[2] * box[3],
                         iscrowd=int(rng.random() < 0.1),
                         segmentation=[[1, 1, 2, 2, 3, 3]])
                )  # fmt: skip
    return dict(
        images=records,
        annotations=annotations,
        categories=[
            dict(id=i, name=f"thing {i}", frequency=kinds[i], synonyms=[], synset="",
                 image_count=1, instance_count=1, **{"def": ""})
            for i in ids
        ],
    )  # fmt: skip


def official_lvis(
    coco: dict[str, Any], found: list[dict[str, Any]], cap: int, tmp_path: Path
) -> dict[str, float]:
    """The figures of the lvis package, which asks for a numpy of before 1.24."""
    lvis = pytest.importorskip("lvis")
    (tmp_path / "lvis.json").write_text(json.dumps(coco))
    truth = lvis.LVIS(str(tmp_path / "lvis.json"))
    results = lvis.LVISResults(truth, [dict(f) for f in found], max_dets=cap)
    run = lvis.LVISEval(truth, results, "bbox")
    run.params.max_dets = cap
    run.run()
    return run.results


def with_flaws(coco: dict[str, Any], seed: int) -> dict[str, Any]:
    """Boxes without an area, and some that LVIS is told to ignore."""
    rng = np.random.default_rng(seed)
    for box in coco["annotations"]:
        luck = rng.random()
        if luck < 0.1:
            box["bbox"][2] = box["area"] = 0.0
        elif luck < 0.2:
            box["area"] = 0
        elif luck < 0.3:
            box["ignore"] = 1
    return coco


def lvis_figures(
    coco: dict[str, Any], found: list[dict[str, Any]], rules: Rules
) -> dict[str, float]:
    truth = GroundTruth(coco)
    table = precision_table(truth, Predictions.from_coco(found), rules)
    kinds = {
        kind: [n for n, f in zip(truth.names, truth.frequency) if f == kind]
        for kind in "rcf"
    }
    figures = summary(truth, table, kinds)
    return {f"AP{k}": figures[f"{k}_AP"] for k in kinds} | figures


KEYS = ("AP", "AP50", "AP75", "APr", "APc", "APf")


@pytest.fixture
def old_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)


@pytest.mark.usefixtures("old_numpy")
@pytest.mark.parametrize("cap", [300, 7])
@pytest.mark.parametrize("seed", range(8))
def test_figures_agree_with_the_official_lvis(
    seed: int, cap: int, tmp_path: Path
) -> None:
    coco = lvis_truth(seed)
    found = random_predictions(coco, seed)
    random.Random(seed).shuffle(found)
    wanted = official_lvis(coco, found, cap, tmp_path)
    got = lvis_figures(coco, found, Rules("test", federated=True, per_image=cap))
    for key in KEYS:
        assert got[key] == pytest.approx(wanted[key], abs=1e-4), key
    assert 0.05 < got["AP"] < 0.95


@pytest.mark.usefixtures("old_numpy")
@pytest.mark.parametrize("seed", range(8))
def test_boxes_without_area_and_ignored_ones_are_lvis_too(
    seed: int, tmp_path: Path
) -> None:
    coco = with_flaws(lvis_truth(seed), seed)
    found = random_predictions(coco, seed)
    for box in found[::7]:
        box["bbox"][3] = 0.0
    wanted = official_lvis(coco, found, 300, tmp_path)
    got = lvis_figures(coco, found, RULES["lvis"])
    for key in KEYS:
        assert got[key] == pytest.approx(wanted[key], abs=1e-4), key


@pytest.mark.usefixtures("old_numpy")
@pytest.mark.parametrize("cap", [20, 10_000])
def test_fixed_ap_is_the_official_one_of_the_best_boxes_of_a_class(
    cap: int, tmp_path: Path
) -> None:
    coco = lvis_truth(3)
    found = random_predictions(coco, 3)
    kept = []
    for category in coco["categories"]:
        mine = [f for f in found if f["category_id"] == category["id"]]
        kept += sorted(mine, key=lambda f: f["score"], reverse=True)[:cap]
    wanted = official_lvis(coco, kept, -1, tmp_path)
    got = lvis_figures(coco, found, Rules("test", federated=True, per_class=cap))
    for key in KEYS:
        assert got[key] == pytest.approx(wanted[key], abs=1e-4), key


def test_the_fixed_cap_is_of_a_class_and_not_of_an_image() -> None:
    """400 right boxes in one image: 300 count by the standard rules, all by fixed."""
    boxes = [[float(i % 20) * 5, float(i // 20) * 5, 4.0, 4.0] for i in range(400)]
    coco = dict(
        images=[dict(id=1, neg_category_ids=[], not_exhaustive_category_ids=[])],
        annotations=[
            dict(id=i + 1, image_id=1, category_id=1, bbox=b, area=16)
            for i, b in enumerate(boxes)
        ],
        categories=[dict(id=1, name="cell", frequency="f")],
    )
    found = [dict(image_id=1, category_id=1, bbox=b, score=1.0) for b in boxes]
    standard = lvis_figures(coco, found, RULES["lvis"])
    fixed = lvis_figures(coco, found, RULES["lvis-fixed"])
    assert standard["AP"] == pytest.approx(0.75, abs=0.01)
    assert fixed["AP"] == pytest.approx(1)


def test_lvis_truth_as_predictions_scores_one() -> None:
    coco = lvis_truth(1)
    for rule in ("lvis", "lvis-fixed"):
        figures = lvis_figures(coco, truth_as_predictions(coco), RULES[rule])
        assert all(figures[key] == pytest.approx(1) for key in KEYS)


def test_nothing_found_in_lvis_scores_zero() -> None:
    figures = lvis_figures(lvis_truth(1), [], RULES["lvis"])
    assert all(figures[key] == 0 for key in KEYS)


@pytest.mark.parametrize(
    ("sides", "fields", "known"),
    [
        ((3, 4), {}, True),
        ((3, 0), {}, False),
        ((3, 4), dict(area=0), False),
        ((0, 4), dict(area=9), False),
        ((-3, -4), {}, True),  # odd, but so it was: the product is an area
        ((-3, 4), dict(area=9), False),
    ],
)
def test_lvis_knows_boxes_with_an_area(
    sides: tuple[int, int], fields: dict[str, int], known: bool
) -> None:
    coco = one_image()
    box = dict(id=1, image_id=1, category_id=1, bbox=[5, 5, *sides], **fields)
    coco["annotations"] = [box]
    truth = GroundTruth(coco)
    assert truth.objects(federated=True).tolist() == ([0] if known else [])
    assert truth.objects(federated=False).tolist() == [0]


def one_image(**lists: list[int]) -> dict[str, Any]:
    image = dict(id=1, neg_category_ids=[], not_exhaustive_category_ids=[])
    return dict(
        images=[dict(image, **lists)],
        annotations=[
            dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 10, 10], area=100)
        ],
        categories=[dict(id=i, name=str(i), frequency="f") for i in (1, 2)],
    )  # fmt: skip


@pytest.mark.parametrize(
    "lists, category, ap",
    [
        ({}, 1, 0.5),  # a wrong box of a class that is there, scored above the right
        (dict(not_exhaustive_category_ids=[1]), 1, 1.0),  # may be right after all
        ({}, 2, 1.0),  # nobody looked for class 2
        (dict(neg_category_ids=[2]), 2, 1.0),  # class 2 has no object: no figure
    ],
)
def test_what_an_image_does_not_verify_does_not_count(
    lists: dict[str, list[int]], category: int, ap: float
) -> None:
    right = dict(image_id=1, category_id=1, bbox=[0, 0, 10, 10], score=0.5)
    wrong = dict(image_id=1, category_id=category, bbox=[50, 50, 9, 9], score=0.9)
    figures = lvis_figures(one_image(**lists), [right, wrong], RULES["lvis"])
    assert figures["AP"] == pytest.approx(ap)


# ------------------------------------------------------------------------ laws


def shuffled(coco: dict[str, Any], seed: int) -> tuple[dict[str, Any], dict[int, int]]:
    """Other ids of categories, images and boxes, in another order, everywhere."""
    rng = random.Random(seed)
    coco = copy.deepcopy(coco)
    new = {}
    for key in ("categories", "images"):
        ids = [item["id"] for item in coco[key]]
        new[key] = dict(zip(ids, rng.sample(range(1, 5000), len(ids))))
        for item in coco[key]:
            item["id"] = new[key][item["id"]]
    for image in coco["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if key in image:
                image[key] = [new["categories"][i] for i in image[key]]
    for number, box in enumerate(rng.sample(coco["annotations"],
                                            len(coco["annotations"]))):  # fmt: skip
        box["id"] = number + 7
        box["category_id"] = new["categories"][box["category_id"]]
        box["image_id"] = new["images"][box["image_id"]]
    for key in ("categories", "images", "annotations"):
        rng.shuffle(coco[key])
    coco = {key: coco[key] for key in rng.sample(sorted(coco), len(coco))}
    return coco, new


@pytest.mark.parametrize("rule", ["coco", "lvis", "lvis-fixed"])
def test_twenty_ways_to_write_the_same_file_give_the_same_figures(rule: str) -> None:
    coco = lvis_truth(4)
    found = random_predictions(coco, 4)
    for i, box in enumerate(found):
        box["score"] = i / len(found)  # between ties the file's order decides
    wanted = lvis_figures(coco, found, RULES[rule])
    for seed in range(20):
        other, new = shuffled(coco, seed)
        renamed = [
            dict(f, category_id=new["categories"][f["category_id"]],
                 image_id=new["images"][f["image_id"]])
            for f in random.Random(seed).sample(found, len(found))
        ]  # fmt: skip
        got = lvis_figures(other, renamed, RULES[rule])
        assert got == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("boxes, pairs", [(1, 10**9), (10**9, 1), (40, 60)])
def test_the_parts_that_are_evaluated_at_a_time_do_not_matter(
    boxes: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco = lvis_truth(5)
    found = Predictions.from_coco(random_predictions(coco, 5))
    truth = GroundTruth(coco)
    wanted = {name: precision_table(truth, found, RULES[name]) for name in RULES}
    # the package has a function of the module's name
    module = importlib.import_module("kdeov_mm.evaluation.average_precision")
    monkeypatch.setattr(module, "CHUNK_BOXES", boxes)
    monkeypatch.setattr(module, "CHUNK_PAIRS", pairs)
    for name, table in wanted.items():
        assert (precision_table(truth, found, RULES[name]) == table).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_class_of_many_boxes_is_matched_some_images_at_a_time(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco = lvis_truth(5)
    for box in (found := random_predictions(coco, 5)):
        box["category_id"] = coco["categories"][0]["id"]
    truth, boxes = GroundTruth(coco), Predictions.from_coco(found)
    whole = precision_table(truth, boxes, RULES[rule])
    verdicts = outcomes(truth, boxes, RULES[rule])
    module = importlib.import_module("kdeov_mm.evaluation.average_precision")
    records, sizes = module._records, []
    monkeypatch.setattr(
        module, "_records", lambda o, r, *a: sizes.append(len(r)) or records(o, r, *a)
    )
    monkeypatch.setattr(module, "CHUNK_BOXES", 20)
    assert (precision_table(truth, boxes, RULES[rule]) == whole).all()
    assert (outcomes(truth, boxes, RULES[rule]) == verdicts).all() and 1 in verdicts
    # to the end of an image
    assert 20 < max(sizes) < 60


def test_little_is_kept_of_a_box_and_all_of_its_figures(tmp_path: Path) -> None:
    """Not the outlines of the file, nor what a model's boxes are a view of."""
    coco = lvis_truth(5)
    (tmp_path / "a.json").write_text(json.dumps(coco))
    metric = OpenVocabularyMetric(str(tmp_path / "a.json"), "a test", ("coco", "lvis"))
    assert not any("segmentation" in a for a in metric.file.content["annotations"])
    names = [c["name"] for c in coco["categories"]]
    metric.dataset_meta = dict(classes=names)
    place = {c["id"]: i for i, c in enumerate(coco["categories"])}
    found = random_predictions(coco, 5)
    for image in coco["images"]:
        mine = [f for f in found if f["image_id"] == image["id"]]
        xywh = np.array([f["bbox"] for f in mine]).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1).astype("f4")
        kept = dict(
            bboxes=torch.tensor(np.concatenate([boxes] * 5))[: len(mine)],
            scores=torch.tensor([f["score"] for f in mine]),
            labels=torch.tensor([place[f["category_id"]] for f in mine]),
        )
        metric.process({}, [dict(img_id=image["id"], pred_instances=kept)])
        # as the metric has them: corners in float32
        for box, corners in zip(mine, boxes.astype(float).tolist()):
            x, y, right, bottom = corners
            box["bbox"] = [x, y, right - x, bottom - y]
            box["score"] = float(np.float32(box["score"]))
    arrays = [a for result in metric.results for a in result[1:4]]
    assert all(a.base is None for a in arrays)
    assert sum(a.nbytes for a in arrays) == 24 * len(found)
    got = metric.evaluate(len(coco["images"]))
    truth, boxes = GroundTruth(coco), Predictions.from_coco(found)
    for rule, lead in (("coco", ""), ("lvis", "lvis_")):
        table = precision_table(truth, boxes, RULES[rule])
        assert got[f"ov/{lead}AP"] == summary(truth, table, {})["AP"]


@pytest.mark.parametrize("least", [-1, 0, 10**17])
@pytest.mark.parametrize("rule", ["coco", "lvis", "lvis-fixed"])
def test_ids_may_be_any_whole_numbers(rule: str, least: int) -> None:
    coco = lvis_truth(6)
    found = random_predictions(coco, 6)
    wanted = lvis_figures(coco, found, RULES[rule])
    keys = dict(categories="category_id", images="image_id")
    for part, key in keys.items():
        low = min(item["id"] for item in coco[part])
        for item in coco[part]:
            item["id"] += least - low
        for box in coco["annotations"] + found:
            box[key] += least - low
        for image in coco["images"] if part == "categories" else ():
            for name in ("neg_category_ids", "not_exhaustive_category_ids"):
                image[name] = [i + least - low for i in image[name]]
    assert lvis_figures(coco, found, RULES[rule]) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda c: c["categories"].append(dict(c["categories"][0], id=77)), "twice"),
        (lambda c: c["images"].append(c["images"][0]), "twice"),
        (lambda c: c["images"][0].update(id="7"), "whole numbers"),
        (lambda c: c["categories"][0].update(id=2.5), "whole numbers"),
        (lambda c: c["images"].pop(), "another one"),
    ],
)
def test_a_file_that_cannot_be_evaluated_is_refused(change: Any, reason: str) -> None:
    coco = make_coco()
    change(coco)
    with pytest.raises(ValueError, match=reason):
        GroundTruth(coco)


@pytest.mark.parametrize(
    "key, value", [("score", math.nan), ("bbox", [0, 0, 1, math.inf])]
)
def test_what_is_no_number_is_refused_with_its_image(key: str, value: Any) -> None:
    coco = make_coco()
    found = truth_as_predictions(coco)
    found[3][key] = value
    with pytest.raises(ValueError, match=rf"images \[{found[3]['image_id']}\]"):
        coco_figures(coco, found, {})


def test_lvis_rules_need_lvis_lists() -> None:
    with pytest.raises(ValueError, match="neg_category_ids.*COCO's rules fit"):
        lvis_figures(make_coco(), truth_as_predictions(make_coco()), RULES["lvis"])


def test_predictions_of_another_file_are_refused() -> None:
    truth = GroundTruth(make_coco())
    for key, value in (("image_id", 99), ("category_id", 99)):
        box = dict(image_id=1, category_id=3, bbox=[0, 0, 1, 1], score=1.0)
        found = Predictions.from_coco([dict(box, **{key: value})])
        with pytest.raises(ValueError, match=r"ids \[99\].*another one"):
            precision_table(truth, found, RULES["coco"])


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


def log_lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the metrics log from now on."""
    lines: list[str] = []
    monkeypatch.setattr(
        "kdeov_mm.evaluation.protocol_metric.MMLogger.get_current_instance",
        lambda: SimpleNamespace(info=lines.append),
    )
    return lines


def test_the_protocol_stands_beside_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = log_lines(monkeypatch)
    dataset = load(OVCocoDataset, make_coco(), tmp_path / "a.json")
    evaluate(make_coco(), dataset, tmp_path)
    (text,) = lines
    name = "COCO AP (100 boxes per class and image)"
    assert f"Protocol: a test (6 images, 5 words), {name}" in text
    assert "AP50" in text


def test_an_image_that_comes_twice_counts_once(tmp_path: Path) -> None:
    """As in the last batch of several processes."""
    coco = make_coco()
    file = load(OVCocoDataset, coco, tmp_path / "a.json").ann_file
    metric = OpenVocabularyMetric(file, "a test")
    metric.dataset_meta = dict(classes=NAMES)
    ids = {c["id"]: NAMES.index(c["name"]) for c in coco["categories"]}
    for image in [*range(1, 7), 1, 2]:
        mine = [a for a in coco["annotations"] if a["image_id"] == image]
        boxes = torch.tensor([a["bbox"] for a in mine])
        boxes[:, 2:] += boxes[:, :2]
        found = dict(
            bboxes=boxes.bfloat16().float(),
            scores=torch.full((len(mine),), 0.7).bfloat16(),
            labels=torch.tensor([ids[a["category_id"]] for a in mine]),
        )
        metric.process({}, [dict(img_id=image, pred_instances=found)])
    assert metric.evaluate(8)["ov/AP50"] == pytest.approx(1)


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_without_a_word_is_refused(tmp_path: Path, label: int) -> None:
    file = load(OVCocoDataset, make_coco(), tmp_path / "a.json").ann_file
    metric = OpenVocabularyMetric(file, "a test")
    metric.dataset_meta = dict(classes=NAMES)
    found = dict(
        bboxes=torch.ones(1, 4), scores=torch.ones(1), labels=label * torch.ones(1)
    )
    metric.process({}, [dict(img_id=1, pred_instances=found)])
    with pytest.raises(ValueError, match=f"labels from {label} to {label} for 5 words"):
        metric.evaluate(1)


def test_a_group_without_objects_is_null_in_the_file(tmp_path: Path) -> None:
    coco = make_coco()
    coco["categories"].append(dict(id=50, name="never there"))
    (tmp_path / "a.json").write_text(json.dumps(coco))
    metric = OpenVocabularyMetric(
        str(tmp_path / "a.json"), "a test", reliability=True,
        out_file=str(tmp_path / "out.json"),
    )  # fmt: skip
    names = (*NAMES, "never there")
    metric.dataset_meta = dict(classes=names, novel_classes=names[-1:])
    found = dict(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0))
    metric.process({}, [dict(img_id=1, pred_instances=found)])
    assert math.isnan(metric.evaluate(1)["ov/novel_ECE"])
    report = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    (figures,) = report["metrics"].values()
    assert figures["novel_AP"] is None and figures["AP"] == 0


def test_unknown_rules_are_refused(tmp_path: Path) -> None:
    file = load(OVCocoDataset, make_coco(), tmp_path / "a.json").ann_file
    with pytest.raises(ValueError, match=r"lvis-fixed.*'voc'"):
        OpenVocabularyMetric(file, protocol="a test", rules=("voc",))


def test_all_figures_stand_in_the_file_under_their_protocols(tmp_path: Path) -> None:
    coco = lvis_truth(2)
    names = tuple(c["name"] for c in coco["categories"])
    (tmp_path / "a.json").write_text(json.dumps(coco))
    metric = OpenVocabularyMetric(
        str(tmp_path / "a.json"),
        "a test",
        rules=("lvis", "lvis-fixed"),
        reliability=True,
        out_file=str(tmp_path / "deep/figures.json"),
    )
    metric.dataset_meta = dict(classes=names, novel_classes=names[:4], r_classes=names)
    ids = {c["id"]: names.index(c["name"]) for c in coco["categories"]}
    for image in coco["images"]:
        mine = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor([a["bbox"] for a in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found = dict(
            bboxes=boxes,
            scores=torch.full((len(mine),), 0.7),
            labels=torch.tensor([ids[a["category_id"]] for a in mine], dtype=int),
        )
        metric.process({}, [dict(img_id=image["id"], pred_instances=found)])
    figures = metric.evaluate(len(coco["images"]))
    report = json.loads((tmp_path / "deep/figures.json").read_text())
    assert set(report["metrics"]) == {RULES["lvis"].name, RULES["lvis-fixed"].name}
    for name, lead in (
        (RULES["lvis"].name, ""),
        (RULES["lvis-fixed"].name, "lvis-fixed_"),
    ):
        for key in ("AP", "AP50", "APr", "APc", "APf", "novel_AP50"):
            assert report["metrics"][name][key] == figures[f"ov/{lead}{key}"]
            assert figures[f"ov/{lead}{key}"] == pytest.approx(1)
    assert "r_AP" not in figures  # it is APr
    assert figures["ov/novel_FPPI@R0.5"] == 0
    assert figures["ov/all_right@0.7"] == 1
    assert figures["ov/all_ECE"] == pytest.approx(0.3, abs=1e-6)
    assert (report["images"], report["words"]) == (30, 12)
    assert report["protocol"] == "a test"


SAID = {
    None: ("no cap per image", "no cap per image", None),
    -1: ("no cap per image", "no cap per image", None),
    1000: (
        "at most 1000 boxes per image (the model's cap)",
        "at most 1000 boxes per image (the model's cap; the rules have none)",
        1000,
    ),
    100: (
        "at most 100 boxes per image (the model's cap; the rules count 300)",
        "at most 100 boxes per image (the model's cap; the rules have none)",
        100,
    ),
    "absent": ("cap per image not known", "cap per image not known", "not known"),
}


@pytest.mark.parametrize("cap", SAID)
def test_the_models_own_cap_stands_beside_the_rules(
    cap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cap is claimed where the model has one, or where nobody knows."""
    coco, lines = lvis_truth(2), log_lines(monkeypatch)
    (tmp_path / "a.json").write_text(json.dumps(coco))
    metric = OpenVocabularyMetric(
        str(tmp_path / "a.json"), "a test", rules=("lvis", "lvis-fixed"),
        out_file=str(tmp_path / "figures.json"),
    )  # fmt: skip
    metric.dataset_meta = dict(classes=[c["name"] for c in coco["categories"]])
    found = dict(bboxes=torch.ones(1, 4), scores=torch.ones(1), labels=torch.zeros(1))
    meta = {} if cap == "absent" else dict(max_per_img=cap)
    for image in coco["images"]:
        metric.process({}, [dict(img_id=image["id"], pred_instances=found, **meta)])
    metric.evaluate(len(coco["images"]))
    standard, fixed, number = SAID[cap]
    (text,) = lines
    assert f"LVIS AP, standard (300 boxes per image), {standard}\n" in text
    assert f"LVIS AP, fixed (10,000 boxes per class), {fixed}\n" in text
    assert ("no cap" in text) == (number is None)
    assert json.loads((tmp_path / "figures.json").read_text())["max_per_img"] == number
