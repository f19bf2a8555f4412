"""What runs around a training: loop, hooks, filling the store, the doctor."""

from .hooks import AtomicCheckpointHook, EmbeddingCacheHook
from .loop import ResumableTrainLoop
