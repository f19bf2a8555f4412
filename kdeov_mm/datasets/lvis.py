"""LVIS v1: 1203 classes, of which the 337 rare ones are novel."""

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS

from ..vocabulary import as_metainfo, frequency_groups
from . import shapes
from .annotations import Record
from .coco import OVCocoDataset

# LVIS v1's classes in the order of their ids, and whether each is in more than 100
# training images (f), more than 10 (c), or fewer (r). mmdet's list corrects a typing
# error of the annotation files ("stero"), where the names have to be found: not here.
LVIS_FREQUENCY: dict[str, str] = json.loads(
    Path(__file__).with_name("lvis_frequency.json").read_text()
)


@DATASETS.register_module()
class OVLVISDataset(OVCocoDataset):
    """LVIS-format data whose samples carry their vocabulary.

    mmdet's LVISV1Dataset ignores ``metainfo.classes``; here labels follow the words,
    as in :class:`OVCocoDataset`. An image's file is the end of its ``coco_url``,
    ``train2017/000000391895.jpg``, below ``data_prefix.img``.

    LVIS is federated: of most classes nobody looked whether they are in an image. So a
    training sample says more, if the file's images list ``neg_category_ids``:

    - ``not_exhaustive_labels``: labels of the classes of which the image has more
      objects than boxes (``not_exhaustive_category_ids``);
    - ``verified_labels``: of the other classes those that are annotated in the image or
      listed as absent, cropped away or not;
    - ``label_weights``: for each class the square root of the number of images that
      have it, the odds with which Detic (Zhou et al., 2022) draws the classes that an
      image is taught not to have; one object for all samples.
    """

    METAINFO = dict(
        as_metainfo(frequency_groups(LVIS_FREQUENCY)),
        classes=tuple(LVIS_FREQUENCY),
        palette=[(17 * i % 256, 71 * i % 256, 113 * i % 256) for i in range(1203)],
    )

    def load_data_list(self) -> list[dict[str, Any]]:
        """mmdet's records of all images.

        Raises:
            ValueError: some images list their absent classes, and some do not.
        """
        records = super().load_data_list()
        # an image without the list would count as one without any absent class
        listed = sum("verified_labels" in record for record in records)
        if 0 < listed < len(records):
            raise ValueError(
                f"{len(records) - listed} of {len(records)} images of {self.ann_file} "
                "have no `neg_category_ids`, the others have: give the list to all of "
                "them, as LVIS does, or to none, where everything is annotated."
            )
        return records

    def file_name(self, image: Record) -> str:
        """The end of the address, with the folder of COCO's part."""
        if "coco_url" not in image:
            return image["file_name"]
        return "/".join(image["coco_url"].split("/")[-2:])

    def parse_data_info(self, raw_data_info: dict) -> Any:
        """mmdet's record of an image, with its verified and unfinished labels."""
        image = raw_data_info["raw_img_info"]
        record = super().parse_data_info(raw_data_info)
        # a test asks about all words; the metric knows the file's lists
        if "neg_category_ids" in image and not self.test_mode:
            there = {box["category_id"] for box in raw_data_info["raw_ann_info"]}
            unfinished = {*image.get("not_exhaustive_category_ids", ())}
            verified = there.union(image["neg_category_ids"]) - unfinished
            record["verified_labels"] = self._labels(verified)
            record["not_exhaustive_labels"] = self._labels(unfinished)
        return record

    def _labels(self, categories: set[int]) -> tuple[int, ...]:
        """Sorted labels of those categories that are asked."""
        known = self.cat2label
        return tuple(sorted(known[i] for i in categories if i in known))

    @cached_property
    def label_weights(self) -> tuple[float, ...]:
        """The square root of the number of images of each class, K values."""
        # an image is listed once for each of its boxes; the categories' `image_count`
        # says the same, but in a part of a file still that of the whole
        images = (self.cat_img_map[i] for i in self.cat_ids)
        return tuple(math.sqrt(len({*ids})) for ids in images)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """One image's record, with ``words``; in training ``label_weights``."""
        record = super().get_data_info(idx)
        if "verified_labels" in record:
            record["label_weights"] = self.label_weights
        return record


@DATASETS.register_module()
class Shapes1203Dataset(OVLVISDataset):
    """The built-in world of LVIS's size; see :mod:`kdeov_mm.datasets.shapes`."""

    METAINFO = dict(
        as_metainfo(frequency_groups(shapes.WORLD_1203.frequency)),
        classes=shapes.WORLD_1203.classes,
        palette=list(shapes.WORLD_1203.palette),
    )


@DATASETS.register_module()
class ShapesHardDataset(OVLVISDataset):
    """The hard built-in world; see :mod:`kdeov_mm.datasets.shapes_hard`."""

    METAINFO = dict(
        as_metainfo(frequency_groups(shapes.WORLD_HARD.frequency)),
        classes=shapes.WORLD_HARD.classes,
        palette=list(shapes.WORLD_HARD.palette),
    )
