"""The teacher's language: everything that knows open_clip."""

from .image import CLIPImageTeacher
from .loading import SHAPES_TEACHER, CLIPSource
from .text import CLIPTextEncoder, clean_name

__all__ = [
    "CLIPImageTeacher",
    "CLIPSource",
    "CLIPTextEncoder",
    "SHAPES_TEACHER",
    "clean_name",
]
