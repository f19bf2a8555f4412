"""Annotation files: what is wrong is named, what is no object counts nowhere."""

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from PIL import Image

from kdeov_mm.datasets import (
    AnnotationError,
    AnnotationFile,
    OVCocoDataset,
    OVXMLDataset,
)
from kdeov_mm.engine.hooks import check_stock_metrics, too_small
from kdeov_mm.evaluation import OpenVocabularyMetric

from .test_datasets import NAMES, load, make_coco

Coco = dict[str, Any]
BIG = 10**400  # beyond a float


def change(key: str, value: Any, of: str = "annotations") -> Callable[[Coco], None]:
    """Set a field of the first record; ... takes it out."""

    def apply(coco: Coco) -> None:
        if value is ...:
            coco[of][0].pop(key)
        else:
            coco[of][0][key] = value

    return apply


def every_box(make: Callable[..., list[Any]]) -> Callable[[Coco], None]:
    def apply(coco: Coco) -> None:
        for annotation in coco["annotations"]:
            annotation["bbox"] = make(*annotation["bbox"])

    return apply


def doubled(coco: Coco) -> None:
    number = len(coco["annotations"])
    more = [dict(a, id=a["id"] + number) for a in coco["annotations"]]
    coco["annotations"] += more


def same_file(coco: Coco) -> None:
    coco["images"][1]["file_name"] = coco["images"][0]["file_name"]


def half_the_size(coco: Coco) -> None:
    for image in coco["images"]:
        image.update(width=50, height=50)


