"""Every picture has its own captions, its own label, and its own pixels."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image

from kdeov_mm.datasets import (
    CaptionDataset,
    CropDataset,
    CropToBox,
    ImageFolderDataset,
    LoadCaptions,
    OVCocoDataset,
    ShapesCrops,
    ShapesDataset,
    shapes,
)
from kdeov_mm.datasets.image_text import IMAGENET
from kdeov_mm.evaluation import ZeroShotMetric
from kdeov_mm.vocabulary import clean_name

from ..datasets.test_datasets import (
    NAMES,
    load,
    make_coco,
    one_word_each,
    permuted,
    true_boxes,
)

PACK = dict(
    type="PackInputs",
)
LOAD = dict(type="LoadImageFromFile")


def records(dataset: BaseDataset) -> list[dict[str, Any]]:
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def noise(path: Path, width: int = 100, height: int = 100) -> np.ndarray:
    """A picture without loss, in the file's RGB."""
    rng = np.random.default_rng(len(str(path)))
    pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return pixels


def as_input(pixels: np.ndarray) -> torch.Tensor:
    """RGB (H, W, 3) as a data set gives it: BGR (3, H, W)."""
    return torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)


# -------------------------------------------------------------------- captions


def caption_file(
    path: Path, captions: dict[Any, Sequence[str]], images: Sequence[Any] = ()
) -> Path:
    """COCO's format, the captions of all images in each other's way."""
    rows = [(image, text) for image, texts in captions.items() for text in texts]
    random.Random(0).shuffle(rows)
    listed = [
        dict(id=i, file_name=f"{i}.png", width=64, height=48)
        for i in images or captions
    ]
    annotations = [
        dict(id=n, image_id=image, caption=text) for n, (image, text) in enumerate(rows)
    ]
    path.write_text(json.dumps(dict(images=listed, annotations=annotations)))
    return path


FIVE = {i: [f"{n} sheep on hill {i}" for n in range(5)] for i in (42, 7, 19, 3)}


def test_each_image_has_its_own_five_captions(tmp_path: Path) -> None:
    file = caption_file(tmp_path / "a.json", FIVE, images=(3, 42, 7, 19))
    dataset = CaptionDataset(
        ann_file=str(file), data_prefix=dict(img="some/folder/"), pipeline=[]
    )
    rows = records(dataset)
    assert [row["img_id"] for row in rows] == [3, 42, 7, 19]  # the file's order
    for row in rows:
        assert sorted(row["captions"]) == FIVE[row["img_id"]]
        assert row["img_path"] == f"some/folder/{row['img_id']}.png"
        assert (row["height"], row["width"]) == (48, 64)


def test_captions_are_in_the_files_order(tmp_path: Path) -> None:
    file = caption_file(tmp_path / "a.json", FIVE)
    annotations = json.loads(file.read_text())["annotations"]
    for row in records(CaptionDataset(ann_file=str(file), pipeline=[])):
        mine = [a["caption"] for a in annotations if a["image_id"] == row["img_id"]]
        assert row["captions"] == tuple(mine)


def test_images_may_have_captions_of_any_number(tmp_path: Path) -> None:
    many = {"a": ["x"], "b": [f"y {n}" for n in range(7)], "c": ["z", "z"]}
    file = caption_file(tmp_path / "a.json", many)
    rows = records(CaptionDataset(ann_file=str(file), pipeline=[]))
    assert [(row["img_id"], len(row["captions"])) for row in rows] == [
        ("a", 1),
        ("b", 7),
        ("c", 2),
    ]


@pytest.mark.parametrize(
    "places",
    [
        dict(data_root="{root}", ann_file="a.json", data_prefix=dict(img="val/")),
        dict(data_root="{root}", ann_file="a.json", data_prefix=dict(img_path="val/")),
        dict(ann_file="{root}/a.json", data_prefix=dict(img="{root}/val")),
    ],
)
def test_pictures_lie_below_the_data_root(
    tmp_path: Path, places: dict[str, Any]
) -> None:
    caption_file(tmp_path / "a.json", {1: ["x"]})
    places = json.loads(json.dumps(places).replace("{root}", str(tmp_path)))
    (row,) = records(CaptionDataset(**places, pipeline=[]))
    assert row["img_path"] == str(tmp_path / "val/1.png")


