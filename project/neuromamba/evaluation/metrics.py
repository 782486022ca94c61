"""Metrics over subjects, and the losses of pre-training with their controls.

Each is one torchmetrics ``Metric`` whose states are gathered from all ranks before anything is
computed, so that a value does not depend on the number of ranks or on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from neuromamba.config.tasks import TASK_TYPES


def auroc(score: Tensor, target: Tensor) -> Tensor:
    """Area under the ROC curve, one-vs-rest macro average for more than two classes.

    NaN when a class is absent from ``target``, where it is not defined.
    """
    classes = score.shape[1]
    if target.unique().numel() < classes:
        return torch.tensor(float("nan"))
    if classes == 2:
        return _area(score[:, 1], target == 1)
    return torch.stack([_area(score[:, k], target == k) for k in range(classes)]).mean()


def _area(score: Tensor, positive: Tensor) -> Tensor:
    """By the Mann-Whitney statistic, ties counted half; torchmetrics' has single precision."""
    _, place, count = score.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    rank = (last - (count - 1) / 2)[place]
    ones = positive.sum().double()
    return (rank[positive].sum() - ones * (ones + 1) / 2) / (ones * (len(score) - ones))


def accuracy(score: Tensor, target: Tensor) -> Tensor:
    """Share of subjects whose most probable class is the true one."""
    return (score.argmax(1) == target).double().mean()


def balanced_accuracy(score: Tensor, target: Tensor) -> Tensor:
    """Mean over the classes present of the share classified rightly."""
    hits = (score.argmax(1) == target).double()
    return torch.stack([hits[target == label].mean() for label in target.unique()]).mean()