# what is wrong -> what the message says
WRONG: dict[str, tuple[Callable[[Coco], Any], str]] = {
    "no images": (lambda c: c.pop("images"), "'images' is missing"),
    "no categories": (lambda c: c.pop("categories"), "'categories' is missing"),
    "no annotations": (lambda c: c.pop("annotations"), "'annotations' to train on"),
    "records": (lambda c: c.update(images={}), "no list of objects"),
    "image id is text": (change("id", "7", "images"), "1 of 6 images.*whole number"),
    "image twice": (change("id", 2, "images"), "1 image ids are there twice, 2 im"),
    "box twice": (change("id", 2), "1 annotation ids are there twice"),
    "category twice": (change("id", 3, "categories"), "category|categorie"),
    "unknown image": (change("image_id", 77), "image_id that is not among"),
    "image id of another type": (change("image_id", "1"), "image_id that is not"),
    "unhashable": (change("image_id", [1]), "image_id that is not among"),
    "unknown category": (change("category_id", 0), "category_id that is not"),
    "nameless": (change("name", " ", "categories"), "no text as their name"),
    "no file": (change("file_name", ..., "images"), "no text as their 'file_name'"),
    "same file": (same_file, "share their file"),
    "width": (change("width", "100", "images"), "width that is no number"),
    "endless width": (change("width", float("inf"), "images"), "no number of pixels"),
    "negative height": (change("height", -5, "images"), "height that is no number"),
    "no box": (change("bbox", ...), "a list of four is expected"),
    "box of three": (change("bbox", [1, 2, 3]), "3 numbers in place of four"),
    "box of text": (change("bbox", ["1", "2", "3", "4"]), "'1' is no number"),
    "text box": (change("bbox", "1234"), "a list of four is expected"),
    "bool": (change("bbox", [1, 2, True, 4]), "True is no number"),
    "nan": (change("bbox", [1, 2, float("nan"), 4]), "nan is no place"),
    "infinite": (change("bbox", [1, 2, float("inf"), 4]), "inf is no place"),
    "1e300": (change("bbox", [1, 2, 1e300, 4]), "no place on an image"),
    "an integer beyond floats": (change("bbox", [1, 2, BIG, 4]), "no place on"),
    "fractions": (every_box(lambda *b: [v / 100 for v in b]), "between 0 and 1"),
    "corners": (
        every_box(lambda x, y, w, h: [x, y, x + w, y + h]),
        "x1, y1, x2, y2, as it seems",
    ),
    "centres": (
        every_box(lambda x, y, w, h: [x + w / 2 + 30, y + h / 2 + 30, w, h]),
        "reach clearly beyond their image",
    ),
    "resized": (half_the_size, "reach clearly beyond their image"),
    "joined twice": (doubled, "copies"),
    "area": (change("area", "12"), "area that is none"),
    "area nan": (change("area", float("nan")), "area that is none"),
    "crowd": (change("iscrowd", 2), "iscrowd that is not 0 or 1"),
    "case": (
        lambda c: c["categories"][0].update(name=" Zebra"),
        "of 18 objects are called ' Zebra', and 'zebra' is asked",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_named_before_the_work(fault: str, tmp_path: Path) -> None:
    coco = make_coco()
    apply, message = WRONG[fault]
    apply(coco)
    with pytest.raises(AnnotationError, match=message) as raised:
        load(OVCocoDataset, coco, tmp_path / "a.json")
    assert "a.json" in str(raised.value) or "annotation file" in str(raised.value)
    # the metric reads the same file, and says the same
    path = str(tmp_path / "a.json")
    if fault not in ("no annotations", "case"):
        with pytest.raises(AnnotationError, match=message):
            OpenVocabularyMetric(path, "test")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": 1}']
)
def test_a_file_of_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(AnnotationError, match=r"x\.json: "):
        AnnotationFile(data, "x.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_json(encoding: str) -> None:
    coco = make_coco()
    coco["categories"][0]["name"] = "浣熊"
    data = json.dumps(coco, ensure_ascii=False).encode(encoding)
    assert AnnotationFile(data, "x.json").content["categories"][0]["name"] == "浣熊"


def perfect(coco: Coco, path: Path, shape: Any = None) -> dict[str, float]:
    """The metrics of a detector that gives the boxes of ``coco``, as xyxy."""
    metric = OpenVocabularyMetric(str(path), "test")
    metric.dataset_meta = dict(classes=NAMES)
    names = {c["id"]: c["name"] for c in coco["categories"]}
    for image in coco["images"]:
        mine = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor([a["bbox"] for a in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([NAMES.index(names[a["category_id"]]) for a in mine])
        found = dict(bboxes=boxes, scores=torch.ones(len(mine)), labels=labels)
        sample = dict(img_id=image["id"], pred_instances=found)
        metric.process({}, [sample | (dict(ori_shape=shape) if shape else {})])
    return metric.compute_metrics(metric.results)


def turned(coco: Coco) -> None:
    for a in coco["annotations"][::2]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x + w, y + h, -w, -h]


def without(*keys: str) -> Callable[[Coco], None]:
    def apply(coco: Coco) -> None:
        for annotation in coco["annotations"]:
            for key in keys:
                annotation.pop(key)

    return apply


def outlined(coco: Coco) -> None:
    for a in coco["annotations"]:
        x, y, w, h = a.pop("bbox")
        a["segmentation"] = [[x, y, x + w, y, x + w, y + h], [x, y, x, y + h, x, y]]


def without_sizes(coco: Coco) -> None:
    for image in coco["images"]:
        image.update(width=None, height=0)


def rooted(coco: Coco) -> None:
    """As Roboflow writes it: the class's name for its root, too."""
    coco["categories"].insert(0, dict(id=0, name="zebra", supercategory="none"))
    coco["categories"].append(dict(id=91, name="background"))


def with_nothings(coco: Coco) -> None:
    """Boxes without an extent or beside the image: no objects, in no count."""
    for box in ([5, 5, 0, 9], [300, 5, 9, 9], [-50, 5, 20, 20]):
        number = len(coco["annotations"]) + 1
        record = dict(coco["annotations"][0], id=number, bbox=box)
        coco["annotations"].append(record)


# what is put right or filled in, and a word of its note, if it has one
MENDED: dict[str, tuple[Callable[[Coco], None], str]] = {
    "nothing": (lambda c: None, ""),
    "turned": (turned, "negative width or height"),
    "no area": (without("area"), ""),
    "no crowd": (without("iscrowd"), ""),
    "no ids": (without("id", "area", "iscrowd"), ""),
    "area 0": (lambda c: c["annotations"][0].update(area=0), "area of 0"),
    "outlines": (outlined, ""),
    "no sizes": (without_sizes, ""),
    "a root": (rooted, ""),
    "nothings": (with_nothings, "no width or no height"),
}


@pytest.mark.parametrize("fault", MENDED)
def test_training_and_evaluation_count_the_same_objects(
    fault: str, tmp_path: Path
) -> None:
    truth = make_coco(images=12)
    coco = copy.deepcopy(truth)
    apply, note = MENDED[fault]
    apply(coco)
    for image in coco["images"]:
        Image.new("RGB", (100, 100)).save(tmp_path / image["file_name"])
    for test_mode in (False, True):
        data = load(
            OVCocoDataset,
            coco,
            tmp_path / "a.json",
            data_root=str(tmp_path),
            test_mode=test_mode,
        )
        infos = map(data.get_data_info, range(len(data)))
        boxes = sorted(tuple(i["bbox"]) for info in infos for i in info["instances"])
        wanted = [a["bbox"] for a in truth["annotations"]]
        wanted = sorted((x, y, x + w, y + h) for x, y, w, h in wanted)
        np.testing.assert_allclose(boxes, wanted)
        texts = [n.text for n in data.checks]
        assert any(note in text for text in texts) if note else not texts
    assert data.looked == (12, 12, 0)
    figures = perfect(truth, tmp_path / "a.json", shape=(100, 100))
    assert figures["AP"] == pytest.approx(1)


def test_a_box_narrower_than_a_pixel_is_not_taken_for_a_turned_one(
    tmp_path: Path,
) -> None:
    coco = make_coco(images=12)
    coco["annotations"][0]["bbox"][2] = 0.75
    data = load(OVCocoDataset, coco, tmp_path / "a.json")
    assert not any("negative" in note.text for note in data.checks)


def test_a_box_marked_ignore_is_a_crowd_on_both_sides(tmp_path: Path) -> None:
    coco = make_coco(images=12)
    coco["annotations"][0]["ignore"] = 1
    data = load(OVCocoDataset, coco, tmp_path / "a.json")
    flags = [i["ignore_flag"] for i in data.get_data_info(0)["instances"]]
    assert flags == [1] + [0] * (len(flags) - 1)
    fewer = dict(coco, annotations=coco["annotations"][1:])
    assert perfect(fewer, tmp_path / "a.json")["AP"] == pytest.approx(1)


def test_boxes_beyond_their_image_are_cut_at_its_border(tmp_path: Path) -> None:
    """A few; less than 2 pixels are left as they are."""
    coco = make_coco(images=30)
    coco["annotations"][0]["bbox"] = [-20, 50, 40, 60]
    coco["annotations"][1]["bbox"] = [50, 60, 51.5, 10]
    data = load(OVCocoDataset, coco, tmp_path / "a.json")
    boxes = [i["bbox"] for i in data.get_data_info(0)["instances"]]
    assert boxes[0] == [0, 50, 20, 100] and boxes[1][2] == pytest.approx(101.5)
    (note,) = data.checks
    assert note.boxes == 1 and "cut at its border" in note.text


def test_a_class_in_another_spelling_beside_the_asked_one(tmp_path: Path) -> None:
    coco = make_coco()
    coco["categories"].append(dict(id=70, name="Zebra"))
    load(OVCocoDataset, coco, tmp_path / "a.json")  # without any box
    coco["annotations"][0]["category_id"] = 70
    with pytest.raises(AnnotationError, match="1 of .* called 'Zebra', and 'zebra'"):
        load(OVCocoDataset, coco, tmp_path / "a.json")


# ---------------------------------------------------------------------- images


def test_sizes_are_those_of_the_images_as_they_are_loaded(tmp_path: Path) -> None:
    """With the camera's turn; some that are missing, and damaged ones, are named."""
    coco = make_coco()
    exif = Image.Exif()
    # quarter turns, mirrored or not
    for image, turn in zip(coco["images"], itertools.cycle((5, 6, 7, 8))):
        exif[0x0112] = turn
        image.update(width=100, height=90)
        Image.new("RGB", (90, 100)).save(tmp_path / image["file_name"], exif=exif)
    kwargs: Any = dict(data_root=str(tmp_path))
    assert load(OVCocoDataset, coco, tmp_path / "a.json", **kwargs).looked == (6, 6, 0)
    for image in coco["images"]:
        image.update(width=90, height=100)
    with pytest.raises(AnnotationError, match="90 x 100 in the file, 100 x 90 when"):
        load(OVCocoDataset, coco, tmp_path / "a.json", **kwargs)
    sampled = dict(kwargs, checked=2)
    with pytest.raises(AnnotationError, match=r"2 of the 2 images .*\(of 6\)"):
        load(OVCocoDataset, coco, tmp_path / "a.json", **sampled)
    # predictions of images of another size are no predictions of these
    with pytest.raises(AnnotationError, match="loaded with 100 x 90"):
        perfect(coco, tmp_path / "a.json", shape=(90, 100))
    # where predictions do not say it, images beside the file do
    assert perfect(coco, tmp_path / "a.json")
    (tmp_path / "images").mkdir()
    for image in coco["images"]:
        Image.new("RGB", (80, 70)).save(tmp_path / "images" / image["file_name"])
    with pytest.raises(AnnotationError, match="80 x 70 when loaded"):
        perfect(coco, tmp_path / "a.json")
    (tmp_path / "3.jpg").write_bytes(b"no image")
    for image in coco["images"]:
        image.update(width=100, height=90)
    with pytest.raises(AnnotationError, match="1 of the 6 .* cannot be read.*3.jpg"):
        load(OVCocoDataset, coco, tmp_path / "a.json", **kwargs)
    (tmp_path / "3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of the 6 .* are not there.*3.jpg"):
        load(OVCocoDataset, coco, tmp_path / "a.json", **kwargs)


# ---------------------------------------------------------------- other metrics


def test_a_stock_metric_with_another_order_of_classes_is_refused(
    tmp_path: Path,
) -> None:
    data = load(OVCocoDataset, make_coco(), tmp_path / "a.json")
    stock = CocoMetric(ann_file=str(tmp_path / "a.json"))
    check_stock_metrics(data, [stock])  # the file's order
    backwards = dict(classes=NAMES[::-1])
    data = load(OVCocoDataset, make_coco(), tmp_path / "a.json", metainfo=backwards)
    with pytest.raises(ValueError, match="numbers the classes in the order of its"):
        check_stock_metrics(data, [stock])


def test_a_test_servers_file_gives_predictions_and_no_figures(tmp_path: Path) -> None:
    coco = make_coco()
    truth = copy.deepcopy(coco)
    del coco["annotations"]
    data = load(OVCocoDataset, coco, tmp_path / "a.json", test_mode=True)
    assert len(data) == 6
    assert perfect(truth, tmp_path / "a.json") == {}


def test_metrics_of_each_class(tmp_path: Path) -> None:
    coco = make_coco(images=12)
    (tmp_path / "a.json").write_text(json.dumps(coco))
    zebra = next(c["id"] for c in coco["categories"] if c["name"] == "zebra")
    others = [a for a in coco["annotations"] if a["category_id"] != zebra]
    path, out = tmp_path / "a.json", tmp_path / "out.json"
    metric = OpenVocabularyMetric(str(path), "test", classwise=True, out_file=str(out))
    metric.dataset_meta = dict(classes=NAMES)
    names = {c["id"]: c["name"] for c in coco["categories"]}
    for image in coco["images"]:
        mine = [a for a in others if a["image_id"] == image["id"]]
        boxes = torch.tensor([a["bbox"] for a in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([NAMES.index(names[a["category_id"]]) for a in mine])
        found = dict(bboxes=boxes, scores=torch.ones(len(mine)), labels=labels)
        metric.process({}, [dict(img_id=image["id"], pred_instances=found)])
    figures = metric.compute_metrics(metric.results)
    classes = json.loads(out.read_text())["classes"]
    assert set(classes) == {*NAMES} and classes["zebra"]["AP"] == 0
    assert all(classes[n]["AP50"] == pytest.approx(1) for n in NAMES if n != "zebra")
    number = len(coco["annotations"]) - len(others)
    assert classes["zebra"]["objects"] == number > 0
    mean = sum(row["AP"] for row in classes.values()) / len(NAMES)
    assert figures["AP"] == pytest.approx(mean)


def test_objects_of_few_pixels_are_said_to_be_small() -> None:
    assert too_small(torch.tensor([20.0, 30, 6])) is None
    assert "2 of 3 objects are narrower than 12" in str(
        too_small(torch.tensor([11.9, 12, 6]))
    )
    assert too_small(torch.empty(0)) is None


# ------------------------------------------------------------------------- VOC

XML = """<annotation>{size}<object><name>{name}</name>{extra}<bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>
</bndbox></object></annotation>"""


def write_voc(folder: Path, text: str | None = None, ending: str = "jpg", **last: Any):
    """Four images with one box each; the last one's XML is another."""
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    size = "<size><width>100</width><height>80</height></size>"
    for number in range(4):
        values: dict[str, Any] = dict(size=size, name="cat", extra="")
        values.update(box=(11, 21, 51, 61), **{})
        values.update(last if number == 3 else {})
        content = XML.format(**values) if text is None or number < 3 else text
        (folder / f"annotations/{number}.xml").write_text(content)
        Image.new("RGB", (100, 80)).save(folder / f"images/{number}.{ending}")
    (folder / "train.txt").write_text("0\n1 \r\n2\n\n3\n")


def read_voc(folder: Path, **kwargs: Any) -> OVXMLDataset:
    return OVXMLDataset(
        data_root=str(folder),
        ann_file="train.txt",
        img_subdir="images",
        ann_subdir="annotations",
        data_prefix=dict(sub_data_root=""),
        metainfo=dict(classes=("cat",)),
        pipeline=[],
        **kwargs,
    )


@pytest.mark.parametrize(
    ("last", "note"),
    [
        (dict(), ""),
        (dict(ending="PNG"), ""),
        (dict(size=""), ""),
        (dict(extra="<difficult/>"), ""),
        (dict(box=(51, 61, 11, 21)), "1 of 4 boxes have a negative"),
        (dict(box=("11.0", " 21 ", "51", "6.1e1")), ""),
    ],
)
def test_voc_is_read_as_it_is_meant(
    last: dict[str, Any], note: str, tmp_path: Path
) -> None:
    write_voc(tmp_path, **last)
    data = read_voc(tmp_path)
    assert data.looked == (4, 4, 0)
    assert [note in n.text for n in data.checks] == ([True] if note else [])
    for info in map(data.get_data_info, range(4)):
        (instance,) = info["instances"]
        assert instance == dict(bbox=[10, 20, 50, 60], bbox_label=0, ignore_flag=0)
        assert info["words"] == (("cat",),)
        assert Path(info["img_path"]).is_file()


def test_difficult_objects_are_neither_taught_nor_missed(tmp_path: Path) -> None:
    write_voc(tmp_path, extra="<difficult>1</difficult>")
    assert read_voc(tmp_path).get_data_info(3)["instances"][0]["ignore_flag"] == 1


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (dict(text=""), r"1 of 4 XML files.*3\.xml is empty"),
        (dict(text="<annotation>"), r"1 of 4 XML files.*3\.xml"),
        (dict(name=""), "object without a name"),
        (dict(name="Cat"), "1 of 4 objects are called 'Cat', and 'cat' is asked"),
        (dict(name="cat "), "1 of 4 objects are called 'cat ', and 'cat' is asked"),
        (dict(box=("a", 1, 2, 3)), "'a' as its bndbox/xmin, which is no number"),
        (dict(box=("nan", 1, 2, 3)), "'nan' as its bndbox/xmin, which is no number"),
        (dict(box=("", 1, 2, 3)), "without xmin in its bndbox"),
        (dict(box=(1, 1, 300, 60)), "reach clearly beyond"),
        (
            dict(size="<size><width>80</width><height>100</height></size>"),
            "1 of the 4 images.*80 x 100 in the file, 100 x 80 when loaded",
        ),
    ],
)
def test_wrong_voc_is_named(last: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_voc(tmp_path, **last)
    with pytest.raises(AnnotationError, match=message):
        read_voc(tmp_path)


def test_missing_xml_and_images_are_named(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "images/2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 4 images .*2\.jpg"):
        read_voc(tmp_path)
    (tmp_path / "annotations/2.xml").unlink()
    with pytest.raises(AnnotationError, match=r"1 of 4 XML files.*2\.xml is not there"):
        read_voc(tmp_path)


def test_boxes_below_a_least_size_are_crowds(tmp_path: Path) -> None:
    """``filter_cfg``'s ``bbox_min_size``, as of mmdet's data set."""
    write_voc(tmp_path, box=(11, 21, 15, 61))
    data = read_voc(tmp_path, filter_cfg=dict(bbox_min_size=10))
    flags = [data.get_data_info(i)["instances"][0]["ignore_flag"] for i in (0, 3)]
    assert flags == [0, 1]
