"""CLIP distilled into small mmdetection models that answer in CLIP's language."""

__version__ = "0.1.0"

from . import compat

compat.apply()