@pytest.mark.parametrize("prefix", [dict(img=""), dict(img_path=""), dict()])
def test_file_names_may_be_whole_paths(tmp_path: Path, prefix: dict[str, str]) -> None:
    file = caption_file(tmp_path / "a.json", {1: ["x"]})
    dataset = CaptionDataset(ann_file=str(file), data_prefix=prefix, pipeline=[])
    assert dataset.get_data_info(0)["img_path"] == "1.png"


def test_captions_are_cleaned_of_white_space(tmp_path: Path) -> None:
    texts = ["  A dog.\n", "two\t cats \r\n sit", "\n", "A dog_sled"]
    file = caption_file(tmp_path / "a.json", {1: texts})
    (row,) = records(CaptionDataset(ann_file=str(file), pipeline=[]))
    assert sorted(row["captions"]) == ["A dog.", "A dog_sled", "two cats sit"]


def test_a_caption_of_an_unlisted_image_is_refused(tmp_path: Path) -> None:
    file = caption_file(tmp_path / "a.json", FIVE, images=(42, 7, 19))
    with pytest.raises(ValueError, match="a.json: caption .* is of image 3, which"):
        CaptionDataset(ann_file=str(file), pipeline=[])


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_an_image_without_a_caption_is_refused(
    tmp_path: Path, texts: list[str]
) -> None:
    file = caption_file(tmp_path / "a.json", {**FIVE, 99: texts})
    with pytest.raises(ValueError, match=r"1 images have no caption, e.g. \[99\]"):
        CaptionDataset(ann_file=str(file), pipeline=[])


def test_stock_captions_reach_the_samples(stock: Path) -> None:
    dataset = CaptionDataset(
        data_root=str(stock / "coco"),
        ann_file="annotations/captions_val2017.json",
        data_prefix=dict(img="val2017/"),
        pipeline=[LOAD, PACK],
        test_mode=True,
    )
    file = stock / "coco/annotations/captions_val2017.json"
    images = json.loads(file.read_text())["images"]
    assert len(dataset) == len(images) == 4
    for i, image in enumerate(images):
        sample = dataset[i]
        assert sample["inputs"].shape == (3, image["height"], image["width"])
        assert sample["data_samples"].img_id == image["id"]
        assert sample["data_samples"].captions == tuple(
            f"{j} things of kind {i}" for j in range(5)
        )


KARPATHY = dict(
    images=[
        dict(cocoid=i, split=s, filename=f"COCO_val2014_{i:012d}.jpg")
        for i, s in ((42, "test"), (7, "test"), (19, "val"))
    ],
    dataset="coco",
)


@pytest.mark.parametrize(
    ("name", "text"),
    [("ids.txt", "42\n7\n"), ("ids.json", "[7, 42]"), ("k.json", json.dumps(KARPATHY))],
)
def test_a_gallery_is_the_images_of_a_users_file(
    tmp_path: Path, name: str, text: str
) -> None:
    """One id per line, a list, or Karpathy's file; a training leaves them out."""
    file = caption_file(tmp_path / "a.json", FIVE)
    (tmp_path / name).write_text(text)
    options = dict(ann_file=str(file), ids_file=str(tmp_path / name), pipeline=[])
    assert {row["img_id"] for row in CaptionDataset(**options)} == {42, 7}
    rest = CaptionDataset(**options, exclude=True)
    assert {row["img_id"] for row in rest} == {*FIVE} - {42, 7}
    assert all(sorted(row["captions"]) == FIVE[row["img_id"]] for row in rest)


def test_ids_that_cannot_be_a_gallery_are_refused(tmp_path: Path) -> None:
    file = caption_file(tmp_path / "a.json", FIVE)
    ids = tmp_path / "ids.json"

    def build(content: Any, **options: Any) -> Any:
        ids.write_text(json.dumps(content))
        return CaptionDataset(
            ann_file=str(file), ids_file=str(ids), pipeline=[], **options
        )

    with pytest.raises(ValueError, match=r"1 of the 2 images of .* e.g. \[5\]"):
        build([42, 5])
    assert len(build([42, 5], exclude=True)) == len(FIVE) - 1
    with pytest.raises(ValueError, match="expected one id per line"):
        build(dict(pictures=[]))
    with pytest.raises(ValueError, match="no image of split 'restval', only .*test"):
        build(KARPATHY, split="restval")


