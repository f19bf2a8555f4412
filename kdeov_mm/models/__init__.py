"""The students: models, heads, fusion, projection, and distillation."""

from .assigner import TaskAligner
from .detector import KDEOVDetector
from .distill.attention import AttentionDistillation
from .distill.base import Distillation, Needs, RegionEmbeds, StudentBatch
from .distill.dense import DenseDistillation
from .distill.image import ImageDistillation
from .distill.losses import (
    ContrastiveDistance,
    CosineDistance,
    InfoNCE,
    L1Distance,
    L2Distance,
    RelationalDistance,
    WordDistance,
)
from .distill.region import RegionDistillation
from .distill.regions import RegionPicker
from .folded import FoldedDetector
from .fusion import ClassFiLM, CrossAttentionFusion, FiLMFusion
from .global_head import GlobalHead
from .image_text import ImageTextModel
from .light_neck import LightPAFPN
from .ov_head import OVHead
from .ov_head_module import GridHeadModule, HeadInput, OVHeadModule
from .postprocess import CandidateLocations
from .preprocessor import BatchPreprocessor
from .projection import GlobalProjection, MeanEmbedding, SpatialProjection
from .random_vocabulary import RandomVocabulary
from .seg_heads import ClosedSegHead, OpenSegHead, PixelProjection
from .segmentor import SegStudent
from .student import words_of
from .text_classifier import TextClassifier, TextEmbeds
from .text_pafpn import TextPAFPN
from .vild import ViLDBBoxHead, ViLDDetector, ViLDRoIHead
