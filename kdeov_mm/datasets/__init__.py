"""Data: the built-in worlds, and data sets that carry their words."""

from .coco import COCOByName, OVCocoDataset, ShapesDataset
from .image_text import (
    CaptionDataset,
    CropDataset,
    CropToBox,
    ImageFolderDataset,
    ShapesCrops,
)
from .lvis import OVLVISDataset, Shapes1203Dataset
from .transforms import LoadCaptions, LoadWords

__all__ = [
    "COCOByName",
    "CaptionDataset",
    "CropDataset",
    "CropToBox",
    "ImageFolderDataset",
    "LoadCaptions",
    "LoadWords",
    "OVCocoDataset",
    "OVLVISDataset",
    "Shapes1203Dataset",
    "ShapesCrops",
    "ShapesDataset",
]
