"""Stand-ins of COCO and LVIS: pictures that are drawn, files of the stock form.

Both label the same pictures, as the originals do. All categories are in the files, and
what the originals have: crowds, images without objects, grey ones, panoramas, a box
without a width, and in LVIS what is absent and what is not exhaustively annotated.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from kdeov_mm.datasets import OVCocoDataset
from kdeov_mm.datasets.lvis import LVIS_FREQUENCY
from kdeov_mm.datasets.shapes import WORLD_1203, draw_scene

TOOL = Path(__file__).parents[1] / "tools/prepare_splits.py"
Record = dict[str, Any]
# height and width in pixels, as COCO's are
SIZES = (
    *((480, 640), (640, 427), (427, 640), (640, 480), (333, 500), (500, 375)),
    *((426, 640), (640, 640), (200, 640), (612, 612), (640, 428), (375, 500)),
)
COCO_CLASSES: tuple[str, ...] = OVCocoDataset.METAINFO["classes"]
COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # ids that COCO leaves out
COCO_IDS = [i for i in range(1, 91) if i not in COCO_GAPS]


class Picture(NamedTuple):
    """What is in a JPEG file."""

    id: int
    part: str  # train2017, val2017
    size: tuple[int, int]  # height and width
    labels: list[int]  # classes of the drawn world
    masks: list[np.ndarray]  # (H, W) bool, what is visible of each


def write_standins(root: Path, train: int, val: int) -> None:
    """Write ``coco`` and ``lvis`` and their splits, as a user finds and makes them.

    Args:
        root: ``data``, of the user's working directory.
        train: pictures in ``train2017``; every eighth is in LVIS's validation.
        val: pictures in ``val2017``; the most of them is LVIS's minival.
    """
    rng = np.random.default_rng(0)
    (root / "lvis/annotations").mkdir(parents=True)
    (root / "coco/annotations").mkdir(parents=True)
    pictures: list[Picture] = []
    for part, number in (("train2017", train), ("val2017", val)):
        (root / "coco" / part).mkdir()
        (root / "lvis" / part).symlink_to(f"../coco/{part}")
        ids = np.sort(rng.choice(600_000, number, replace=False)) + 1
        mine = [
            draw(rng, root / "coco" / part, k, i) for k, i in enumerate(ids.tolist())
        ]
        for kind, content in (("captions", captions), ("instances", coco)):
            file = root / f"coco/annotations/{kind}_{part}.json"
            file.write_text(json.dumps(content(mine)))
        pictures += mine
    karpathy(root / "coco", pictures)
    # LVIS's validation has pictures of COCO's training, too; a few are in neither
    kept = [p for k, p in enumerate(pictures) if k % 25 != 24]
    tested = [k % 8 == 7 or p.part == "val2017" for k, p in enumerate(kept)]
    parts = [[p for p, t in zip(kept, tested) if t == wanted] for wanted in (0, 1)]
    for name, mine in zip(("train", "val"), parts):
        file = root / f"lvis/annotations/lvis_v1_{name}.json"
        file.write_text(json.dumps(lvis(rng, mine, counted=parts[0])))
    # the splits, by the commands of docs/data.md
    ids_file = root / "coco/annotations/instances_val2017.json"
    for args in (["coco"], ["lvis", "--minival-ids", ids_file]):
        command = [sys.executable, TOOL, *args]
        command += ["--root", root / args[0]]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def draw(rng: np.random.Generator, folder: Path, number: int, image_id: int) -> Picture:
    """Write a picture of one to four scenes side by side; what is in it."""
    height, width = SIZES[number % len(SIZES)]
    rows, columns = rng.integers(1, 3, 2).tolist()
    image = np.zeros((height, width, 3), np.uint8)
    labels, masks = [], []
    # edges of the scenes, in pixels
    ys = np.linspace(0, height, rows + 1).astype(int)
    xs = np.linspace(0, width, columns + 1).astype(int)
    for top, bottom in zip(ys, ys[1:]):
        for left, right in zip(xs, xs[1:]):
            window, size = (
                np.s_[top:bottom, left:right],
                (int(right - left), int(bottom - top)),
            )
            scene = draw_scene(rng, WORLD_1203, long_tail=True)
            image[window] = cv2.resize(scene.image, size)
            for label, small in zip(scene.labels.tolist(), scene.masks):
                mask = np.zeros((height, width), bool)
                mask[window] = cv2.resize(small.astype(np.uint8), size) > 0
                labels.append(label)
                masks.append(mask)
    picture = Image.fromarray(image)
    if number % 12 == 11:  # COCO has grey files
        picture = picture.convert("L")
    picture.save(folder / f"{image_id:012d}.jpg", quality=92)
    if number % 10 == 9:  # and images in which nothing is annotated
        labels, masks = [], []
    return Picture(image_id, folder.name, (height, width), labels, masks)


def image_record(picture: Picture) -> Record:
    """What COCO and LVIS both say of an image."""
    address = f"http://images.cocodataset.org/{picture.part}/{picture.id:012d}.jpg"
    return dict(
        license=3,
        coco_url=address,
        height=picture.size[0],
        width=picture.size[1],
        date_captured="2013-11-14 17:02:52",
        flickr_url="http://farm9.staticflickr.com/x_z.jpg",
        id=picture.id,
    )


def objects(picture: Picture) -> Iterator[tuple[int, np.ndarray, Record]]:
    """Label, mask, and what both say of an object: polygons, their box and area."""
    for label, mask in zip(picture.labels, picture.masks):
        outlines, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        outlines = [o.reshape(-1, 2) for o in outlines if len(o) >= 3]
        if not outlines:
            continue
        x, y, width, height = cv2.boundingRect(np.concatenate(outlines))
        yield (
            label,
            mask,
            dict(
                segmentation=[o.astype(float).ravel().tolist() for o in outlines],
                area=float(mask.sum()) + 0.25,
                image_id=picture.id,
                bbox=[x + 0.13, y + 0.21, width - 0.34, height - 0.42],
            ),
        )


def coco(pictures: Sequence[Picture]) -> Record:
    """``instances_*.json``; neighbours in the world's order are one class."""
    boxes: list[Record] = []
    for number, picture in enumerate(pictures):
        for k, (label, mask, record) in enumerate(objects(picture)):
            record["category_id"] = COCO_IDS[label * 80 // len(WORLD_1203.classes)]
            record["iscrowd"] = int(number % 7 == 3 and k == 0)
            if record["iscrowd"]:
                record["segmentation"] = run_lengths(mask)
            boxes.append(record)
    boxes[1]["bbox"][2] = 0.0  # two of COCO's are so
    return dict(
        info=dict(description="a stand-in", version="1.0"),
        licenses=[dict(id=3, name="none", url="")],
        images=[image_record(p) | dict(file_name=f"{p.id:012d}.jpg") for p in pictures],
        annotations=[dict(box, id=900_100_000 + k) for k, box in enumerate(boxes)],
        categories=[
            dict(supercategory="thing", id=i, name=name)
            for i, name in zip(COCO_IDS, COCO_CLASSES)
        ],
    )


def run_lengths(mask: np.ndarray) -> Record:
    """COCO's crowds: lengths of runs in columns, the first of zeros."""
    flat = mask.T.ravel().astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff([0, *changes, len(flat)])
    return dict(counts=counts.tolist(), size=[*mask.shape])


def lvis_ids() -> dict[int, int]:
    """Label in the world -> category id in LVIS: the k-th rare one to the k-th."""
    ids: dict[str, list[int]] = dict(f=[], c=[], r=[])
    for i, kind in enumerate(LVIS_FREQUENCY.values(), 1):
        ids[kind].append(i)
    taken = {kind: iter(members) for kind, members in ids.items()}
    return {
        label: next(taken[WORLD_1203.frequency[name]])
        for label, name in enumerate(WORLD_1203.classes)
    }


def lvis(
    rng: np.random.Generator, pictures: Sequence[Picture], counted: Sequence[Picture]
) -> Record:
    """``lvis_v1_*.json``; images and instances of a class are those of ``counted``."""
    to_id = lvis_ids()
    images, boxes = [], []
    for picture in pictures:
        there = sorted({to_id[label] for label in picture.labels})
        others = np.setdiff1d(np.arange(1, 1204), there)
        # what is absent; of one class in three pictures more is there than has a box
        images.append(
            image_record(picture)
            | dict(
                neg_category_ids=rng.choice(others, 12, replace=False).tolist(),
                not_exhaustive_category_ids=there[: picture.id % 3 == 0],
            )
        )
        boxes += [
            dict(record, category_id=to_id[label])
            for label, _, record in objects(picture)
        ]
    instances = Counter(to_id[label] for p in counted for label in p.labels)
    with_it = Counter(to_id[label] for p in counted for label in {*p.labels})
    return dict(
        info=dict(description="a stand-in", version="v1"),
        licenses=[dict(id=3, name="none", url="")],
        images=images,
        annotations=[dict(box, id=k) for k, box in enumerate(boxes, 1)],
        categories=[
            {"def": "drawn"}
            | dict(
                name=name,
                instance_count=instances[i],
                synonyms=[name],
                image_count=with_it[i],
                id=i,
                frequency=kind,
                synset=f"{name}.n.01",
            )
            for i, (name, kind) in enumerate(LVIS_FREQUENCY.items(), 1)
        ],
    )


def karpathy(root: Path, pictures: Sequence[Picture]) -> None:
    """val2014: val2017 and a part of train2017, in which Karpathy's test images are."""
    (root / "val2014").mkdir()
    mine = [p for i, p in enumerate(pictures) if i % 4 == 1 or p.part == "val2017"]
    content = captions(mine)
    for picture, image in zip(mine, content["images"], strict=True):
        image["file_name"] = f"COCO_val2014_{picture.id:012d}.jpg"
        file = f"../{picture.part}/{picture.id:012d}.jpg"
        (root / "val2014" / image["file_name"]).symlink_to(file)
    (root / "annotations/captions_val2014.json").write_text(json.dumps(content))
    tested = {p.id for p in mine if p.part == "train2017"}
    splits = [
        dict(
            cocoid=p.id,
            filename=f"COCO_val2014_{p.id:012d}.jpg",
            split="test" if p.id in tested else "train",
        )
        for p in pictures
    ]
    file = root / "annotations/dataset_coco.json"
    file.write_text(json.dumps(dict(images=splits, dataset="coco")))


def captions(pictures: Sequence[Picture]) -> Record:
    """``captions_*.json``, five of each image."""
    return dict(
        images=[image_record(p) | dict(file_name=f"{p.id:012d}.jpg") for p in pictures],
        annotations=[
            dict(id=5 * i + j, image_id=p.id, caption=f"{j} things of kind {i}")
            for i, p in enumerate(pictures)
            for j in range(5)
        ],
    )


def write_label_maps(root: Path, coco: Path) -> None:
    """VOC 2012 and Pascal Context, and COCO-Stuff's maps of COCO's pictures.

    Masks as theirs: VOC's with a palette and a border of 255; Context's with 0 for what
    is not labelled; COCO-Stuff's grey, the id of a category less one, 255 for nothing.

    Args:
        root: ``VOCdevkit``.
        coco: with ``train2017`` and ``val2017``.
    """
    rng = np.random.default_rng(0)
    palette = [int(n) for n in rng.integers(256, size=768)]
    for year, masks, lists, last in (
        ("VOC2012", ("SegmentationClass", "SegmentationClassAug"), "Segmentation", 20),
        ("VOC2010", ("SegmentationClassContext",), "SegmentationContext", 59),
    ):
        home = root / year
        for folder in ("JPEGImages", *masks, f"ImageSets/{lists}"):
            (home / folder).mkdir(parents=True)
        names = [f"2008_{i:06d}" for i in range(10)]
        for name in names:
            height, width = rng.integers(120, 200, 2)
            pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / f"JPEGImages/{name}.jpg")
            values = np.zeros((height, width), np.uint8)
            values[10:60, 20:90] = 255  # the border
            values[12:58, 22:88] = rng.integers(1, last + 1)
            mask = Image.fromarray(values, "P")
            mask.putpalette(palette)
            for folder in masks:
                mask.save(home / folder / f"{name}.png")
        lines = {"train_aug": names[:6], "train": names[:6], "val": names[6:]}
        for part, own in lines.items():
            file = home / f"ImageSets/{lists}/{part}.txt"
            file.write_text("\n".join(own) + "\n")
    for part in ("train2017", "val2017"):
        folder = coco / "stuffthingmaps" / part
        folder.mkdir(parents=True)
        for file in sorted((coco / part).glob("*.jpg")):
            with Image.open(file) as image:
                values = np.full((image.height, image.width), 255, np.uint8)
            values[5:, 5:] = rng.choice([0, 16, 91, 181])
            Image.fromarray(values).save(folder / f"{file.stem}.png")
