"""Data: the built-in world, and data sets that carry their words."""

from .coco import COCOByName, OVCocoDataset, ShapesDataset
from .transforms import LoadCaptions, LoadWords

__all__ = ["COCOByName", "LoadCaptions", "LoadWords", "OVCocoDataset", "ShapesDataset"]
