"""Linear and nearest-neighbour probes: how much simple models read from given features.

Letters in shapes: S fitted samples, R new samples, D features, C classes. A sample is what one row
of features is of: a subject, or a session, run or event.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from neuromamba.evaluation.linear_models import PENALTIES, on_one_thread
from neuromamba.evaluation.resampled import resampled_metric

FOLDS = 5
NEIGHBOURS = 5


class Fitted(NamedTuple):
    """What a probe says of new samples.

    Attributes:
        score: [R, C] class probabilities, or [R, 1] predictions of a regression.
        penalty: the C of a linear probe, 1 / alpha of ridge regression; NaN of neighbours.
    """

    score: np.ndarray
    penalty: float


def linear_probe(
    x: np.ndarray, y: np.ndarray, new: np.ndarray, *, classes: int, unit: np.ndarray, seed: int
) -> Fitted:
    """L2 logistic regression, or ridge regression, of standardised features.

    It is the model of ``linear_models`` (features standardised by the fitted samples and divided by
    the square root of their number, which keeps the scale of the penalty), computed many times
    faster where there are more features than samples. C is that of ``PENALTIES`` with the best mean
    score in inner folds of the fitted samples (AUROC; squared error of a regression), the smallest
    among equals. Where a class has members in one unit only, C is 1.

    Args:
        x: [S, D]; y: [S] classes as integers, or values as floats.
        new: [R, D], of whom nothing is used but their features.
        classes: number of classes, those absent from ``y`` too; 1 of a regression.
        unit: [S] numbers of what stays together in the folds.
        seed: of the folds.
    """
    fit = _logistic if classes > 1 else _ridge
    with on_one_thread():
        chosen = _chosen_penalty(x, y, classes, unit, seed, fit)
        design, rotated = _rotated(x, new)
        return Fitted(fit(design, y, rotated, chosen, classes), chosen)


Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, float, int], np.ndarray]


def _logistic(
    x: np.ndarray, y: np.ndarray, new: np.ndarray, penalty: float, classes: int
) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of a perfect fit
        model = LogisticRegression(C=penalty, max_iter=10_000).fit(x, y)
    found = np.zeros((len(new), classes))
    found[:, model.classes_] = model.predict_proba(new)
    return found


def _ridge(
    x: np.ndarray, y: np.ndarray, new: np.ndarray, penalty: float, classes: int
) -> np.ndarray:
    found: np.ndarray = Ridge(alpha=1 / penalty).fit(x, y).predict(new)
    return found[:, None]


def _folds(
    y: np.ndarray, classes: int, unit: np.ndarray, seed: int
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Inner folds: positions to fit on and to score; none where a class has one unit only."""
    if classes == 1:
        count = min(FOLDS, len(np.unique(unit)))
        return GroupKFold(count).split(y, y, unit) if count > 1 else ()
    count = min(FOLDS, *(len(np.unique(unit[y == label])) for label in np.unique(y)))
    if count < 2:
        return ()
    return StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(y, y, unit)


def _chosen_penalty(
    x: np.ndarray, y: np.ndarray, classes: int, unit: np.ndarray, seed: int, fit: Fit
) -> float:
    scores = []
    for here, there in _folds(y, classes, unit, seed):
        if classes > 1 and len(np.unique(y[here])) < 2:
            continue
        design, held_out = _rotated(x[here], x[there])
        found = [fit(design, y[here], held_out, c, classes) for c in PENALTIES]
        if classes == 1:
            scores.append([-float(np.square(one[:, 0] - y[there]).mean()) for one in found])
        else:
            present = np.unique(y)
            target = np.searchsorted(present, y[there])
            everybody = np.arange(len(there))
            scores.append(
                [resampled_metric("auroc", one[:, present], target)(everybody) for one in found]
            )
    usable = [one for one in scores if np.isfinite(one).all()]
    if not usable:
        return 1.0
    mean = np.mean(usable, axis=0)
    return PENALTIES[int(np.flatnonzero(mean >= mean.max() - 1e-12)[0])]


def _standardised(x: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by mean and standard deviation of the first; features without any become 0."""
    x, new = x.astype(np.float64), new.astype(np.float64)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    # Rounding must not be blown up to features: a constant has a tiny deviation, not none.
    constant = spread <= 1e-10 * np.abs(mean)
    spread = np.where(constant, 1.0, spread)
    return (
        np.where(constant, 0.0, (x - mean) / spread),
        np.where(constant, 0.0, (new - mean) / spread),
    )


def _rotated(x: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features over sqrt(D), rotated onto the fitted samples if these are fewer.

    An L2 penalty does not notice a rotation, and no direction beyond the samples' gets a weight.
    """
    z, z_new = _standardised(x, new)
    width = z.shape[1]
    z, z_new = z / np.sqrt(width), z_new / np.sqrt(width)
    if width <= len(z):
        return z, z_new
    square, basis = np.linalg.eigh(z @ z.T)
    kept = square > 1e-12 * max(float(square.max()), 1e-300)
    size, basis = np.sqrt(square[kept]), basis[:, kept]
    if not size.size:  # every feature is constant
        return np.zeros((len(z), 1)), np.zeros((len(z_new), 1))
    return basis * size, (z_new @ z.T) @ basis / size


def knn_probe(x: np.ndarray, y: np.ndarray, new: np.ndarray, *, classes: int) -> Fitted:
    """Nearest neighbours by the cosine of standardised features, five or all if there are fewer.

    The score of a class is its share among the neighbours; of a regression, their mean. Nothing is
    fitted but mean and standard deviation of the features.

    Args:
        x, y, new, classes: as in ``linear_probe``.
    """
    z, z_new = _standardised(x, new)
    size, size_new = (np.linalg.norm(one, axis=1, keepdims=True) for one in (z, z_new))
    cosine = (z_new / np.maximum(size_new, 1e-300)) @ (z / np.maximum(size, 1e-300)).T
    count = min(NEIGHBOURS, len(y))
    nearest = np.argsort(-np.round(cosine, 12), axis=1, kind="stable")[:, :count]
    if classes == 1:
        return Fitted(y[nearest].mean(axis=1)[:, None], float("nan"))
    return Fitted(np.eye(classes)[y[nearest]].mean(axis=1), float("nan"))