def test_a_sample_is_given_one_of_its_own_captions(tmp_path: Path) -> None:
    file = caption_file(tmp_path / "a.json", FIVE)
    dataset = CaptionDataset(ann_file=str(file), pipeline=[dict(type="LoadCaptions")])
    np.random.seed(0)
    for i in range(len(dataset)):
        drawn = [dataset[i] for _ in range(100)]
        assert {row["caption"] for row in drawn} == {*FIVE[drawn[0]["img_id"]]}
        assert len(drawn[0]["captions"]) == 5  # all are still there


def test_several_captions_are_different_ones_where_there_are_enough(
    tmp_path: Path,
) -> None:
    file = caption_file(tmp_path / "a.json", {1: ["a", "b", "c", "d"], 2: ["e", "f"]})
    step = LoadCaptions(str(file), number=3)
    np.random.seed(0)
    drawn = [step(dict(img_id=1))["caption"] for _ in range(50)]
    assert all(len({*captions}) == 3 for captions in drawn)
    assert {c for captions in drawn for c in captions} == {*"abcd"}
    # of two, both, and one again
    few = [step(dict(img_id=2))["caption"] for _ in range(50)]
    assert {tuple(sorted(captions)) for captions in few} == {
        ("e", "e", "f"),
        ("e", "f", "f"),
    }
    with pytest.raises(ValueError, match="at least 1, got 0"):
        LoadCaptions(number=0)


@pytest.mark.parametrize("captions", [dict(), dict(captions=())])
def test_without_a_file_the_data_set_must_have_captions(
    captions: dict[str, Any],
) -> None:
    sample = dict(img_id=5, img_path="some/a.jpg", **captions)
    with pytest.raises(ValueError, match=r"image 5 \(some/a.jpg\).* use CaptionDat"):
        LoadCaptions()(sample)


def test_a_file_goes_before_the_captions_of_the_data_set(tmp_path: Path) -> None:
    file = caption_file(tmp_path / "a.json", {1: ["of the file"]})
    sample = dict(img_id=1, captions=("of the data set",))
    assert LoadCaptions(str(file))(sample)["caption"] == "of the file"


# --------------------------------------------------------------------- folders


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three classes, made in another order than the alphabet's; 1, 2, 3 pictures."""
    root = tmp_path / "pictures"
    for number, name in enumerate(("tall_tree", "green_star", "old_house"), 1):
        (root / name).mkdir(parents=True)
        for i in range(number):
            noise(root / name / f"{i}.png", width=10 * number, height=20)
        (root / name / "notes.txt").write_text("no picture")
    (root / "README.md").write_text("no class")
    return root


WORDS = ("green star", "old house", "tall tree")
ANY_ORDER = dict(
    names=["tall_tree", "green_star", "old_house"],
    synonyms=[["pine", "fir"], [], ["cottage"]],
    groups=dict(base=["tall_tree", "old_house"], novel=["green_star"]),
)


def test_labels_are_the_folders_in_alphabetical_order(folders: Path) -> None:
    dataset = ImageFolderDataset(str(folders), pipeline=[])
    rows = records(dataset)
    assert len(rows) == 6
    for row in rows:
        assert row["words"] == one_word_each(WORDS)
        (word,) = row["words"][row["gt_label"]]
        assert word == clean_name(row["img_id"].split("/")[0])
        assert row["img_path"] == str(folders / row["img_id"])
    assert [row["gt_label"] for row in rows] == [0, 0, 1, 1, 1, 2]
    names = ("green_star", "old_house", "tall_tree")
    assert dataset.metainfo["classes"] == dataset.metainfo["folders"] == names


def test_pictures_of_the_same_name_have_ids_of_their_own(folders: Path) -> None:
    ids = [row["img_id"] for row in records(ImageFolderDataset(str(folders)))]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("form", [list, tuple, "txt", "json"])
