"""Data sets whose labels and words cannot drift apart."""

import json
import logging
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.fileio import get
from mmengine.logging import print_log

from ..options import COMMA
from ..vocabulary import Vocabulary, as_metainfo, asked_groups
from . import shapes
from .annotations import (
    AnnotationError,
    AnnotationFile,
    Record,
    category_ids,
    collected_later,
    picture_size,
)

# OVR-CNN's 48 base and 17 novel classes; the other 15 are in neither
_LISTS = json.loads(Path(__file__).with_name("coco_groups.json").read_text())
COCO_GROUPS: dict[str, tuple[str, ...]] = {g: tuple(n) for g, n in _LISTS.items()}
COCO_BASE, COCO_NOVEL = COCO_GROUPS["base"], COCO_GROUPS["novel"]


@DATASETS.register_module()
class OVCocoDataset(CocoDataset):
    """COCO-format data whose samples carry their vocabulary.

    Each sample has ``words``, per class a tuple of its cleaned name and synonyms; label
    i is ``words[i]`` whatever the order of categories in the file.

    Args:
        vocabulary: which words are asked: ``'all'`` classes of the metainfo, one of
            its groups (``'base'``, ``'novel'``, ...), or a file of
            :meth:`kdeov_mm.vocabulary.Vocabulary.load`.
        synonyms: carry the synonyms of the vocabulary's file too.
        checked: images that are opened at once, spread over the data set, to see that
            they are there and as large as the file says; None: all. Those of a remote
            storage (``backend_args``) are not.
        kwargs: those of ``mmdet.CocoDataset``.

    Attributes:
        checks: notes on what the check of the file put right or dropped.
        looked: what opening images showed; None where none was opened.

    Raises:
        AnnotationError: what :class:`.annotations.AnnotationFile` refuses.
    """

    METAINFO = dict(
        CocoDataset.METAINFO,
        base_classes=COCO_BASE,
        novel_classes=COCO_NOVEL,
        base_novel_classes=tuple(
            n for n in CocoDataset.METAINFO["classes"] if n in {*COCO_BASE, *COCO_NOVEL}
        ),
    )

    def __init__(
        self,
        *args: Any,
        vocabulary: str | None = None,
        synonyms: bool = False,
        checked: int | None = 100,
        **kwargs: Any,
    ) -> None:
        self.checked = checked
        # mmdet would ask for each of its letters
        if isinstance((kwargs.get("metainfo") or {}).get("classes"), str):
            raise ValueError(f"metainfo.classes is {COMMA}: {kwargs['metainfo']}")
        # the classes are those of the vocabulary, or of the metainfo
        self.synonyms: dict[str, tuple[str, ...]] = {}
        if vocabulary is not None:
            if kwargs.get("metainfo"):
                raise ValueError("give `vocabulary` or `metainfo`, not both")
            kwargs["metainfo"] = self._asked(vocabulary)
        if synonyms and not self.synonyms:
            raise ValueError(
                "synonyms=True needs a vocabulary file that has them, got "
                f"vocabulary={vocabulary!r}"
            )
        self.synonyms = self.synonyms if synonyms else {}
        # a checkpoint keeps the metainfo, and with it what it was trained on
        if self.synonyms:
            kwargs["metainfo"]["synonyms"] = tuple(self.synonyms.values())
        super().__init__(*args, **kwargs)

    def _asked(self, vocabulary: str) -> dict[str, Any]:
        """The metainfo that differs from the class's own."""
        # a file, with classes and synonyms of its own
        if Path(vocabulary).suffix:
            content = Vocabulary.load(vocabulary)
            self.synonyms = dict(zip(content.names, content.words))
            return content.metainfo
        # all classes of the data set, or one of its groups
        if vocabulary == "all":
            return {}
        meta = self.METAINFO
        groups = asked_groups(meta)
        if vocabulary not in groups:
            raise ValueError(
                f"vocabulary is 'all', one of {[*groups]}, or a file such as "
                f"words.txt, got {vocabulary!r}"
            )
        # each class keeps its colour
        names = groups[vocabulary]
        palette = dict(zip(meta["classes"], meta["palette"]))
        return dict(classes=names, palette=[palette[n] for n in names])

    @collected_later()
    def load_data_list(self) -> list[dict[str, Any]]:
        """mmdet's records of all images, from the checked file."""
        # the file: what is wrong with it is said before the work begins
        data = get(self.ann_file, backend_args=self.backend_args)
        file = AnnotationFile(data, self.ann_file)
        if not file.labelled and not self.test_mode:
            raise AnnotationError(f"{file.path} has no 'annotations' to train on.")
        names = self.metainfo["classes"]
        file.check_names(names)
        file.fill_sizes(lambda image: picture_size(self._path(image)))
        # some of the images, then the boxes on them
        self.looked = None
        if not self.backend_args:
            self.looked = file.look_at_images(self._path, self.checked)
        file.check_boxes()
        self.checks = file.notes
        for note in file.notes:
            print_log(f"{file.path}: {note.text}", "current", logging.WARNING)
        # labels by name; mmdet's would be in the order of the file
        images, boxes = file.content["images"], file.content["annotations"]
        self.cat_ids = category_ids(file.content["categories"], names)
        self.cat2label = {id_: label for label, id_ in enumerate(self.cat_ids)}
        self.cat_img_map: dict[int, list[int]] = defaultdict(list)
        of_image: dict[int, list[Record]] = {image["id"]: [] for image in images}
        for box in boxes:
            self.cat_img_map[box["category_id"]].append(box["image_id"])
            # mmdet leaves out what is narrower than a pixel, or to be ignored; both are
            # objects of the evaluation, the one small, the other a crowd
            x, y, width, height = box["bbox"]
            if width < 1 or height < 1 or box.get("ignore"):
                sides = [max(width, 1), max(height, 1)]
                box = dict(box, bbox=[x, y, *sides], ignore=False)
            of_image[box["image_id"]].append(box)
        # mmdet's records
        records = []
        for image in images:
            raw = dict(image, img_id=image["id"], file_name=self.file_name(image))
            boxes = of_image[image["id"]]
            record = dict(raw_img_info=raw, raw_ann_info=boxes)
            records.append(self.parse_data_info(record))
        return records

    def file_name(self, image: Record) -> str:
        """The file of an image's record, below ``data_prefix.img``."""
        return image["file_name"]

    def _path(self, image: Record) -> Path:
        return Path(self.data_prefix["img"], self.file_name(image))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The classes that are asked, in the order of the labels."""
        meta = self.metainfo  # a copy, each time
        words = tuple(self.synonyms.get(name, (name,)) for name in meta["classes"])
        return Vocabulary(tuple(meta["classes"]), words, asked_groups(meta))

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """One image's record, with ``words``."""
        return dict(super().get_data_info(idx), words=self.vocabulary.words)


@DATASETS.register_module()
class ShapesDataset(OVCocoDataset):
    """The built-in world; see :mod:`kdeov_mm.datasets.shapes`."""

    METAINFO = dict(
        as_metainfo(shapes.WORLD_360.groups),
        classes=shapes.CLASSES,
        palette=list(shapes.PALETTE),
    )
