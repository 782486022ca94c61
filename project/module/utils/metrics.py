"""Metrics over subjects: ``neuromamba/evaluation/metrics.py``."""

from neuromamba.evaluation.metrics import METRICS, SubjectMetrics, TokenMetrics

__all__ = ["METRICS", "SubjectMetrics", "TokenMetrics"]
