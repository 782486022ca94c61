"""Corrected resampled t interval of the difference of two models over splits of the same subjects.

Training sets of different splits share subjects, so that their results are not independent, and the
usual t interval is far too narrow. Nadeau and Bengio (2003, Machine Learning 52:239) enlarge the
variance of the mean over J splits by the ratio of tested to fitted samples:

    (1 / J + n_test / n_train) times the variance between splits

The interval covers the choice of training subjects, splits and seeds, which a bootstrap over test
subjects does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from neuromamba.evaluation.intervals import CONFIDENCE, Interval, has_width

FEWEST_SPLITS = 3


def corrected_interval(
    values: Sequence[float], ratio: float, confidence: float = CONFIDENCE
) -> Interval:
    """Mean over splits with its interval.

    Args:
        values: a difference, or a metric, of each split.
        ratio: tested over fitted samples, such as 1 / 4 in five folds.
        confidence: of the interval.

    Returns:
        The bounds are NaN for fewer than three splits, whose interval would span more than any
        metric can, for equal values, and where one is NaN.
    """
    found = np.asarray(values, dtype=float)
    if not len(found):
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float(found.mean())
    if len(found) < FEWEST_SPLITS or not np.isfinite(found).all():
        return Interval(mean, float("nan"), float("nan"))
    error = np.sqrt((1 / len(found) + ratio) * found.var(ddof=1))
    half = float(stdtrit(len(found) - 1, (1 + confidence) / 2) * error)
    if not has_width(mean - half, mean + half):
        return Interval(mean, float("nan"), float("nan"))
    return Interval(mean, mean - half, mean + half)


def why_no_interval(values: Sequence[float]) -> str:
    """Why ``corrected_interval`` has no bounds, such as "in fewer than 3 splits"; "" if it has."""
    found = np.asarray(values, dtype=float)
    if len(found) < FEWEST_SPLITS:
        return f"with {len(found)} of the {FEWEST_SPLITS} splits that an interval needs"
    if not np.isfinite(found).all():
        return f"because the metric is not defined in {(~np.isfinite(found)).sum()} splits"
    if np.isnan(corrected_interval(values, 1.0).low):
        return "because it is the same in all splits, which does not show how it varies"
    return ""
