"""CLIP distilled into small mmdetection models: open-vocabulary detection and more."""

__version__ = "0.1.0"

from . import compat

compat.apply()

from . import clip, datasets, engine, evaluation, models  # noqa: E402
from .designs import (  # noqa: E402
    CrossModalAlignmentLoss,
    DistillationLoss,
    FeatureAlignmentLoss,
    KDEOVModel,
    create_clip_model,
    train_feature_alignment,
)
from .inference.api import KDEOV  # noqa: E402

__all__ = [
    "KDEOV",
    "CrossModalAlignmentLoss",
    "DistillationLoss",
    "FeatureAlignmentLoss",
    "KDEOVModel",
    "clip",
    "compat",
    "create_clip_model",
    "datasets",
    "engine",
    "evaluation",
    "models",
    "train_feature_alignment",
]
