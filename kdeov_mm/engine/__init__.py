"""What runs around a training: hooks."""

from .hooks import EmbeddingCacheHook

__all__ = ["EmbeddingCacheHook"]
