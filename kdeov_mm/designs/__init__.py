"""The calls of the original design documents, on the mm models of this package."""

from .clip_model import ResNetCLIP, create_clip_model
from .feature_alignment import (
    CrossModalAlignmentLoss,
    DistillationLoss,
    FeatureAlignmentLoss,
    train_feature_alignment,
)
from .kdeov_model import KDEOVModel
