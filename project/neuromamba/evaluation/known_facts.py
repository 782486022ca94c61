"""How well features predict known facts of subjects, fast enough for every validation.

A fact is predicted for each subject from all the others by ridge regression, which leaves out one
subject after the other in closed form. The chance level comes from the same features with the
values of the fact shuffled over the subjects, and so holds for few subjects and unequal classes.

Shapes: S subjects with a value of the fact, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FEWEST = 10  # subjects for a score
MOST = 1_000  # subjects that are used; solving for them takes a fraction of a second
SHUFFLES = 500
LEVEL = 0.99  # of the shuffled scores are below the limit of chance


@dataclass(frozen=True)
class Fact:
    """A known fact of subjects.

    Attributes:
        values: subject key -> class index, or number.
        classes: how many classes; 0 for a number.
        named: the user asked for it by name.
    """

    values: Mapping[int, float]
    classes: int = 0
    named: bool = False


def leave_one_out_weights(x: Tensor) -> Tensor:
    """Weights (S, S) with which ridge regression predicts a subject from the others.

    Features are standardised; those that are equal for all are left out. The penalty is the mean
    eigenvalue of their covariance between subjects, so that it fits any width. Of the prediction
    H y with H = K (K + penalty)^-1, leaving out subject i leaves H_ij / (1 - H_ii) for j != i.

    Args:
        x: features (S, F), float64.

    Returns:
        The weights, with a diagonal of 0; all 0 if no feature differs between subjects.
    """
    x = x - x.mean(0)
    spread = x.std(0, unbiased=False)
    moves = spread > 1e-9 * spread.max()
    if not moves.any():
        return x.new_zeros(len(x), len(x))
    x = x[:, moves] / spread[moves]
    kernel = x @ x.T / x.shape[1]  # the mean of its diagonal is 1
    ridge = kernel + torch.eye(len(x), dtype=x.dtype, device=x.device)
    hat = torch.linalg.solve(ridge, kernel)
    own = hat.diagonal().clone()
    return (hat / (1 - own)[:, None]).fill_diagonal_(0.0)


def chosen_subjects(count: int) -> Tensor:
    """Indices of the subjects to use: all, or ``MOST`` of them evenly spaced."""
    return torch.linspace(0, count - 1, min(count, MOST)).round().long()


def is_defined(target: Tensor, classes: int) -> bool:
    """Whether a fact can be scored: ten subjects, two different values, two subjects a class."""
    counts = target.unique(return_counts=True)[1]
    return len(target) >= FEWEST and len(counts) > 1 and (not classes or int(counts.min()) > 1)


def score_fact(weights: Tensor, target: Tensor, classes: int) -> Tensor:
    """Score the prediction of facts from the other subjects.

    Args:
        weights: of ``leave_one_out_weights``, (S, S).
        target: int64 class or float64 number of each subject, (S, P) for P facts.
        classes: how many classes; 0 for a number.

    Returns:
        Balanced accuracies or correlations (P,); NaN where the predictions are all equal.
    """
    if not classes:
        values = target.to(weights.dtype)
        pair = torch.stack([_deviation(weights, values), values])
        pair = pair - pair.mean(1, keepdim=True)
        return (pair[0] * pair[1]).sum(0) / pair.norm(dim=1).prod(0)
    members = torch.nn.functional.one_hot(target, classes).to(weights.dtype)
    scores = _deviation(weights, members.flatten(1)).unflatten(1, members.shape[1:])
    hits = (scores.argmax(-1) == target)[..., None] * members
    recall = hits.sum(0) / members.sum(0)
    return recall.nanmean(1).where(scores.abs().amax((0, 2)) > 0, torch.nan)


def level_of_chance(weights: Tensor, target: Tensor, classes: int) -> tuple[float, float]:
    """Mean and 99 % quantile of the scores with the values shuffled over the subjects.

    The orders are the same in every validation.

    Args:
        weights, classes: as in ``score_fact``.
        target: (S,).
    """
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(len(target)) for _ in range(SHUFFLES)], axis=1)
    found = score_fact(weights, target[torch.from_numpy(orders).to(target.device)], classes)
    return float(found.mean()), float(found.quantile(LEVEL))


def _deviation(weights: Tensor, values: Tensor) -> Tensor:
    """Predicted values (S, P) above the mean over the other subjects, from values (S, P).

    The mean over the others is high where a subject's own value is low; a prediction that held it
    would be anticorrelated with the truth by construction.
    """
    others = (values.sum(0) - values) / (len(values) - 1)
    return weights @ values - weights.sum(1, keepdim=True) * others
