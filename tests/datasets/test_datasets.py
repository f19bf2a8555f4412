"""Labels and words cannot drift apart; unseen boxes stay unseen."""

import copy
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from torchvision.ops import box_iou

from kdeov_mm.datasets import (
    LoadWords,
    OVCocoDataset,
    PackInputs,
    ShapesDataset,
    shapes,
)
from kdeov_mm.models import OVHead

from ..conftest import run_env

NAMES = ("zebra", "apple", "mouse", "crane", "kiwi")


def make_coco(seed: int = 0, images: int = 6) -> dict[str, Any]:
    """Random boxes; category ids are neither dense nor sorted."""
    rng = np.random.default_rng(seed)
    ids = dict(zip(NAMES, (7, 3, 90, 12, 1), strict=True))
    annotations = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(1, 5)):
            x, y, w, h = rng.uniform(5, 40, 4).round(1).tolist()
            name = NAMES[rng.integers(len(NAMES))]
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image, category_id=ids[name],
                     bbox=[x, y, w, h], area=w * h, iscrowd=0)
            )  # fmt: skip
    sizes = dict(width=100, height=100)
    return dict(
        images=[
            dict(id=i, file_name=f"{i}.jpg", **sizes) for i in range(1, images + 1)
        ],
        annotations=annotations,
        categories=[dict(id=i, name=name) for name, i in ids.items()],
    )


def one_word_each(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The words of classes without synonyms."""
    return tuple((name,) for name in names)


def permuted(coco: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    """The same truth, with other category ids in another order."""
    rng = random.Random(seed)
    coco = copy.deepcopy(coco)
    ids = [c["id"] for c in coco["categories"]]
    new = dict(zip(ids, rng.sample(range(1, 100), len(ids)), strict=True))
    for category in coco["categories"]:
        category["id"] = new[category["id"]]
    for annotation in coco["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]
    rng.shuffle(coco["categories"])
    return coco


def load(
    dataset: type[CocoDataset], coco: dict[str, Any], path: Path, **kwargs: Any
) -> CocoDataset:
    path.write_text(json.dumps(coco))
    kwargs.setdefault("metainfo", dict(classes=NAMES))
    return dataset(ann_file=str(path), data_prefix=dict(img=""), pipeline=[], **kwargs)


def named_boxes(dataset: CocoDataset, classes: tuple[str, ...]) -> list[Any]:
    """(image, name by label, box) of every instance."""
    return sorted(
        (info["img_id"], classes[i["bbox_label"]], tuple(np.round(i["bbox"], 3)))
        for info in map(dataset.get_data_info, range(len(dataset)))
        for i in info["instances"]
    )


def true_boxes(coco: dict[str, Any]) -> list[Any]:
    name = {c["id"]: c["name"] for c in coco["categories"]}
    rows = []
    for a in coco["annotations"]:
        x, y, w, h = a["bbox"]
        box = tuple(np.round([x, y, x + w, y + h], 3))
        rows.append((a["image_id"], name[a["category_id"]], box))
    return sorted(rows)


# ---------------------------------------------------------- labels are by name


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]])
@pytest.mark.parametrize("file", ["as written", "permuted"])
def test_labels_index_the_words_whatever_the_files_order(
    tmp_path: Path, order: tuple[str, ...], file: str
) -> None:
    coco = make_coco() if file == "as written" else permuted(make_coco())
    dataset = load(
        OVCocoDataset, coco, tmp_path / "a.json", metainfo=dict(classes=order)
    )
    info = dataset.get_data_info(0)
    assert order == tuple(dataset.metainfo["classes"])
    assert info["words"] == one_word_each(order)
    firsts = tuple(words[0] for words in info["words"])
    assert named_boxes(dataset, firsts) == true_boxes(coco)


def test_the_stock_data_set_permutes_silently(tmp_path: Path) -> None:
    """The trap. When this fails, mmdet matches by name and COCOByName can go."""
    coco = make_coco()
    dataset = load(
        CocoDataset, coco, tmp_path / "a.json", metainfo=dict(classes=NAMES[::-1])
    )
    assert named_boxes(dataset, NAMES[::-1]) != true_boxes(coco)
    assert named_boxes(dataset, NAMES) == true_boxes(coco)  # the file's order


def test_a_subset_of_the_classes_keeps_only_its_boxes(tmp_path: Path) -> None:
    coco, two = permuted(make_coco()), ("kiwi", "apple")
    dataset = load(OVCocoDataset, coco, tmp_path / "a.json", metainfo=dict(classes=two))
    wanted = [row for row in true_boxes(coco) if row[1] in two]
    assert wanted and named_boxes(dataset, two) == wanted


def test_a_class_that_the_file_lacks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'giraffe'.*make metainfo.classes"):
        load(OVCocoDataset, make_coco(), tmp_path / "a.json",
             metainfo=dict(classes=("zebra", "giraffe")))  # fmt: skip


def test_a_class_that_the_file_has_twice_is_refused_by_name(tmp_path: Path) -> None:
    coco = make_coco()
    coco["categories"].append(dict(id=55, name="mouse"))
    with pytest.raises(ValueError, match="not exactly once.*'mouse'"):
        load(OVCocoDataset, coco, tmp_path / "a.json")


# --------------------------------------------------------------- built-in world


@pytest.mark.parametrize(
    "vocabulary, split, classes",
    [("base", "train_base", shapes.BASE_CLASSES), ("all", "val", shapes.CLASSES)],
)
def test_shapes_labels_are_those_of_the_file(
    world: Path, vocabulary: str, split: str, classes: tuple[str, ...]
) -> None:
    file = world / f"annotations/instances_{split}.json"
    dataset = ShapesDataset(
        ann_file=str(file), vocabulary=vocabulary, pipeline=[],
        data_prefix=dict(img=""), filter_cfg=dict(filter_empty_gt=False),
    )  # fmt: skip
    coco = json.loads(file.read_text())
    assert dataset.get_data_info(0)["words"] == one_word_each(classes)
    assert named_boxes(dataset, classes) == true_boxes(coco)
    assert len(dataset) == len(coco["images"])
    assert len(dataset.metainfo["palette"]) == len(classes)


def test_the_three_groups_reach_the_evaluation(world: Path) -> None:
    dataset = ShapesDataset(
        ann_file=str(world / "annotations/instances_val.json"), pipeline=[],
        data_prefix=dict(img=""),
    )  # fmt: skip
    groups = [dataset.metainfo[f"{g}_classes"] for g in ("base", "combo", "novel")]
    assert sorted(name for g in groups for name in g) == sorted(shapes.CLASSES)


def test_an_unknown_vocabulary_is_refused(world: Path) -> None:
    with pytest.raises(ValueError, match=r"'all', one of \['base', 'combo', 'novel'"):
        ShapesDataset(ann_file=str(world), vocabulary="rare")


def test_boxes_of_novel_objects_never_reach_the_loss(
    load_config: Callable[..., Config], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of the demo's data, looked at where the loss gets them."""
    cfg = load_config("kdeov_n_shapes.py")
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == "RandomFlip":
            step.prob = 0.0  # boxes stay where the file has them
    model = MODELS.build(cfg.model)
    asked: set[str] = set()
    seen: list[tuple[int, str, torch.Tensor]] = []
    compute = OVHead.loss_and_regions

    def watch(self: OVHead, feats: Any, text: torch.Tensor, samples: Any) -> Any:
        words = [nearest_word(row) for row in text]
        asked.update(words)
        for sample in samples:
            truth, factor = sample.gt_instances, torch.tensor(sample.scale_factor * 2)
            for label, box in zip(truth.labels, truth.bboxes / factor, strict=True):
                seen.append((sample.img_id, words[label], box))
        return compute(self, feats, text, samples)

    every_word = model.text_encoder(shapes.CLASSES)

    def nearest_word(vector: torch.Tensor) -> str:
        (index,) = (every_word == vector).all(1).nonzero()
        return shapes.CLASSES[index]

    monkeypatch.setattr(OVHead, "loss_and_regions", watch)
    loader = iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))
    for _ in range(6):
        data = model.data_preprocessor(next(loader), training=True)
        model(**data, mode="loss")

    truth = json.loads((world / "annotations/instances_train_all.json").read_text())
    name = {c["id"]: c["name"] for c in truth["categories"]}
    hidden, known = {}, {}
    for a in truth["annotations"]:
        x, y, w, h = a["bbox"]
        is_base = name[a["category_id"]] in shapes.BASE_CLASSES
        box = (name[a["category_id"]], torch.tensor([x, y, x + w, y + h]))
        (known if is_base else hidden).setdefault(a["image_id"], []).append(box)
    assert sum(map(len, hidden.values())) > 5  # there is something to hide

    assert {image for image, _, _ in seen} >= set(known)  # all images were shown
    for image, word, box in seen:
        assert any(
            word == other and box_iou(box[None], there[None]) > 0.95
            for other, there in known[image]
        ), f"image {image}: no base object {word} at {box}"
        for other, there in hidden.get(image, ()):
            assert box_iou(box[None], there[None]) <= 0.95, f"{other} was shown"
    assert asked <= set(shapes.BASE_CLASSES)


