"""LVIS v1: 1203 classes, of which the 337 rare ones are novel."""

from typing import Any

from mmdet.datasets import LVISV1Dataset
from mmdet.registry import DATASETS

from ..vocabulary import as_metainfo, frequency_groups
from . import shapes
from .coco import OVCocoDataset

# mmdet mends a typing error of the annotation files, where names are to be found
_MENDED = {"speaker_(stereo_equipment)": "speaker_(stero_equipment)"}
LVIS_CLASSES = tuple(_MENDED.get(n, n) for n in LVISV1Dataset.METAINFO["classes"])
# of each class, in this order: in more than 100 training images (f), more than 10 (c),
# or fewer (r)
LVIS_FREQUENCY = (
    "cfffccccccffrrfcrcfrrcfcccfcfrrfcfffcrrrfrfcfccfrfrrfccffffffcrcffcfrcrcccff"
    "frfffrfcrfffffccrfffccfccccfrrccffcfrfffrfrcccrcfrfccrrffccrfffrcrfrcfrccfrf"
    "cfrcccrfrccrccrcfcfrfcfcffrcfrfcfcccfccfcffrcccccrffccffrrcccrrcffcccrrcffcc"
    "ffrfrrfrrrcrcccrrcrccrrffffcrrfcfrccrrccrrffccrffcccrrcffcrcccrrcrrffffrrrfr"
    "ffrcfrccrccrrcfcrcrfcrcccfrcrccccfcccfcfcffrrffrrrrcrfccfrcrrrfrfccffrfrffff"
    "rrccfcfrrfcfcffcrrcrfccfrcrcfrfcrrfrcccrffcccrrrffrrccrcfcrfffcffrfcrcffcccr"
    "crfcfcccccrcfccccfccfrrrrrcccrcrccrrcccfcfcfcfrccrcrrfccrffrfrccfccfccrfcccr"
    "cfrfcrcfrrrfrcfffcrccccfrcfrrcfcffrrffrrcrrcrfcrcrrcrfccfcffcrfcrcrccrrcfrcc"
    "frfccffrfrrrfccfrfffcffrfrrccrfrfffffrfrccrcfcfcrffcfrrrrccfffrrcrffcrfccccc"
    "frfrfrrfrfcccfcffrffffcffrcrfrffccfccrcfcfrfrrccrffccffcccrcfccffcfrcrrffrrc"
    "cccrcfccrcfrcccfcrrcffrrrcrrfccrfccrcfffccrfrfcrrrfrcfrfffcrcrrrccffrcrfccff"
    "ffccccccfccfrrrrrcrrcrrfcrcrfcccrcccrccfcccffcrcfrrccrrrcrcfcfffcrffrccrcfff"
    "rrffrrfrfcffrcfcccrcccccrrrcrrfrrcfffcfrfcfrfrfcffcfffffrccrcrrfccffffrcrfrc"
    "crrrfrfccrcfccrcrccfcrfrccrrfffffcfffffrrrrrfcfcfccccffcfcrrrfcfrrffrrfffccf"
    "cccccfffcfrcfffrccfrccccccfcfcffffffcffffccfffcfcffrfrrcfffrcrccrcccffrfccfc"
    "ffcrrrcrcrccccffrrrcffccrcrccccffcccffcccccccfcfcffcrcccffcccfc"
)


@DATASETS.register_module()
class OVLVISDataset(OVCocoDataset):
    """LVIS-format data whose samples carry their vocabulary.

    mmdet's LVISV1Dataset ignores ``metainfo.classes``; here labels follow the words,
    as in :class:`OVCocoDataset`. An image's file is the end of its ``coco_url``,
    ``train2017/000000391895.jpg``, below ``data_prefix.img``.
    """

    METAINFO = dict(
        classes=LVIS_CLASSES,
        **as_metainfo(frequency_groups(dict(zip(LVIS_CLASSES, LVIS_FREQUENCY)))),
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
        classes=shapes.WORLD_1203.classes,
        **as_metainfo(frequency_groups(shapes.WORLD_1203.frequency)),
        palette=list(shapes.WORLD_1203.palette),
    )