def test_words_follow_the_folders(folders: Path, tmp_path: Path, form: Any) -> None:
    words = ["star", "house", "tree"]
    vocabulary = words if isinstance(form, str) else form(words)
    if isinstance(form, str):
        vocabulary = str(tmp_path / f"words.{form}")
        content = "\n".join(words) if form == "txt" else json.dumps(words)
        Path(vocabulary).write_text(content)
    dataset = ImageFolderDataset(str(folders), vocabulary, pipeline=[])
    for row in records(dataset):
        assert row["words"] == (("star",), ("house",), ("tree",))
        assert row["img_id"].split("/")[0].endswith(row["words"][row["gt_label"]])
    assert dataset.metainfo["classes"] == ("star", "house", "tree")


@pytest.mark.parametrize("synonyms", [False, True])
def test_a_file_with_the_folders_names_may_have_any_order(
    folders: Path, tmp_path: Path, synonyms: bool
) -> None:
    (tmp_path / "words.json").write_text(json.dumps(ANY_ORDER))
    dataset = ImageFolderDataset(
        str(folders), str(tmp_path / "words.json"), synonyms=synonyms, pipeline=[]
    )
    more = (("green star",), ("old house", "cottage"), ("tall tree", "pine", "fir"))
    for row in records(dataset):
        assert row["words"] == (more if synonyms else one_word_each(WORDS))
        first = row["words"][row["gt_label"]][0]
        assert first == clean_name(row["img_id"].split("/")[0])
    assert dataset.metainfo["classes"] == ("green_star", "old_house", "tall_tree")
    assert dataset.metainfo["base_classes"] == ("old_house", "tall_tree")
    assert dataset.metainfo["novel_classes"] == ("green_star",)


def test_groups_may_come_from_the_config(folders: Path) -> None:
    meta = dict(base_classes=("star",), novel_classes=("house", "tree"))
    words = ("star", "house", "tree")
    dataset = ImageFolderDataset(str(folders), words, metainfo=meta, pipeline=[])
    assert dataset.metainfo["classes"] == words
    assert {key: dataset.metainfo[key] for key in meta} == meta


@pytest.mark.parametrize("words", [["star"], ["star", "house", "tree", "cat"]])
@pytest.mark.parametrize("file", [False, True])
def test_words_too_many_or_too_few_are_refused(
    folders: Path, tmp_path: Path, words: list[str], file: bool
) -> None:
    (tmp_path / "words.txt").write_text("\n".join(words))
    vocabulary = str(tmp_path / "words.txt") if file else words
    reason = rf"has 3 folders .*'green_star'.* the vocabulary {len(words)} words"
    with pytest.raises(ValueError, match=reason):
        ImageFolderDataset(str(folders), vocabulary)


def test_a_class_without_a_picture_is_refused(folders: Path) -> None:
    (folders / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        ImageFolderDataset(str(folders))


@pytest.mark.parametrize("place", ["nowhere", "pictures/tall_tree"])
def test_a_root_without_classes_is_refused(
    folders: Path, tmp_path: Path, place: str
) -> None:
    with pytest.raises(FileNotFoundError, match=place):
        ImageFolderDataset(str(tmp_path / place))


def test_imagenet_has_a_thousand_words_of_its_own() -> None:
    assert len({clean_name(name).lower() for name in IMAGENET}) == len(IMAGENET) == 1000
    changed = [i for i in range(1000) if IMAGENET[i] != IMAGENET_CLASSNAMES[i]]
    assert changed == [744, 836]
    assert {IMAGENET_CLASSNAMES[i] for i in changed} == {"missile", "sunglasses"}
    assert IMAGENET[657] == "missile" and IMAGENET[837] == "sunglasses"


def test_imagenets_words_follow_its_thousand_folders(tmp_path: Path) -> None:
    folders = [f"n{10_000_000 + 7 * i}" for i in range(1000)]
    for folder in reversed(folders):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}_1.JPEG").touch()
    dataset = ImageFolderDataset(str(tmp_path), "imagenet-1k", pipeline=[])
    assert len(dataset) == 1000
    for i in (0, 1, 744, 999):
        row = dataset.get_data_info(i)
        assert row["img_id"] == f"{folders[i]}/{folders[i]}_1.JPEG"
        assert row["words"][row["gt_label"]] == (IMAGENET[i],)


def test_imagenets_words_need_its_thousand_folders(imagenet: Path) -> None:
    with pytest.raises(ValueError, match="has 3 folders .* the vocabulary 1000 words"):
        ImageFolderDataset(str(imagenet / "val"), "imagenet-1k")


