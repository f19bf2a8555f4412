"""CLIP distilled into small mmdetection models: open-vocabulary detection and more."""

__version__ = "0.1.0"

from . import compat

compat.apply()

from . import clip, datasets, engine, evaluation, models  # noqa: E402
from .inference.api import KDEOV  # noqa: E402

__all__ = ["KDEOV", "clip", "compat", "datasets", "engine", "evaluation", "models"]
