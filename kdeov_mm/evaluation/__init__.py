"""Figures, each with its protocol's full name."""

from .average_precision import (
    RULES,
    Predictions,
    Rules,
    Truth,
    average_precision,
    outcomes,
    precision_table,
    summary,
)
from .detection import OpenVocabularyMetric, newest_figures
from .image_text import (
    RetrievalMetric,
    ZeroShotMetric,
    retrieval_recall,
    zero_shot_accuracy,
)
from .leaks import LABEL_SETS, describe_leaks, leak_report
from .reliability import reliability

__all__ = [
    "LABEL_SETS",
    "OpenVocabularyMetric",
    "Predictions",
    "RULES",
    "RetrievalMetric",
    "Rules",
    "Truth",
    "ZeroShotMetric",
    "average_precision",
    "describe_leaks",
    "leak_report",
    "newest_figures",
    "outcomes",
    "precision_table",
    "reliability",
    "retrieval_recall",
    "summary",
    "zero_shot_accuracy",
]