def test_pictures_of_folders_reach_the_samples(imagenet: Path) -> None:
    words = ("goldfish", "hen", "ostrich")
    dataset = ImageFolderDataset(str(imagenet / "val"), words, pipeline=[LOAD, PACK])
    samples = [dataset[i] for i in range(len(dataset))]
    assert [s["data_samples"].gt_label for s in samples] == [0, 0, 1, 1, 2, 2]
    for sample in samples:
        assert sample["inputs"].shape == (3, 60, 80)
        assert sample["data_samples"].words == one_word_each(words)


# ----------------------------------------------------------------------- crops


def drawn_coco(folder: Path) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """Random boxes of whole pixels, some of them at the border; their pictures."""
    coco = make_coco()
    for annotation in coco["annotations"]:
        annotation["bbox"] = [float(round(side)) for side in annotation["bbox"]]
    name = coco["categories"][0]["id"]
    for box in ([0, 0, 9, 7], [88, 70, 12, 30], [0, 0, 100, 100], [99, 99, 1, 1]):
        coco["annotations"].append(
            dict(id=len(coco["annotations"]) + 1, image_id=2, category_id=name,
                 bbox=box, area=box[2] * box[3], iscrowd=0)
        )  # fmt: skip
    pictures = {}
    for image in coco["images"]:
        image["file_name"] = str(folder / f"{image['id'] * 'i'}.png")
        pictures[image["id"]] = noise(Path(image["file_name"]))
    return coco, pictures


def crop_boxes(dataset: CropDataset) -> list[Any]:
    """(image, name by label, box) of every sample, as `true_boxes`."""
    return sorted(
        (
            int(row["img_id"].split("/")[0]),
            dataset.metainfo["classes"][row["gt_label"]],
            tuple(np.round(row["crop"], 3)),
        )
        for row in records(dataset)
    )


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]])
@pytest.mark.parametrize("file", ["as written", "permuted"])
def test_there_is_a_sample_for_each_box_and_its_label_is_by_name(
    tmp_path: Path, order: tuple[str, ...], file: str
) -> None:
    coco = make_coco() if file == "as written" else permuted(make_coco())
    dataset = load(CropDataset, coco, tmp_path / "a.json", metainfo=dict(classes=order))
    assert crop_boxes(dataset) == true_boxes(coco)
    assert all(row["words"] == one_word_each(order) for row in records(dataset))
    ids = [row["img_id"] for row in records(dataset)]
    assert len(set(ids)) == len(ids)  # a metric counts an id once


def test_the_pixels_are_those_of_the_box(tmp_path: Path) -> None:
    coco, pictures = drawn_coco(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(coco))
    dataset = CropDataset(
        ann_file=str(tmp_path / "a.json"),
        data_prefix=dict(img=""),
        metainfo=dict(classes=NAMES),
        pipeline=[LOAD, dict(type="CropToBox"), PACK],
    )
    name = {c["id"]: c["name"] for c in coco["categories"]}
    boxes = sorted(coco["annotations"], key=lambda a: a["image_id"])  # stable
    assert len(dataset) == len(boxes)
    for i, annotation in enumerate(boxes):
        x, y, w, h = map(int, annotation["bbox"])
        cut = pictures[annotation["image_id"]][y : y + h, x : x + w]
        inputs, sample = dataset[i]["inputs"], dataset[i]["data_samples"]
        assert torch.equal(inputs, as_input(cut))
        assert sample.img_shape == sample.ori_shape == (h, w)
        assert sample.words[sample.gt_label] == (name[annotation["category_id"]],)


