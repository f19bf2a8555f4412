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
    OVLVISDataset,
    PackInputs,
    Shapes1203Dataset,
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
    """The trap. When this fails, mmdet matches by name, and our order of ids can go."""
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
    coco["annotations"][0]["category_id"] = 55
    with pytest.raises(ValueError, match="'mouse'.*there twice, each with boxes"):
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
    compute = OVHead.losses

    def watch(self: OVHead, located: Any, text: torch.Tensor, samples: Any) -> Any:
        words = [nearest_word(row) for row in text]
        asked.update(words)
        for sample in samples:
            truth, factor = sample.gt_instances, torch.tensor(sample.scale_factor * 2)
            for label, box in zip(truth.labels, truth.bboxes / factor, strict=True):
                seen.append((sample.img_id, words[label], box))
        return compute(self, located, text, samples)

    every_word = model.text_encoder(shapes.CLASSES)

    def nearest_word(vector: torch.Tensor) -> str:
        (index,) = (every_word == vector).all(1).nonzero()
        return shapes.CLASSES[index]

    monkeypatch.setattr(OVHead, "losses", watch)
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


# ------------------------------------------------------------------ federated


def federated() -> dict[str, Any]:
    """make_coco's file as LVIS's: cranes are nowhere, of mice not all have a box."""
    coco = make_coco()
    cranes = [a for a in coco["annotations"] if a["category_id"] == 12]
    for box in cranes:
        coco["annotations"].remove(box)
    for image in coco["images"]:
        image.update(neg_category_ids=[12], not_exhaustive_category_ids=[90])
    return coco


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], NAMES[:2]])
def test_a_sample_of_lvis_says_what_is_verified(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    """What is annotated or listed as absent, without what is not exhaustive."""
    coco = federated()
    name = {c["id"]: c["name"] for c in coco["categories"]}
    dataset = load(
        OVLVISDataset, coco, tmp_path / "a.json", metainfo=dict(classes=order)
    )
    for info in map(dataset.get_data_info, range(len(dataset))):
        mine = [a for a in coco["annotations"] if a["image_id"] == info["img_id"]]
        known = {name[a["category_id"]] for a in mine} | {"crane"}
        labels = {order.index(n) for n in (known - {"mouse"}) & {*order}}
        assert info["verified_labels"] == tuple(sorted(labels))
        unfinished = {order.index(n) for n in {"mouse"} & {*order}}
        assert info["not_exhaustive_labels"] == tuple(unfinished)
    assert "mouse" in {name[a["category_id"]] for a in coco["annotations"]}


def test_boxes_narrower_than_a_pixel_are_taught_and_verified(tmp_path: Path) -> None:
    """The evaluation counts them; mmdet's data set leaves them out."""
    coco = federated()
    for box in coco["annotations"]:
        box["bbox"][2] = 0.5
    dataset = load(OVLVISDataset, coco, tmp_path / "a.json")
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert sum(len(i["instances"]) for i in infos) == len(coco["annotations"])
    for info in infos:
        mine = {
            a["category_id"]
            for a in coco["annotations"]
            if a["image_id"] == info["img_id"]
        }
        labels = {dataset.cat2label[i] for i in (mine | {12}) - {90}}
        assert {*info["verified_labels"]} == labels


def test_label_weights_are_roots_of_the_numbers_of_images(
    world_1203: Path, tmp_path: Path
) -> None:
    """As the file's own `image_count`, and one object for all samples."""
    file = world_1203 / "annotations/instances_train_base.json"
    dataset = Shapes1203Dataset(
        ann_file=str(file), vocabulary="base", data_prefix=dict(img=""), pipeline=[],
        filter_cfg=dict(filter_empty_gt=False),
    )  # fmt: skip
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    weights = infos[0]["label_weights"]
    assert all(info["label_weights"] is weights for info in infos)
    count = {
        c["name"]: c["image_count"] for c in json.loads(file.read_text())["categories"]
    }
    wanted = [count[name] ** 0.5 for name in dataset.metainfo["classes"]]
    assert list(weights) == pytest.approx(wanted) and max(weights) > 0
    packed = [PackInputs()(dict(info, img=np.zeros((4, 4, 3)))) for info in infos]
    for info, result in zip(infos, packed, strict=True):
        sample = result["data_samples"]
        assert sample.verified_labels == info["verified_labels"]
        assert sample.not_exhaustive_labels == info["not_exhaustive_labels"]
        assert sample.label_weights == weights


@pytest.mark.parametrize(
    "dataset, listed, test_mode",
    [
        (OVCocoDataset, True, False),
        (OVLVISDataset, False, False),
        (OVLVISDataset, True, True),
    ],
)
def test_other_data_are_not_federated(
    dataset: type[OVCocoDataset], listed: bool, test_mode: bool, tmp_path: Path
) -> None:
    """COCO's, a file without the lists, and what is tested."""
    coco = federated() if listed else make_coco()
    made = load(dataset, coco, tmp_path / "a.json", test_mode=test_mode)
    for i in range(len(made)):
        assert not {"verified_labels", "label_weights"} & {*made.get_data_info(i)}


def test_lists_of_some_images_alone_are_refused(tmp_path: Path) -> None:
    coco = federated()
    del coco["images"][2]["neg_category_ids"]
    with pytest.raises(ValueError, match="1 of 6 images .* no `neg_category_ids`"):
        load(OVLVISDataset, coco, tmp_path / "a.json")


def test_the_lvis_configs_repeat_images_of_rare_classes(
    load_config: Callable[..., Config],
) -> None:
    """Repeat factor 1e-3, around the data set with the words."""
    loader = load_config("kdeov_n_ovlvis.py").train_dataloader
    assert loader.dataset.type == "ClassBalancedDataset"
    assert loader.dataset.oversample_thr == 1e-3
    dataset = Runner.build_dataloader(loader, seed=0).dataset
    sample = dataset[0]["data_samples"]
    assert len(sample.words) == len(sample.label_weights) == 866
    assert 0 < len(sample.verified_labels) < 866
    # each class is in 1 of 7 images at least: none is repeated at this threshold
    often = type(dataset)(dataset.dataset, oversample_thr=4.0)
    assert len(dataset) == 7 < len(often)


def test_only_verified_and_drawn_words_count_as_absent_in_lvis(
    load_config: Callable[..., Config],
) -> None:
    """From the file to the student: 50 words are drawn in a step, 866 are asked."""
    cfg = load_config("kdeov_n_ovlvis.py")
    model = MODELS.build(cfg.model)
    loader = iter(Runner.build_dataloader(cfg.train_dataloader, seed=0))
    drawn, unfinished = set(), 0
    samples = model.data_preprocessor(next(loader), training=True)["data_samples"]
    words, relabelled = model.vocabulary(samples)
    for sample in relabelled:
        names = [own[0] for own in sample.words]
        verified = {names[i] for i in sample.verified_labels}
        counted = {word for (word,), known in zip(words, sample.verified) if known}
        open_ended = {names[i] for i in sample.not_exhaustive_labels}
        assert not counted & open_ended
        drawn |= counted - verified
        unfinished += len(open_ended)
    assert 0 < len(drawn) <= 50 < len(words) and unfinished


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
