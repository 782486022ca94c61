"""Curves of a score that should tell one class from the rest: ROC, precision and recall.

The definitions are those of scikit-learn's ``roc_curve`` and ``precision_recall_curve``, whose
import takes seconds; the tests compare. S subjects, K distinct scores.
"""

from __future__ import annotations

import numpy as np


def _counts(target: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives of each threshold [K], and the thresholds, from high to low."""
    order = np.argsort(score, kind="stable")[::-1]
    score, positive = np.asarray(score)[order], np.asarray(target)[order].astype(bool)
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)  # of each distinct score
    true = np.cumsum(positive)[last].astype(np.float64)
    return true, 1.0 + last - true, score[last]


def roc_points(target: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False and true positive rates, and thresholds, of every distinct score.

    Args:
        target: [S], true or 1 for the positive class, which and the other are there.
        score: [S], finite.

    Returns:
        three arrays [K + 1], from (0, 0) at the threshold infinity to (1, 1).
    """
    true, false, at = _counts(target, score)
    true, false = np.append(0.0, true), np.append(0.0, false)
    return false / false[-1], true / true[-1], np.append(np.inf, at)


def area_under_roc(target: np.ndarray, score: np.ndarray) -> float:
    """Area under the points of ``roc_points``, by trapezoids."""
    false, true, _ = roc_points(target, score)
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))


def precision_recall_points(target: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of every distinct score.

    Args:
        target, score: as in ``roc_points``.

    Returns:
        two arrays [K + 1], from the lowest threshold to precision 1 at recall 0.
    """
    true, false, _ = _counts(target, score)
    precision, recall = true / (true + false), true / true[-1]
    return np.append(precision[::-1], 1.0), np.append(recall[::-1], 0.0)


def average_precision(target: np.ndarray, score: np.ndarray) -> float:
    """Precision averaged over the steps of recall (not interpolated)."""
    precision, recall = precision_recall_points(target, score)
    return float(-np.sum(np.diff(recall) * precision[:-1]))
