"""Metrics of resampled subjects: the numbers of ``metrics``, many times faster.

An interval takes thousands of evaluations of a few dozen subjects, which tensor operations spend
almost entirely on their overhead. What does not depend on the resample is prepared once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from neuromamba.evaluation.intervals import Statistic
from neuromamba.evaluation.metrics import METRICS


def resampled_metric(name: str, score: np.ndarray, target: np.ndarray) -> Statistic:
    """Make a metric a function of the indices of subjects, of which some may occur several times.

    Args:
        name: of ``METRICS``.
        score: [S, classes] or [S, 1].
        target: [S].

    Returns:
        [n] indices -> value; equal to that of ``METRICS`` but for rounding in the last digit;
        NaN if any score or target is not finite.
    """
    if not (np.isfinite(score).all() and np.isfinite(target).all()):
        return lambda chosen: float("nan")  # of a resample without them, too: it is not the metric
    if name in _FAST:
        return _FAST[name](score, target)
    scores, targets = torch.from_numpy(score), torch.from_numpy(target)
    return lambda chosen: float(METRICS[name](scores[chosen], targets[chosen]))


def _auroc(score: np.ndarray, target: np.ndarray) -> Statistic:
    classes = score.shape[1]
    if classes == 2:
        return _area(score[:, 1], target == 1)
    areas = [_area(score[:, k], target == k) for k in range(classes)]
    return lambda chosen: float(np.mean([area(chosen) for area in areas]))


def _area(score: np.ndarray, positive: np.ndarray) -> Statistic:
    """Area under the ROC curve, ties counted half; NaN where one of the two classes is absent."""
    values, place = np.unique(score, return_inverse=True)

    def area(chosen: np.ndarray) -> float:
        at, hit = place[chosen], positive[chosen]
        ones = np.bincount(at[hit], minlength=len(values))
        zeros = np.bincount(at[~hit], minlength=len(values))
        pairs = int(ones.sum()) * int(zeros.sum())
        if not pairs:
            return float("nan")
        return float((ones * (np.cumsum(zeros) - zeros / 2)).sum() / pairs)

    return area


def _accuracy(score: np.ndarray, target: np.ndarray) -> Statistic:
    hit = score.argmax(axis=1) == target
    return lambda chosen: int(np.count_nonzero(hit[chosen])) / len(chosen)


def _balanced_accuracy(score: np.ndarray, target: np.ndarray) -> Statistic:
    hit = score.argmax(axis=1) == target

    def balanced(chosen: np.ndarray) -> float:
        label = target[chosen]
        count = np.bincount(label)
        hits = np.bincount(label[hit[chosen]], minlength=len(count))
        there = count > 0
        return float(np.mean(hits[there] / count[there]))

    return balanced


_FAST: dict[str, Callable[[np.ndarray, np.ndarray], Statistic]] = {
    "auroc": _auroc,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
}
