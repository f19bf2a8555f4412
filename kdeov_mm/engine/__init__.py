"""Around a training: hooks, the store's filling, the doctor."""

from .hooks import EmbeddingCacheHook

__all__ = ["EmbeddingCacheHook"]
