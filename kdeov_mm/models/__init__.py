"""The student."""

from .detector import KDEOVDetector
from .distill.dense import AttentionDistillation, DenseDistillation
from .distill.losses import (
    ContrastiveDistance,
    CosineDistance,
    InfoNCE,
    L1Distance,
    L2Distance,
    RelationalDistance,
)
from .distill.region import RegionDistillation
from .distill.regions import RegionPicker
from .folded import FoldedDetector
from .fusion import ClassFiLM, CrossAttentionFusion, FiLMFusion
from .global_head import GlobalHead
from .image_text import ImageTextModel
from .ov_head import GridHeadModule, Locations, OVHead, OVHeadModule, WordBCELoss
from .postprocess import PromisingPlaces
from .projection import GlobalProjection, SpatialProjection
from .random_vocabulary import RandomVocabulary, words_of

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
