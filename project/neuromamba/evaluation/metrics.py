"""Metrics of classifications and regressions, as functions of scores and targets of subjects.

To add a metric, add its function and a line in ``METRICS``, and its name to a task type in
``config.tasks``. Letters in shapes: S subjects, C classes. ``score`` is (S, C), probabilities, or
(S, 1), predictions; ``target`` is (S,), class indices or values. Each returns a scalar in fp64: NaN
where a score or a target is not finite, because an order of such values has no meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps

import torch
from torch import Tensor

from neuromamba.config.tasks import TASK_TYPES

ROUNDING = 4 * torch.finfo(torch.float32).eps  # of predictions in single precision
Metric = Callable[[Tensor, Tensor], Tensor]


def _of_finite(metric: Metric) -> Metric:
    """Make a metric NaN where a score or a target is not finite."""

    @wraps(metric)
    def checked(score: Tensor, target: Tensor) -> Tensor:
        if not (score.isfinite().all() and target.isfinite().all()):
            return torch.tensor(float("nan"), dtype=torch.float64)
        return metric(score, target)

    return checked


@_of_finite
def auroc(score: Tensor, target: Tensor) -> Tensor:
    """Return the area under the ROC curve, macro average of one-vs-rest for several classes.

    NaN when a class is absent from ``target``, where it is not defined.
    """
    classes = score.shape[1]
    if target.unique().numel() < classes:
        return torch.tensor(float("nan"))
    if classes == 2:
        return _area(score[:, 1], target == 1)
    return torch.stack([_area(score[:, k], target == k) for k in range(classes)]).mean()


def _area(score: Tensor, positive: Tensor) -> Tensor:
    """Compute the area by the Mann-Whitney statistic, ties counted half, in double precision."""
    _, index, count = score.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    rank = (last - (count - 1) / 2)[index]
    ones = positive.sum().double()
    return (rank[positive].sum() - ones * (ones + 1) / 2) / (ones * (len(score) - ones))


@_of_finite
def accuracy(score: Tensor, target: Tensor) -> Tensor:
    """Return the share of subjects whose most probable class is the true one."""
    return (score.argmax(1) == target).double().mean()


@_of_finite
def balanced_accuracy(score: Tensor, target: Tensor) -> Tensor:
    """Return the mean recall over the classes that are present."""
    hits = (score.argmax(1) == target).double()
    return torch.stack([hits[target == label].mean() for label in target.unique()]).mean()


def _per_class(score: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count hits, predictions and true samples of each class that is predicted or true."""
    classes, predicted = score.shape[1], score.argmax(1)
    true, predictions = (x.bincount(minlength=classes).double() for x in (target, predicted))
    hits = target[predicted == target].bincount(minlength=classes).double()
    present = true + predictions > 0
    return hits[present], predictions[present], true[present]


@_of_finite
def macro_precision(score: Tensor, target: Tensor) -> Tensor:
    """Return the mean precision over classes; 0 for a class that is never predicted."""
    hits, predictions, _ = _per_class(score, target)
    return (hits / predictions.clamp(min=1)).mean()


@_of_finite
def macro_recall(score: Tensor, target: Tensor) -> Tensor:
    """Return the mean recall over classes; 0 for a class that is predicted but never true."""
    hits, _, true = _per_class(score, target)
    return (hits / true.clamp(min=1)).mean()


@_of_finite
def macro_f1(score: Tensor, target: Tensor) -> Tensor:
    """Return the mean over classes of the harmonic mean of precision and recall."""
    hits, predictions, true = _per_class(score, target)
    return (2 * hits / (predictions + true)).mean()


# torchmetrics' versions of the next two are not used: its r2_score compares sums of squares with
# 1e-4, so that targets in small units get R2 = 1, and its pearson_corrcoef warns instead of NaN.


@_of_finite
def pearson_r(score: Tensor, target: Tensor) -> Tensor:
    """Return the Pearson correlation.

    NaN when the targets are all equal, or the predictions but for rounding in single precision, and
    for two subjects, of whom it is 1 or -1 whatever the predictions.
    """
    x, y = score[:, 0].double(), target.double()
    if len(x) < 3 or constant(x) or y.max() == y.min():
        return torch.tensor(float("nan"))
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm())


def constant(values: Tensor) -> bool:
    """Whether values (S,) are all equal, but for rounding in single precision."""
    return bool(values.max() - values.min() <= ROUNDING * values.abs().max())


@_of_finite
def r2(score: Tensor, target: Tensor) -> Tensor:
    """Return 1 - squared error / squared deviation from the mean; NaN if all targets are equal."""
    y = target.double()
    if y.max() == y.min():
        return torch.tensor(float("nan"))
    return 1 - (score[:, 0].double() - y).square().sum() / (y - y.mean()).square().sum()


@_of_finite
def mse(score: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error."""
    return (score[:, 0].double() - target).square().mean()


@_of_finite
def mae(score: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error."""
    return (score[:, 0].double() - target).abs().mean()


METRICS: Mapping[str, Metric] = {
    "auroc": auroc,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "macro_precision": macro_precision,
    "macro_recall": macro_recall,
    "mse": mse,
    "mae": mae,
    "pearson_r": pearson_r,
    "r2": r2,
}
assert {name for task in TASK_TYPES.values() for name in task.metrics} <= set(METRICS)
