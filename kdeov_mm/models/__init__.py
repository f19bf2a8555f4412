"""The student."""

from .detector import KDEOVDetector
from .fusion import CrossAttentionFusion, FiLMFusion
from .losses import CosineDistance, L1Distance, L2Distance, RelationalDistance
from .ov_head import Locations, OVHead, OVHeadModule, WordBCELoss
from .projection import SpatialProjection
from .region_head import RegionDistillation
from .vocabulary import RandomVocabulary, words_of

__all__ = [
    "CosineDistance",
    "CrossAttentionFusion",
    "FiLMFusion",
    "KDEOVDetector",
    "L1Distance",
    "L2Distance",
    "Locations",
    "OVHead",
    "OVHeadModule",
    "RandomVocabulary",
    "RegionDistillation",
    "RelationalDistance",
    "SpatialProjection",
    "WordBCELoss",
    "words_of",
]
