"""What runs around a training: hooks, filling the store, the doctor."""

from .hooks import EmbeddingCacheHook, TrainingRecordHook
