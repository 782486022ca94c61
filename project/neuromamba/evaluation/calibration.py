"""Calibration of probabilities, and the threshold of a decision between two classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.evaluation.curves import roc_points

BINS = 10


class Reliability(NamedTuple):
    """Predictions in bins of their confidence, the probability of the most probable class.

    Attributes:
        confidence: [bins] mean of a bin; NaN of an empty one.
        accuracy: [bins] share of the right ones.
        size: [bins] subjects.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    size: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of confidence and accuracy (Guo et al. 2017, ICML, equation 3)."""
        filled = self.size > 0
        if not filled.any():
            return float("nan")
        gaps = np.abs(self.confidence - self.accuracy)[filled]
        return float((gaps * self.size[filled]).sum() / self.size.sum())


def reliability(probability: np.ndarray, target: np.ndarray, bins: int = BINS) -> Reliability:
    """Predictions in bins of equal width over 0 to 1.

    Args:
        probability: [S, classes].
        target: int [S].
        bins: their number.

    Returns:
        Empty bins where a probability is not finite.
    """
    if not np.isfinite(probability).all():
        nothing = np.full(bins, np.nan)
        return Reliability(nothing, nothing, np.zeros(bins, dtype=int))
    confidence, hit = probability.max(axis=1), probability.argmax(axis=1) == target
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    size = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        sums = (np.bincount(place, weights=x, minlength=bins) for x in (confidence, hit))
        mean_confidence, accuracy = (total / size for total in sums)
    return Reliability(mean_confidence, accuracy, size)


def brier_score(probability: np.ndarray, target: np.ndarray) -> float:
    """Mean squared distance from the true class's unit vector; 0 to 2 (Brier 1950).

    NaN where a probability is not finite.
    """
    if not np.isfinite(probability).all():
        return float("nan")
    truth = np.eye(probability.shape[1])[target]
    return float(((probability - truth) ** 2).sum(axis=1).mean())


def best_threshold(probability: np.ndarray, target: np.ndarray) -> float:
    """The threshold on class 1 with the best balanced accuracy (Youden 1950).

    In the middle between two scores; of several, the one nearest to 0.5. Chosen on validation
    subjects, it is as honest on test subjects as 0.5 is.

    Args:
        probability: [S] of class 1.
        target: int [S], both classes present.

    Raises:
        UserInputError: a probability is not finite.
    """
    if not np.isfinite(probability).all():
        raise UserInputError(
            "--adjust_thresh: probabilities of validation subjects are not finite, so no threshold "
            "can be chosen. Leave --adjust_thresh out, and look for what made the model diverge."
        )
    false, true, at = roc_points(target, probability)
    best = np.flatnonzero(np.isclose(true - false, (true - false).max(), atol=1e-12))
    scores = np.concatenate([[1.0], np.sort(np.unique(probability))[::-1], [0.0]])
    # Positive is what is at or above a score of the curve; up to halfway to the next lower one
    # nothing changes.
    thresholds = []
    for i in best:
        above = min(at[i], 1.0)
        below = scores[scores < above].max() if (scores < above).any() else above
        thresholds.append((above + below) / 2)
    return float(min(thresholds, key=lambda value: (abs(value - 0.5), value)))
