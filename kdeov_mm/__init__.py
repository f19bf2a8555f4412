"""CLIP distilled into small mmdetection models that answer in CLIP's language."""

__version__ = "0.1.0"

from . import compat

compat.apply()

from . import clip, datasets, engine, evaluation, models  # noqa: E402
from .inference.api import KDEOV  # noqa: E402

__all__ = ["KDEOV", "clip", "compat", "datasets", "engine", "evaluation", "models"]
