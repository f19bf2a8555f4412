"""The teacher's language: everything that knows open_clip."""

from .cached_teacher import (
    CachedTeacher,
    EmbeddingStore,
    StoreMismatch,
)
from .source import TEACHERS, CLIPSource
from .teacher import CLIPImageTeacher
from .text import CLIPTextEncoder

__all__ = [
    "CLIPImageTeacher",
    "CLIPSource",
    "CLIPTextEncoder",
    "CachedTeacher",
    "EmbeddingStore",
    "StoreMismatch",
    "TEACHERS",
]
