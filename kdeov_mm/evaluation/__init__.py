"""Figures, each with its protocol's full name."""

from .leaks import LABEL_SETS, describe_leaks, leak_report
from .metric import OpenVocabularyMetric, newest_figures
from .precision import (
    RULES,
    Predictions,
    Rules,
    Truth,
    average_precision,
    outcomes,
    precision_table,
    summary,
)
from .reliability import reliability

__all__ = [
    "LABEL_SETS",
    "OpenVocabularyMetric",
    "Predictions",
    "RULES",
    "Rules",
    "Truth",
    "average_precision",
    "describe_leaks",
    "leak_report",
    "newest_figures",
    "outcomes",
    "precision_table",
    "reliability",
    "summary",
]
