"""LVIS v1: 1203 classes, of which the 337 rare ones are novel."""

import json
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS

from ..vocabulary import as_metainfo, frequency_groups
from . import shapes
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
    """

    METAINFO = dict(
        as_metainfo(frequency_groups(LVIS_FREQUENCY)),
        classes=tuple(LVIS_FREQUENCY),
        palette=[(17 * i % 256, 71 * i % 256, 113 * i % 256) for i in range(1203)],
    )

    def parse_data_info(self, raw_data_info: dict) -> Any:
        """mmdet's record of an image."""
        image = raw_data_info["raw_img_info"]
        if "coco_url" in image:
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
        return super().parse_data_info(raw_data_info)


@DATASETS.register_module()
class Shapes1203Dataset(OVLVISDataset):
    """The built-in world of LVIS's size; see :mod:`kdeov_mm.datasets.shapes`."""

    METAINFO = dict(
        as_metainfo(frequency_groups(shapes.WORLD_1203.frequency)),
        classes=shapes.WORLD_1203.classes,
        palette=list(shapes.WORLD_1203.palette),
    )
