"""Metrics, each reported with the full name of its protocol."""

from .average_precision import RULES, GroundTruth, Predictions, average_precision
from .detection import OpenVocabularyMetric
from .image_text import (
    RetrievalMetric,
    ZeroShotMetric,
    retrieval_recall,
    zero_shot_accuracy,
)
from .leaks import LABEL_SETS, describe_leaks, leak_report
from .protocol_metric import newest_metrics
from .reliability import reliability
from .segmentation import SegMetric, count_pixels, segmentation_scores

__all__ = [
    "LABEL_SETS",
    "RULES",
    "GroundTruth",
    "OpenVocabularyMetric",
    "Predictions",
    "RetrievalMetric",
    "SegMetric",
    "ZeroShotMetric",
    "average_precision",
    "count_pixels",
    "describe_leaks",
    "leak_report",
    "newest_metrics",
    "reliability",
    "retrieval_recall",
    "segmentation_scores",
    "zero_shot_accuracy",
]
