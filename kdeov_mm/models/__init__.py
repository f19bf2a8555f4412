"""The student."""

from .dense_head import AttentionDistillation, DenseDistillation
from .detector import KDEOVDetector
from .folded import FoldedDetector
from .fusion import ClassFiLM, CrossAttentionFusion, FiLMFusion
from .global_head import GlobalHead
from .image_text import ImageTextModel
from .losses import (
    ContrastiveDistance,
    CosineDistance,
    InfoNCE,
    L1Distance,
    L2Distance,
    RelationalDistance,
)
from .ov_head import GridHeadModule, Locations, OVHead, OVHeadModule, WordBCELoss
from .projection import GlobalProjection, SpatialProjection
from .region_head import RegionDistillation
from .regions import RegionPicker
from .scoring import PromisingPlaces
from .vocabulary import RandomVocabulary, words_of

__all__ = [
    "AttentionDistillation",
    "ClassFiLM",
    "ContrastiveDistance",
    "CosineDistance",
    "CrossAttentionFusion",
    "DenseDistillation",
    "FiLMFusion",
    "FoldedDetector",
    "GlobalHead",
    "GlobalProjection",
    "GridHeadModule",
    "ImageTextModel",
    "InfoNCE",
    "KDEOVDetector",
    "L1Distance",
    "L2Distance",
    "Locations",
    "OVHead",
    "OVHeadModule",
    "PromisingPlaces",
    "RandomVocabulary",
    "RegionDistillation",
    "RegionPicker",
    "RelationalDistance",
    "SpatialProjection",
    "WordBCELoss",
    "words_of",
]
