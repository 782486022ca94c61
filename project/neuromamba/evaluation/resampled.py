"""Metrics of resampled subjects: the numbers of ``metrics``, many times faster.

An interval takes thousands of evaluations of a few dozen subjects, which tensor operations spend
almost entirely on their overhead. What does not depend on the resample is prepared once, and all
resamples of an interval are computed together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from neuromamba.evaluation.intervals import Statistic, Together
from neuromamba.evaluation.metrics import METRICS, ROUNDING


def resampled_metric(name: str, score: np.ndarray, target: np.ndarray) -> Statistic:
    """Make a metric a function of the indices of subjects, of which some may occur several times.

    Args:
        name: of ``METRICS``.
        score: [S, classes] or [S, 1].
        target: [S].

    Returns:
        [n] indices -> value; equal to that of ``METRICS`` but for rounding in the last digit;
        NaN if any score or target is not finite. Those of ``_FAST`` are ``Together``.
    """
    if not (np.isfinite(score).all() and np.isfinite(target).all()):
        return lambda chosen: float("nan")  # of a resample without them, too: it is not the metric
    if name in _FAST:
        return Together(_FAST[name](score, target))
    scores, targets = torch.from_numpy(score), torch.from_numpy(target)
    return lambda chosen: float(METRICS[name](scores[chosen], targets[chosen]))


def mean_recall(hit: np.ndarray, target: np.ndarray) -> Together:
    """Mean over the classes drawn of the share of their subjects that ``hit`` is true for.

    Args:
        hit: bool [S].
        target: int [S], classes.

    Returns:
        [n] indices -> value.
    """
    return Together(_mean_recall(hit, target))


# What follows makes functions of indices [R, n] -> values [R].
_Rows = Callable[[np.ndarray], np.ndarray]


def _counts(places: np.ndarray, size: int, counted: np.ndarray | None = None) -> np.ndarray:
    """[R, size] how often each number below ``size`` stands in a row of ``places`` [R, n].

    Args:
        places: whole numbers.
        size: how many there are.
        counted: bool [R, n], which of them count; None for all.
    """
    flat = places + size * np.arange(len(places))[:, None]
    found = flat.reshape(-1) if counted is None else flat[counted]
    return np.bincount(found, minlength=size * len(places)).reshape(len(places), size)


def _auroc(score: np.ndarray, target: np.ndarray) -> _Rows:
    classes = score.shape[1]
    if classes == 2:
        return _area(score[:, 1], target == 1)
    areas = [_area(score[:, k], target == k) for k in range(classes)]
    return lambda rows: np.mean([area(rows) for area in areas], axis=0)


def _area(score: np.ndarray, positive: np.ndarray) -> _Rows:
    """Area under the ROC curve, ties counted half; NaN where one of the two classes is absent."""
    values, place = np.unique(score, return_inverse=True)

    def area(rows: np.ndarray) -> np.ndarray:
        at, hit = place[rows], positive[rows]
        ones = _counts(at, len(values), hit)
        zeros = _counts(at, len(values), ~hit)
        pairs = ones.sum(axis=1) * zeros.sum(axis=1)
        won = (ones * (np.cumsum(zeros, axis=1) - zeros / 2)).sum(axis=1)
        return np.where(pairs > 0, won / np.maximum(pairs, 1), np.nan)

    return area


def _accuracy(score: np.ndarray, target: np.ndarray) -> _Rows:
    hit = score.argmax(axis=1) == target
    return lambda rows: np.count_nonzero(hit[rows], axis=1) / rows.shape[1]


def _balanced_accuracy(score: np.ndarray, target: np.ndarray) -> _Rows:
    return _mean_recall(score.argmax(axis=1) == target, target)


def _mean_recall(hit: np.ndarray, target: np.ndarray) -> _Rows:
    classes = int(target.max()) + 1

    def balanced(rows: np.ndarray) -> np.ndarray:
        label = target[rows]
        count = _counts(label, classes)
        recall = _counts(label, classes, hit[rows]) / np.maximum(count, 1)
        return recall.sum(axis=1) / (count > 0).sum(axis=1)

    return balanced


def _mse(score: np.ndarray, target: np.ndarray) -> _Rows:
    error = np.square(score[:, 0].astype(np.float64) - target)
    return lambda rows: error[rows].mean(axis=1)


def _mae(score: np.ndarray, target: np.ndarray) -> _Rows:
    error = np.abs(score[:, 0].astype(np.float64) - target)
    return lambda rows: error[rows].mean(axis=1)


def _r2(score: np.ndarray, target: np.ndarray) -> _Rows:
    values = target.astype(np.float64)
    error = np.square(score[:, 0].astype(np.float64) - values)

    def r2(rows: np.ndarray) -> np.ndarray:
        drawn = values[rows]
        spread = np.square(drawn - drawn.mean(axis=1, keepdims=True)).sum(axis=1)
        alike = drawn.max(axis=1) == drawn.min(axis=1)
        spread[alike] = np.nan
        return 1 - error[rows].sum(axis=1) / spread

    return r2


def _pearson_r(score: np.ndarray, target: np.ndarray) -> _Rows:
    predicted, values = score[:, 0].astype(np.float64), target.astype(np.float64)

    def pearson_r(rows: np.ndarray) -> np.ndarray:
        x, y = predicted[rows], values[rows]
        low, high = x.min(axis=1), x.max(axis=1)
        alike = high - low <= ROUNDING * np.maximum(np.abs(low), np.abs(high))
        alike |= (y.max(axis=1) == y.min(axis=1)) | (rows.shape[1] < 3)
        x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
        sizes = np.sqrt(np.square(x).sum(axis=1)) * np.sqrt(np.square(y).sum(axis=1))
        sizes[alike] = np.nan
        return (x * y).sum(axis=1) / sizes

    return pearson_r


_FAST: dict[str, Callable[[np.ndarray, np.ndarray], _Rows]] = {
    "auroc": _auroc,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "mse": _mse,
    "mae": _mae,
    "r2": _r2,
    "pearson_r": _pearson_r,
}
