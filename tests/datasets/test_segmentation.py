"""Label maps: values of the stock files, and masks that are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.registry import DATASETS
from PIL import Image, ImageOps

from kdeov_mm.datasets import MaskError, SegDataset
from kdeov_mm.datasets.segmentation import (
    BACKGROUND,
    IGNORED,
    displayed_size,
    read_mask,
)

STEPS = [dict(type="LoadImageFromFile"), dict(type="LoadLabelMap")]
CLASSES = ("cat", "dog", "tree")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images and masks of three classes: the simple data set of the document."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(4):
        pixels = rng.integers(256, size=(20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.jpg")
        values = rng.integers(4, size=(20, 30)).astype(np.uint8)
        values[0, 0] = 255
        Image.fromarray(values).save(tmp_path / f"masks/{i}.png")
    return tmp_path


def simple(root: Path, **changes: Any) -> SegDataset:
    cfg: dict[str, Any] = dict(
        metainfo=dict(
            classes=CLASSES, base_classes=("cat", "tree"), novel_classes=("dog",)
        ),
        data_root=str(root),
        data_prefix=dict(img_path="images", seg_map_path="masks"),
        pipeline=STEPS,
    )
    return SegDataset(**dict(cfg, **changes))


def test_values_become_labels_of_the_words(folder: Path) -> None:
    dataset = simple(folder)
    assert len(dataset) == 4
    for i in range(4):
        sample = dataset[i]
        values = read_mask(folder / f"masks/{sample['img_id']}.png")
        labels = sample["gt_seg_map"]
        assert labels.dtype == np.int16
        np.testing.assert_array_equal(labels[values > 3], IGNORED)
        np.testing.assert_array_equal(labels[values == 0], BACKGROUND)
        known = (values > 0) & (values < 4)
        np.testing.assert_array_equal(labels[known], values[known] - 1)
        assert sample["words"] == (("cat",), ("dog",), ("tree",))


def test_words_that_are_not_asked_are_ignored(folder: Path) -> None:
    dataset = simple(folder, vocabulary="base")
    assert dataset.metainfo["classes"] == ("cat", "tree")
    sample = dataset[0]
    values = read_mask(folder / f"masks/{sample['img_id']}.png")
    assert (sample["gt_seg_map"][values == 2] == IGNORED).all()
    assert (sample["gt_seg_map"][values == 3] == 1).all()
    with pytest.raises(ValueError, match="one of \\['base', 'novel'\\], got 'rare'"):
        simple(folder, vocabulary="rare")


def test_a_part_of_the_images_is_labelled_and_the_same_each_time(folder: Path) -> None:
    dataset = simple(folder, labelled=0.5)
    which = [(dataset[i]["gt_seg_map"] != IGNORED).any() for i in range(4)]
    assert sum(which) == 2
    again = simple(folder, labelled=0.5)
    assert which == [(again[i]["gt_seg_map"] != IGNORED).any() for i in range(4)]
    for part in (0, 1.5):
        with pytest.raises(ValueError, match="labelled is a part"):
            simple(folder, labelled=part)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_and_palette_files_have_the_same_values(
    dtype: Any, tmp_path: Path
) -> None:
    values = np.arange(12).reshape(3, 4).astype(dtype)
    Image.fromarray(values).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), values)
    palette = Image.fromarray(values.astype(np.uint8), "P")
    palette.putpalette([255 - i for i in range(256)] * 3)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), values)


def damage_colours(root: Path) -> None:
    Image.new("RGB", (30, 20)).save(root / "masks/2.png")


def damage_size(root: Path) -> None:
    Image.new("L", (30, 21)).save(root / "masks/2.png")


def damage_values(root: Path) -> None:
    Image.new("L", (30, 20), 7).save(root / "masks/2.png")


def damage_file(root: Path) -> None:
    (root / "masks/2.png").write_bytes(b"no image")


def remove(root: Path) -> None:
    (root / "masks/2.png").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_colours, r"2.png is an image of colours \(RGB\)"),
        (damage_size, "2.png has 30 x 21 pixels, its image 30 x 20"),
        (damage_values, r"2.png has values of no class: \[7\], in 600 pixels"),
        (damage_file, "2.png is no image"),
        (remove, "1 of 4 masks are not there.*2.png"),
    ],
)
def test_a_wrong_mask_is_named_before_the_training(
    damage: Callable[[Path], None], reason: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(MaskError, match=reason):
        simple(folder)


def test_a_wrong_mask_that_was_not_looked_at_is_named_when_it_is_read(
    folder: Path,
) -> None:
    damage_values(folder)
    dataset = simple(folder, checked=1)
    with pytest.raises(MaskError, match="2.png has values of no class"):
        for i in range(4):
            dataset[i]


def test_an_empty_folder_and_missing_classes_are_said(folder: Path) -> None:
    with pytest.raises(MaskError, match=r"has 0 images .bmp, and files \['.jpg'\]"):
        simple(folder, img_suffix=".bmp")
    (folder / "images/0.jpg").rename(folder / "images/0.JPG")
    with pytest.raises(MaskError, match=r"has 3 images .jpg, and files \['.JPG'\]"):
        simple(folder)
    with pytest.raises(ValueError, match="needs data_prefix"):
        simple(folder, data_prefix=dict(img_path="images"))
    with pytest.raises(FileNotFoundError, match="list.txt is not there"):
        simple(folder, ann_file="list.txt")
    with pytest.raises(ValueError, match="needs metainfo.classes"):
        simple(folder, metainfo={})
    with pytest.raises(ValueError, match="2 values for 3 classes"):
        simple(folder, values=(1, 2))


def test_a_value_means_one_thing(folder: Path) -> None:
    many = tuple(f"class {i}" for i in range(300))
    with pytest.raises(ValueError, match=r"values \[255\] of a mask mean two things"):
        simple(folder, metainfo=dict(classes=many))
    assert simple(folder, metainfo=dict(classes=many), ignored=(), checked=0)
    for values in ((0, 1, 2), (1, 1, 2)):
        with pytest.raises(ValueError, match="mean two things"):
            simple(folder, values=values)


def test_lists_may_have_empty_lines_and_classes_a_file(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"0\r\n\r\n2\r\n\n")
    (folder / "classes.txt").write_text("cat\ndog\ntree\n")
    meta = dict(classes=str(folder / "classes.txt"))
    dataset = simple(folder, ann_file="list.txt", metainfo=meta)
    assert [dataset[i]["img_id"] for i in range(len(dataset))] == ["0", "2"]
    assert dataset.metainfo["classes"] == CLASSES


def test_images_without_a_mask_are_for_the_teacher(folder: Path) -> None:
    order = simple(folder, labelled=0.5)
    for i in range(4):
        info = order.get_data_info(i)
        if info["seg_map_path"] is None:
            (folder / f"masks/{info['img_id']}.png").unlink()
    assert len(simple(folder, labelled=0.5)) == 4
    with pytest.raises(MaskError, match="2 of 4 masks are not there"):
        simple(folder)


def test_a_turned_photo_has_the_mask_of_what_is_shown(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    with Image.open(folder / "images/1.jpg") as image:
        image.copy().save(folder / "images/1.jpg", exif=exif)
    with pytest.raises(MaskError, match="turned, where EXIF says so"):
        simple(folder)
    Image.fromarray(np.ones((30, 20), np.uint8)).save(folder / "masks/1.png")
    assert simple(folder)[1]["gt_seg_map"].shape == (30, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_that_are_shown(orientation: int, tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (20, 30)), Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.jpg", exif=exif)
    shown = ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))
    assert displayed_size(tmp_path / "a.jpg") == (shown.height, shown.width)


def test_a_fill_value_of_another_package_is_named(folder: Path) -> None:
    steps = [*STEPS, dict(type="Pad", size=(40, 40)), dict(type="PackInputs")]
    with pytest.raises(ValueError, match=r"labels -2 to 255.*pad_val=dict.*seg=-2"):
        simple(folder, pipeline=steps)[0]


def test_masks_may_lie_among_the_images(folder: Path) -> None:
    for file in (folder / "masks").glob("*.png"):
        file.rename(folder / "images" / file.name)
    prefix = dict(img_path="images", seg_map_path="images")
    assert len(simple(folder, data_prefix=prefix)) == 4


def test_images_can_be_asked_without_their_labels(folder: Path) -> None:
    steps = [STEPS[0], dict(type="PackInputs")]
    assert "gt_sem_seg" not in simple(folder, pipeline=steps)[0]["data_samples"]


def stock_dataset(stock: Path, name: str, **changes: Any) -> Any:
    places: dict[str, Any] = dict(
        VOCSegDataset=dict(
            data_root=str(stock / "VOCdevkit/VOC2012"),
            ann_file="ImageSets/Segmentation/val.txt",
            data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        ),
        PascalContextDataset=dict(
            data_root=str(stock / "VOCdevkit/VOC2010"),
            ann_file="ImageSets/SegmentationContext/val.txt",
            data_prefix=dict(
                img_path="JPEGImages", seg_map_path="SegmentationClassContext"
            ),
        ),
        COCOStuffDataset=dict(
            data_root=str(stock / "coco"),
            data_prefix=dict(img_path="val2017", seg_map_path="stuffthingmaps/val2017"),
        ),
    )
    return DATASETS.build(dict(type=name, pipeline=STEPS, **places[name], **changes))


def test_voc_has_background_and_a_border(stock: Path) -> None:
    dataset = stock_dataset(stock, "VOCSegDataset")
    assert len(dataset) == 4 and len(dataset.metainfo["classes"]) == 20
    labels = dataset[0]["gt_seg_map"]
    assert labels[0, 0] == BACKGROUND and labels[10, 20] == IGNORED
    assert 0 <= labels[30, 50] < 20
    assert "potted plant" in dataset.metainfo["novel_classes"]
    assert (
        len(
            stock_dataset(stock, "VOCSegDataset", vocabulary="base").metainfo["classes"]
        )
        == 15
    )


def test_context_leaves_what_is_no_class_unlabelled(stock: Path) -> None:
    dataset = stock_dataset(stock, "PascalContextDataset")
    assert len(dataset.metainfo["classes"]) == 59
    labels = dataset[0]["gt_seg_map"]
    assert labels[0, 0] == IGNORED and 0 <= labels[30, 50] < 59


def test_coco_stuff_counts_categories_without_the_ids_that_are_left_out(
    stock: Path,
) -> None:
    dataset = stock_dataset(stock, "COCOStuffDataset")
    names = dataset.metainfo["classes"]
    assert len(names) == 171 == len(dataset.VALUES)
    assert len(dataset.metainfo["novel_classes"]) == 15
    # its own list: 1 person, 17 cat, 92 banner, 182 wood
    by_id = dict(zip(dataset.VALUES, names))
    assert [by_id[i - 1] for i in (1, 17, 92, 182)] == [
        "person",
        "cat",
        "banner",
        "wood",
    ]
    for i in range(len(dataset)):
        sample = dataset[i]
        value = read_mask(
            stock / f"coco/stuffthingmaps/val2017/{sample['img_id']}.png"
        )[10, 10]
        label = sample["gt_seg_map"][10, 10]
        assert names[label] == by_id[value]
        assert sample["gt_seg_map"][0, 0] == IGNORED


def test_the_built_in_world_has_masks_of_all_its_objects(world: Path) -> None:
    prefix = dict(img_path="images/val", seg_map_path="semantic/val")
    dataset: Any = DATASETS.build(
        dict(
            type="ShapesSegDataset",
            data_root=str(world),
            data_prefix=prefix,
            pipeline=STEPS,
        )
    )
    assert len(dataset.metainfo["classes"]) == 360
    labels = np.concatenate([dataset[i]["gt_seg_map"].ravel() for i in range(8)])
    assert (labels >= 0).any() and not (labels == IGNORED).any()
