"""Boxes in VOC XML, checked as those of COCO's files are."""

import logging
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import XMLDataset
from mmdet.registry import DATASETS
from mmengine.fileio import get, list_from_file
from mmengine.logging import print_log
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..vocabulary import clean_name
from .annotations import (
    AnnotationError,
    AnnotationFile,
    Record,
    picture_size,
)

_SIDES = ("xmin", "ymin", "xmax", "ymax")


@DATASETS.register_module()
class OVXMLDataset(XMLDataset):
    """VOC XML whose samples carry their words: :class:`.coco.OVCocoDataset`'s rules.

    Objects that VOC calls difficult are crowds: neither taught nor missed. Images may
    have any ending. A file's objects of classes that are not asked are left out.

    Args:
        checked: images that are opened at once; see :class:`.coco.OVCocoDataset`.
        kwargs: those of ``mmdet.XMLDataset``.

    Attributes:
        checks: what the check put right or dropped.
        looked: what opening images showed; None of a remote storage.

    Raises:
        AnnotationError: XML that is missing, damaged, or lacks what has to be there,
            and what :class:`.annotations.AnnotationFile` refuses.
    """

    def __init__(self, *args: Any, checked: int | None = 100, **kwargs: Any) -> None:
        self.checked = checked
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[Record]:
        """mmdet's records of all images, from the checked files."""
        # the list: a name for each image
        lines = list_from_file(self.ann_file, backend_args=self.backend_args)
        names = [line.strip() for line in lines if line.strip()]
        if twice := [n for n, number in Counter(names).items() if number > 1]:
            raise AnnotationError(f"{self.ann_file}: {twice[:5]} are there twice.")
        content = self._read(names)
        # the same check as COCO's
        file = AnnotationFile(content, f"{self.ann_file} (XML)")
        classes = self.metainfo["classes"]
        file.check_names(classes)
        file.fill_sizes(lambda image: picture_size(image["file_name"]))
        self.looked = None
        if not self.backend_args:
            self.looked = file.look_at_images(lambda i: i["file_name"], self.checked)
        file.check_boxes()
        self.checks = file.notes
        for note in file.notes:
            print_log(f"{file.path}: {note.text}", "current", logging.WARNING)
        # mmdet's records
        label_of = {name: label for label, name in enumerate(classes)}
        labels = {c["id"]: label_of.get(c["name"]) for c in content["categories"]}
        least = self.bbox_min_size or 0
        records = {
            image["id"]: dict(
                img_path=image["file_name"],
                img_id=image["name"],
                xml_path=image["xml_path"],
                height=image["height"],
                width=image["width"],
                instances=[],
            )
            for image in file.content["images"]
        }
        for box in file.content["annotations"]:
            label = labels[box["category_id"]]
            if label is not None:
                x, y, width, height = box["bbox"]
                instance = dict(
                    bbox=[x, y, x + width, y + height],
                    bbox_label=label,
                    ignore_flag=int(box["iscrowd"] or min(width, height) < least),
                )
                records[box["image_id"]]["instances"].append(instance)
        return [*records.values()]

    def _read(self, names: Sequence[str]) -> Record:
        """The XML files of images as COCO's lists."""
        folder = Path(self.sub_data_root, self.ann_subdir)
        images: list[Record] = []
        boxes: list[Record] = []
        categories: dict[str, int] = {}
        faults: list[str] = []
        for number, name in enumerate(names, 1):
            path = folder / f"{name}.xml"
            try:
                data = get(str(path), backend_args=self.backend_args)
                root = ET.fromstring(data)
                width, height = (
                    _number(root, f"size/{side}", 0) for side in ("width", "height")
                )
                things = [_object(thing) for thing in root.iter("object")]
            except FileNotFoundError:
                faults.append(f"{path} is not there")
                continue
            except (ET.ParseError, ValueError) as error:
                faults.append(f"{path} {error if data.strip() else 'is empty'}")
                continue
            image = dict(id=number, name=name, width=width, height=height)
            images.append(dict(image, file_name=self._image(name), xml_path=str(path)))
            for label, box, difficult in things:
                category = categories.setdefault(label, len(categories) + 1)
                record = dict(image_id=number, category_id=category, bbox=box)
                boxes.append(dict(record, id=len(boxes) + 1, iscrowd=difficult))
        if faults:
            raise AnnotationError(
                f"{self.ann_file}: {len(faults):,} of {len(names):,} XML files cannot "
                f"be used; the first: {faults[0]}."
            )
        named = [dict(id=i, name=name) for name, i in categories.items()]
        return dict(images=images, annotations=boxes, categories=named)

    def _image(self, name: str) -> str:
        """The image of a name, which may have any ending; VOC's where it is missing."""
        stem = Path(self.sub_data_root, self.img_subdir, name)
        endings = [".jpg", *IMG_EXTENSIONS, *(e.upper() for e in IMG_EXTENSIONS)]
        files = (stem.with_name(stem.name + ending) for ending in endings)
        return str(next((f for f in files if f.is_file()), f"{stem}.jpg"))

    def get_data_info(self, idx: int) -> Record:
        """One image's record, with ``words``."""
        words = tuple((name,) for name in map(clean_name, self.metainfo["classes"]))
        return dict(super().get_data_info(idx), words=words)


def _number(element: ET.Element, name: str, default: float) -> float:
    """A number in XML; the default where it is missing or empty.

    Raises:
        ValueError: it is text, or no finite number.
    """
    text = (element.findtext(name) or "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = float("nan")
    if value - value:  # NaN or infinite
        raise ValueError(f"has {text!r} as its {name}, which is no number")
    return value


def _object(thing: ET.Element) -> tuple[str, list[float], int]:
    """Name, box xywh counted from 0, and whether it is difficult, of an object.

    Raises:
        ValueError: it has no name, or no box.
    """
    label = thing.findtext("name") or ""
    if not label.strip():
        raise ValueError("has an object without a name")
    if lacking := [
        s for s in _SIDES if not (thing.findtext(f"bndbox/{s}") or "").strip()
    ]:
        raise ValueError(f"has a {label!r} without {lacking[0]} in its bndbox")
    # VOC counts pixels from 1
    x1, y1, x2, y2 = (_number(thing, f"bndbox/{side}", 0) - 1 for side in _SIDES)
    difficult = _number(thing, "difficult", 0)
    return label, [x1, y1, x2 - x1, y2 - y1], int(difficult != 0)
