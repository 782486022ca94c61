"""Metrics of resampled subjects: the numbers of ``metrics``, many times faster.

An interval takes thousands of evaluations of a few dozen subjects, which tensor operations spend
almost entirely on their overhead. What does not depend on the resample is prepared once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from neuromamba.evaluation.intervals import Statistic
from neuromamba.evaluation.metrics import METRICS, constant


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
    return mean_recall(score.argmax(axis=1) == target, target)


def mean_recall(hit: np.ndarray, target: np.ndarray) -> Statistic:
    """Mean over the classes drawn of the share of their subjects that ``hit`` is true for.

    Args:
        hit: bool [S].
        target: int [S], classes.

    Returns:
        [n] indices -> value.
    """

    def balanced(chosen: np.ndarray) -> float:
        label = target[chosen]
        count = np.bincount(label)
        hits = np.bincount(label[hit[chosen]], minlength=len(count))
        there = count > 0
        return float(np.mean(hits[there] / count[there]))

    return balanced


def _mse(score: np.ndarray, target: np.ndarray) -> Statistic:
    error = np.square(score[:, 0].astype(np.float64) - target)
    return lambda chosen: float(error[chosen].sum()) / len(chosen)


def _mae(score: np.ndarray, target: np.ndarray) -> Statistic:
    error = np.abs(score[:, 0].astype(np.float64) - target)
    return lambda chosen: float(error[chosen].sum()) / len(chosen)


def _r2(score: np.ndarray, target: np.ndarray) -> Statistic:
    values = target.astype(np.float64)
    error = np.square(score[:, 0].astype(np.float64) - values)

    def r2(chosen: np.ndarray) -> float:
        drawn = values[chosen]
        away = drawn - drawn.sum() / len(drawn)
        if drawn.max() == drawn.min():
            return float("nan")
        return 1 - float(error[chosen].sum()) / float(away @ away)

    return r2


def _pearson_r(score: np.ndarray, target: np.ndarray) -> Statistic:
    predicted, values = score[:, 0].astype(np.float64), target.astype(np.float64)

    def pearson_r(chosen: np.ndarray) -> float:
        x, y = predicted[chosen], values[chosen]
        if len(x) < 3 or constant(x) or y.max() == y.min():
            return float("nan")
        x, y = x - x.sum() / len(x), y - y.sum() / len(y)
        return float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))

    return pearson_r


_FAST: dict[str, Callable[[np.ndarray, np.ndarray], Statistic]] = {
    "auroc": _auroc,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "mse": _mse,
    "mae": _mae,
    "r2": _r2,
    "pearson_r": _pearson_r,
}
