"""Data sets that carry their words, and the built-in worlds."""

from .annotations import AnnotationError, AnnotationFile
from .coco import OVCocoDataset, ShapesDataset
from .image_text import (
    CaptionDataset,
    CropDataset,
    CropToBox,
    ImageFolderDataset,
    LVISCrops,
    ShapesCrops,
)
from .lvis import OVLVISDataset, Shapes1203Dataset, ShapesHardDataset
from .sampler import ResumableSampler, SeededDataset
from .segmentation import (
    ADE20KDataset,
    COCOStuffDataset,
    LoadLabelMap,
    MaskError,
    PascalContextDataset,
    SegDataset,
    ShapesHardSegDataset,
    ShapesSegDataset,
    VOCSegDataset,
)
from .transforms import (
    HSVJitter,
    KeepOriginal,
    LargeScaleJitter,
    LoadCaptions,
    LoadImageFromFile,
    LoadWords,
    PackInputs,
)
from .voc import OVXMLDataset

__all__ = [
    "ADE20KDataset",
    "COCOStuffDataset",
    "LoadLabelMap",
    "MaskError",
    "PascalContextDataset",
    "SegDataset",
    "ShapesHardSegDataset",
    "ShapesSegDataset",
    "VOCSegDataset",
    "AnnotationError",
    "AnnotationFile",
    "CaptionDataset",
    "CropDataset",
    "CropToBox",
    "ImageFolderDataset",
    "HSVJitter",
    "KeepOriginal",
    "LVISCrops",
    "LargeScaleJitter",
    "LoadCaptions",
    "LoadImageFromFile",
    "LoadWords",
    "OVCocoDataset",
    "OVLVISDataset",
    "OVXMLDataset",
    "PackInputs",
    "ResumableSampler",
    "SeededDataset",
    "Shapes1203Dataset",
    "ShapesCrops",
    "ShapesDataset",
    "ShapesHardDataset",
]
