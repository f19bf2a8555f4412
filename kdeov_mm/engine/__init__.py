"""What runs around a training: loop, hooks, filling the store, the doctor."""

from .heartbeat import HeartbeatHook
from .hooks import AtomicCheckpointHook, EmbeddingCacheHook, TrainingRecordHook
from .loop import ResumableTrainLoop, TestSuiteLoop
from .precision import GPUAmpOptimWrapper
from .visualizer import NamesVisualizer, SegVisualizer