@pytest.mark.parametrize(
    "box, rows, columns",
    [
        ((3, 4, 10, 12), (4, 12), (3, 10)),
        ((0, 0, 40, 30), (0, 30), (0, 40)),  # all of it
        ((-5, -9.5, 4, 3), (0, 3), (0, 4)),  # beyond the border
        ((35, 8, 99, 99), (8, 30), (35, 40)),
        ((2.6, 3.4, 7.4, 8.6), (3, 9), (3, 7)),  # whole pixels
        ((5.6, 5.6, 6.4, 6.4), (6, 7), (6, 7)),  # at least one
        ((39.7, 29.7, 40, 30), (29, 30), (39, 40)),  # in the last corner, too
        ((0, 0, 0.3, 0.3), (0, 1), (0, 1)),
    ],
)
def test_a_box_is_cut_out_in_whole_pixels(
    tmp_path: Path, box: tuple[float, ...], rows: Any, columns: Any
) -> None:
    picture = noise(tmp_path / "a.png", width=40, height=30)
    results = CropToBox()(dict(img=picture.copy(), crop=box, gt_label=3))
    wanted = picture[slice(*rows), slice(*columns)]
    assert np.array_equal(results["img"], wanted)
    assert results["img_shape"] == results["ori_shape"] == wanted.shape[:2]
    assert results["gt_label"] == 3


def test_any_box_gives_a_picture_of_about_its_size(tmp_path: Path) -> None:
    picture, rng = noise(tmp_path / "a.png", 40, 30), np.random.default_rng(0)
    for _ in range(300):
        x1, y1 = rng.uniform((-10, -10), (39, 29))
        x2, y2 = (x1, y1) + rng.uniform(1, 30, 2)
        if x2 <= 0 or y2 <= 0:
            continue  # the data set leaves these out
        box = CropToBox()(dict(img=picture, crop=(x1, y1, x2, y2)))["img"]
        height, width = min(y2, 30) - max(y1, 0), min(x2, 40) - max(x1, 0)
        assert min(box.shape) > 0
        assert abs(box.shape[0] - height) <= 1 and abs(box.shape[1] - width) <= 1


def test_crowds_and_small_boxes_are_left_out(tmp_path: Path) -> None:
    coco = make_coco()
    coco["annotations"][0]["iscrowd"] = 1
    coco["annotations"][1]["bbox"][2:] = [50, 9.9]  # its shorter side counts
    coco["annotations"][2]["bbox"][2:] = [9.9, 50]
    coco["annotations"][3]["bbox"] = [3, 3, 10, 10]
    kept = [
        a for a in coco["annotations"] if not a["iscrowd"] and min(a["bbox"][2:]) >= 10
    ]
    dataset = load(CropDataset, coco, tmp_path / "a.json", min_size=10)
    assert crop_boxes(dataset) == true_boxes(dict(coco, annotations=kept))
    assert coco["annotations"][3] in kept and len(dataset) == len(kept)
    everything = load(CropDataset, coco, tmp_path / "a.json")
    assert len(everything) == len(coco["annotations"]) - 1  # all but the crowd


def test_a_box_without_pixels_is_left_out(tmp_path: Path) -> None:
    coco = make_coco(images=30)
    number = len(coco["annotations"])
    for n, box in enumerate(([5, 5, 0, 9], [-30, 5, 20, 20], [100, 5, 20, 20])):
        coco["annotations"][n].update(bbox=box)
    assert len(load(CropDataset, coco, tmp_path / "a.json")) == number - 3


@pytest.mark.parametrize("test_mode", [False, True])
def test_no_filter_for_whole_images_leaves_out_a_box(
    tmp_path: Path, test_mode: bool
) -> None:
    coco = make_coco()
    coco["images"].append(dict(id=77, file_name="77.jpg", width=50, height=50))
    settings = dict(filter_empty_gt=True, min_size=200)
    dataset = load(
        CropDataset, coco, tmp_path / "a.json", filter_cfg=settings, test_mode=test_mode
    )
    assert crop_boxes(dataset) == true_boxes(coco)  # and none of an empty image


def test_boxes_of_words_that_are_not_asked_are_left_out(tmp_path: Path) -> None:
    coco, two = permuted(make_coco()), ("kiwi", "apple")
    dataset = load(CropDataset, coco, tmp_path / "a.json", metainfo=dict(classes=two))
    wanted = [row for row in true_boxes(coco) if row[1] in two]
    assert wanted and crop_boxes(dataset) == wanted