# ------------------------------------------------------------- any other format


def test_load_words_gives_a_sample_its_words() -> None:
    results = dict(img_path="a.jpg", instances=[dict(bbox_label=1)])
    words = (("cat",), ("dog",))
    assert LoadWords(["cat", "dog"])(results)["words"] == words
    assert LoadWords(["cat", "dog"])(dict(img_path="a.jpg"))["words"] == words
    more = (("cat", "kitty"), ("dog",))
    assert LoadWords(more)(results)["words"] == more


def test_pack_inputs_keeps_what_the_pipeline_made_and_nothing_else() -> None:
    results = dict(img=np.zeros((4, 5, 3), np.uint8), img_id=7, words=(("cat",),))
    sample = PackInputs()(dict(results, flip=True, more=1))["data_samples"]
    assert sample.metainfo == dict(img_id=7, words=(("cat",),), flip=True)
    few = PackInputs(meta_keys=["img_id"])(results)["data_samples"]
    assert few.metainfo == dict(img_id=7)


def test_the_package_needs_no_fcntl_and_no_ijson() -> None:
    """Windows has no fcntl; ijson is of tools/prepare_splits.py alone."""
    code = "import sys; sys.modules.update(fcntl=None, ijson=None); import kdeov_mm"
    subprocess.run([sys.executable, "-c", code], check=True, env=run_env())


def test_load_words_refuses_labels_without_a_word() -> None:
    results = dict(img_path="some/a.jpg", instances=[dict(bbox_label=2)])
    with pytest.raises(ValueError, match=r"some/a.jpg has label 2.*2 words"):
        LoadWords(["cat", "dog"])(results)


@pytest.mark.parametrize("words", ["raccoon", [], ()])
def test_load_words_refuses_what_is_no_list_of_words(words: Any) -> None:
    with pytest.raises(ValueError, match="expected a list of words"):
        LoadWords(words)
