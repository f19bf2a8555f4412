"""The teacher's language: everything that knows open_clip."""

from .cache import CachedTeacher, EmbeddingCacheHook, EmbeddingStore, StoreMismatch
from .image import CLIPImageTeacher
from .loading import TEACHERS, CLIPSource
from .text import CLIPTextEncoder

__all__ = [
    "CLIPImageTeacher",
    "CLIPSource",
    "CLIPTextEncoder",
    "CachedTeacher",
    "EmbeddingCacheHook",
    "EmbeddingStore",
    "StoreMismatch",
    "TEACHERS",
]