@pytest.mark.parametrize("synonyms", [False, True])
def test_words_and_groups_are_those_of_the_boxes_data_set(
    tmp_path: Path, synonyms: bool
) -> None:
    content = dict(
        names=[*NAMES],
        synonyms=[["stripes"], [], [], [], ["chinese_gooseberry"]],
        groups=dict(base=[*NAMES[:3]], novel=[*NAMES[3:]]),
    )
    words = tmp_path / "words.json"
    words.write_text(json.dumps(content))
    crops, boxes = (
        load(kind, make_coco(), tmp_path / "a.json", metainfo=None,
             vocabulary=str(words), synonyms=synonyms)
        for kind in (CropDataset, OVCocoDataset)
    )  # fmt: skip
    assert crops.metainfo == boxes.metainfo
    assert crops.metainfo["novel_classes"] == NAMES[3:]
    asked = crops.get_data_info(0)["words"]
    assert asked == boxes.get_data_info(0)["words"]
    assert asked[4] == (("kiwi", "chinese gooseberry") if synonyms else ("kiwi",))


@pytest.mark.parametrize(
    "vocabulary, split, classes",
    [("base", "train_base", shapes.BASE_CLASSES), ("all", "val", shapes.CLASSES)],
)
def test_the_objects_of_the_built_in_world_come_one_by_one(
    world: Path, vocabulary: str, split: str, classes: tuple[str, ...]
) -> None:
    file = world / f"annotations/instances_{split}.json"
    crops, scenes = (
        kind(ann_file=str(file), vocabulary=vocabulary, pipeline=[],
             data_prefix=dict(img=""))
        for kind in (ShapesCrops, ShapesDataset)
    )  # fmt: skip
    assert crops.get_data_info(0)["words"] == one_word_each(classes)
    assert crop_boxes(crops) == true_boxes(json.loads(file.read_text()))
    assert crops.metainfo == scenes.metainfo


def test_labels_and_groups_of_crops_reach_the_metric(world: Path) -> None:
    """Who knows every object has 1 in all groups; who knows the base ones, in one."""
    dataset = ShapesCrops(
        data_root=str(world),
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="images/val/"),
        test_mode=True,
        pipeline=[LOAD, dict(type="CropToBox"), PACK],
    )
    samples = [dataset[i]["data_samples"] for i in range(len(dataset))]
    base = {shapes.CLASSES.index(name) for name in shapes.BASE_CLASSES}
    strange = (set(range(360)) - base).pop()
    figures = []
    for known in (set(range(360)), base):
        metric = ZeroShotMetric("a test")
        metric.dataset_meta = dataset.metainfo
        for sample in samples:
            right = sample.gt_label in known
            best = sample.gt_label if right else (strange + sample.gt_label + 1) % 360
            others = [i for i in range(360) if i not in (best, sample.gt_label)]
            row = sample.to_dict()
            metric.process({}, [dict(row, ranking=torch.tensor([best, *others]))])
        figures.append(metric.evaluate(len(samples)))
    groups = ("base", "combo", "novel")
    assert [figures[0][f"zero_shot/{g}_top1"] for g in groups] == [1, 1, 1]
    assert [figures[1][f"zero_shot/{g}_top1"] for g in groups] == [1, 0, 0]
    share = sum(s.gt_label in base for s in samples) / len(samples)
    assert figures[1]["zero_shot/top1"] == pytest.approx(share)


@pytest.mark.parametrize("given", [["n_bird", "dog", "cat"], ["n bird", "dog", "cat"]])
def test_words_that_are_the_folders_names_are_matched_by_name(
    tmp_path: Path, given: list[str]
) -> None:
    for folder in ("cat", "dog", "n_bird"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "0.png")
    data = ImageFolderDataset(str(tmp_path), vocabulary=given)
    assert data[0]["words"] == (("cat",), ("dog",), ("n bird",))


def test_of_wordnets_ids_the_synonyms_are_the_words(
    imagenet: Path, tmp_path: Path
) -> None:
    file = tmp_path / "words.json"
    names = ["n01518878", "n01443537", "n01514859"]
    words = [["ostrich", "big bird"], ["goldfish"], ["hen"]]
    file.write_text(json.dumps(dict(names=names, synonyms=words)))
    root = str(imagenet / "val")
    plain = ImageFolderDataset(root, vocabulary=str(file))
    assert plain[0]["words"] == (("goldfish",), ("hen",), ("ostrich",))
    full = ImageFolderDataset(root, vocabulary=str(file), synonyms=True)
    assert full[0]["words"][2] == ("ostrich", "big bird")
