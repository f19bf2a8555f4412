"""Data: the built-in worlds, and data sets that carry their words."""

from .coco import COCOByName, OVCocoDataset, ShapesDataset
from .lvis import OVLVISDataset, Shapes1203Dataset
from .transforms import LoadCaptions, LoadWords

__all__ = [
    "COCOByName",
    "LoadCaptions",
    "LoadWords",
    "OVCocoDataset",
    "OVLVISDataset",
    "Shapes1203Dataset",
    "ShapesDataset",
]
