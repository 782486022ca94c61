"""Metrics: ``neuromamba/evaluation`` (subjects) and ``neuromamba/fmamba`` (pre-training)."""

from neuromamba.evaluation.mean_loss import MeanLoss
from neuromamba.evaluation.metrics import METRICS
from neuromamba.evaluation.subject_keys import subject_key
from neuromamba.evaluation.subject_metrics import SubjectMetrics, WindowScores
from neuromamba.fmamba.pretraining_metrics import FeatureMetrics, TokenMetrics

__all__ = [
    "METRICS",
    "FeatureMetrics",
    "MeanLoss",
    "SubjectMetrics",
    "TokenMetrics",
    "WindowScores",
    "subject_key",
]
