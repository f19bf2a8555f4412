"""The teacher's language: everything that knows open_clip."""

from .cache import CachedTeacher, EmbeddingCacheHook, EmbeddingStore, StoreMismatch
from .image import CLIPImageTeacher
from .loading import SHAPES_TEACHER, CLIPSource
from .text import CLIPTextEncoder, clean_name

__all__ = [
    "CLIPImageTeacher",
    "CLIPSource",
    "CLIPTextEncoder",
    "CachedTeacher",
    "EmbeddingCacheHook",
    "EmbeddingStore",
    "SHAPES_TEACHER",
    "StoreMismatch",
    "clean_name",
]