def _per_class(score: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hits, predictions and true samples of each class that is predicted or true somewhere."""
    classes, predicted = score.shape[1], score.argmax(1)
    true, told = (x.bincount(minlength=classes).double() for x in (target, predicted))
    hits = target[predicted == target].bincount(minlength=classes).double()
    seen = true + told > 0
    return hits[seen], told[seen], true[seen]


def macro_precision(score: Tensor, target: Tensor) -> Tensor:
    """Mean over classes of the share of predictions that are right; 0 for one never predicted."""
    hits, told, _ = _per_class(score, target)
    return (hits / told.clamp(min=1)).mean()


def macro_recall(score: Tensor, target: Tensor) -> Tensor:
    """Mean over classes of the share found; 0 for one that is predicted and never true."""
    hits, _, true = _per_class(score, target)
    return (hits / true.clamp(min=1)).mean()


def macro_f1(score: Tensor, target: Tensor) -> Tensor:
    """Mean over classes of the harmonic mean of precision and recall."""
    hits, told, true = _per_class(score, target)
    return (2 * hits / (told + true)).mean()


# The two below are not torchmetrics': its r2_score compares sums of squares with 1e-4, so that
# targets in small units get R2 = 1, and its pearson_corrcoef warns where ours is NaN.


def pearson_r(score: Tensor, target: Tensor) -> Tensor:
    """Pearson correlation; NaN when the predictions or the targets are all equal."""
    x, y = score[:, 0].double(), target.double()
    if x.max() == x.min() or y.max() == y.min():
        return torch.tensor(float("nan"))
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm())


def r2(score: Tensor, target: Tensor) -> Tensor:
    """1 - squared error / squared deviation from the mean; NaN when the targets are all equal."""
    y = target.double()
    if y.max() == y.min():
        return torch.tensor(float("nan"))
    return 1 - (score[:, 0].double() - y).square().sum() / (y - y.mean()).square().sum()


METRICS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auroc": auroc,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "macro_precision": macro_precision,
    "macro_recall": macro_recall,
    "mse": lambda score, target: (score[:, 0].double() - target).square().mean(),
    "mae": lambda score, target: (score[:, 0].double() - target).abs().mean(),
    "pearson_r": pearson_r,
    "r2": r2,
}
assert {name for task in TASK_TYPES.values() for name in task.metrics} <= set(METRICS)


def _keep_fp64(
    self: Metric, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any
) -> torch.nn.Module:
    """``Metric._apply`` that moves with the module but stays in fp64.

    Sums in bf16 (``bf16-true``) stop growing.
    """
    return Metric._apply(self, lambda tensor: fn(tensor).to(tensor.dtype), *args, **kwargs)


class WindowScores(NamedTuple):
    """Scores of all windows, each once, ordered by subject and window.

    Attributes:
        subject: [W] ``subject_key`` of the subject.
        window: [W] index of the window within its subject.
        score: [W, classes] probabilities, or [W, 1] prediction in the target's units.
        target: [W] class index or value.
    """

    subject: Tensor
    window: Tensor
    score: Tensor
    target: Tensor


def _once(subject: Tensor, window: Tensor) -> Tensor:
    """Places of the windows, each once, ordered by subject and window.

    One that several ranks saw, for padding, counts once; and the order does not depend on ranks.
    """
    key = torch.stack([subject, window], dim=1)
    unique, inverse = key.unique(dim=0, return_inverse=True)
    return torch.full((len(unique),), len(key), device=key.device).scatter_reduce(
        0, inverse, torch.arange(len(key), device=key.device), reduce="amin"
    )


class SubjectMetrics(Metric):
    """Averages the scores of a subject's windows, then computes metrics over subjects.

    Args:
        task_type: key of ``TASK_TYPES``; says which metrics.
    """

    full_state_update = False
    subject: list[Tensor]
    window: list[Tensor]
    score: list[Tensor]
    target: list[Tensor]

    def __init__(self, task_type: str) -> None:
        super().__init__()
        self.names = TASK_TYPES[task_type].metrics
        for state in ("subject", "window", "score", "target"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, subject: Tensor, window: Tensor, score: Tensor, target: Tensor) -> None:
        """Add windows: subject (B,), window (B,), score (B, classes or 1), target (B,)."""
        self.subject.append(subject)
        self.window.append(window)
        self.score.append(score.double())
        self.target.append(target)

    def all_windows(self) -> WindowScores:
        """``windows`` of all ranks together, on the CPU."""
        with self.sync_context():
            return WindowScores(*(tensor.cpu() for tensor in self.windows()))

    def windows(self) -> WindowScores:
        """The windows in the states, each once."""
        subject, window = dim_zero_cat(self.subject), dim_zero_cat(self.window)
        first = _once(subject, window)
        return WindowScores(
            subject[first],
            window[first],
            dim_zero_cat(self.score)[first],
            dim_zero_cat(self.target)[first],
        )

    def compute(self) -> dict[str, Tensor]:
        """Metric name -> value over subjects."""
        seen = self.windows()
        subjects, index = seen.subject.unique(return_inverse=True)
        total = seen.score.new_zeros(len(subjects), seen.score.shape[1])
        mean = total.index_add(0, index, seen.score) / index.bincount()[:, None]
        target = seen.target.new_zeros(len(subjects)).index_copy(0, index, seen.target)
        if not torch.equal(target[index], seen.target):
            raise ValueError("the windows of a subject have different targets")
        if target.is_floating_point():
            target = target.double()
        return {name: METRICS[name](mean, target) for name in self.names}


class MeanLoss(Metric):
    """Mean over samples, however they are spread over batches and ranks."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("total", "count"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(state, default=zero, dist_reduce_fx="sum")

    _apply = _keep_fp64

    def update(self, errors: Tensor) -> None:
        """Add the errors of samples."""
        self.total += errors.double().sum()
        self.count += errors.numel()

    def compute(self) -> Tensor:
        """The mean; NaN of nothing."""
        return self.total / self.count


_BLOCK_ROWS = 4096
_NEIGHBOURS = 5  # of kNN over subjects


class FeatureMetrics(Metric):
    """What frozen features are worth, without a head: rank, spread, nearest neighbours.

    A window's feature is the mean over its tokens. ``feature_rank`` is their effective rank
    (RankMe; Garrido et al. 2023, ICML; here of centred features, so that constant ones have none),
    ``feature_std`` the mean standard deviation over windows; ``knn_subject`` the share of windows
    whose most similar other window (cosine) is of the same subject, of subjects with several;
    ``knn_<task>`` the balanced accuracy of the 5 most similar other subjects' majority.

    Args:
        labels: subject key -> class; empty for no ``knn_<task>``.
        task: its name.
    """

    full_state_update = False
    subject: list[Tensor]
    window: list[Tensor]
    feature: list[Tensor]

    def __init__(self, labels: Mapping[int, int] | None = None, task: str = "") -> None:
        super().__init__()
        self.labels, self.task = dict(labels or {}), task
        for state in ("subject", "window", "feature"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, subject: Tensor, window: Tensor, feature: Tensor) -> None:
        """Add windows: subject (B,), window (B,), feature (B, D)."""
        self.subject.append(subject)
        self.window.append(window)
        self.feature.append(feature.float())

    def compute(self) -> dict[str, Tensor]:
        """Name -> value; NaN where it is not defined."""
        subject, window = dim_zero_cat(self.subject), dim_zero_cat(self.window)
        first = _once(subject, window)
        subject, x = subject[first], dim_zero_cat(self.feature)[first].double()
        x = x - x.mean(0)
        found = {
            "feature_rank": effective_rank(x),
            "feature_std": x.std(0, unbiased=False).mean(),
            "knn_subject": _same_subject(x, subject),
        }
        if self.labels:
            found[f"knn_{self.task}"] = self._knn(x, subject)
        return found

    def _knn(self, x: Tensor, subject: Tensor) -> Tensor:
        names, index = subject.unique(return_inverse=True)
        mean = x.new_zeros(len(names), x.shape[1]).index_add(0, index, x)
        mean = mean / index.bincount()[:, None]
        known = [i for i, name in enumerate(names.tolist()) if name in self.labels]
        target = torch.tensor([self.labels[int(names[i])] for i in known], device=x.device)
        if len(known) <= _NEIGHBOURS:
            return x.new_tensor(float("nan"))
        rows = torch.nn.functional.normalize(mean[known])
        alike = (rows @ rows.T).fill_diagonal_(-torch.inf)
        near = target[alike.topk(_NEIGHBOURS, dim=1).indices]
        votes = torch.nn.functional.one_hot(near, int(target.max()) + 1).sum(1)
        return balanced_accuracy(votes.double(), target)


def effective_rank(x: Tensor) -> Tensor:
    """exp of the entropy of the singular values of x (W, D); 0 if it is constant."""
    values = torch.linalg.svdvals(x)
    if not values.sum() > 0:
        return x.new_tensor(0.0)
    share = values / values.sum()
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


def _same_subject(x: Tensor, subject: Tensor) -> Tensor:
    """See ``FeatureMetrics``: ``knn_subject``."""
    _, index, count = subject.unique(return_inverse=True, return_counts=True)
    several = (count > 1)[index]
    if not several.any() or len(count) < 2:
        return x.new_tensor(float("nan"))
    rows, hits = torch.nn.functional.normalize(x), []
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = torch.arange(start, min(start + _BLOCK_ROWS, len(rows)), device=x.device)
        alike = rows[block] @ rows.T
        alike[torch.arange(len(block), device=x.device), block] = -torch.inf
        hits.append(subject[alike.argmax(1)] == subject[block])
    return torch.cat(hits)[several].double().mean()


class TokenMetrics(Metric):
    """Loss of token prediction beside two controls, over all target tokens.

    ``persistence_loss`` repeats the token before the target in the sequence; ``mean_token_loss``
    predicts the mean target token, the best constant in hindsight; ``skill`` is
    1 - loss / persistence_loss.
    """

    full_state_update = False
    loss_sum: Tensor
    persistence_sum: Tensor
    token_sum: Tensor
    square_sum: Tensor
    count: Tensor

    def __init__(self, token_dim: int) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        for state in ("loss_sum", "persistence_sum", "square_sum", "count"):
            self.add_state(state, default=zero.clone(), dist_reduce_fx="sum")
        self.add_state(
            "token_sum", default=torch.zeros(token_dim, dtype=torch.float64), dist_reduce_fx="sum"
        )

    _apply = _keep_fp64

    def update(self, errors: Tensor, tokens: Tensor, targets: Tensor) -> None:
        """Add a batch: errors of the targets, all tokens (L, V), rows of the targets.

        No target may be the first token of its sample; those of a window that is there for padding
        are left out by the caller.
        """
        self.loss_sum += errors.double().sum()
        for rows in targets.split(_BLOCK_ROWS):  # so that fp64 copies stay small
            wanted = tokens[rows].double()
            before = tokens[rows - 1].double()
            self.persistence_sum += (wanted - before).square().mean(-1).sum()
            self.token_sum += wanted.sum(0)
            self.square_sum += wanted.square().mean(-1).sum()
        self.count += len(targets)

    def compute(self) -> dict[str, Tensor]:
        """loss, persistence_loss, mean_token_loss and skill."""
        loss = self.loss_sum / self.count
        persistence = self.persistence_sum / self.count
        constant = self.square_sum / self.count - (self.token_sum / self.count).square().mean()
        return {
            "loss": loss,
            "persistence_loss": persistence,
            "mean_token_loss": constant,
            "skill": 1 - loss / persistence,
        }
