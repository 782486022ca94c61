"""Intervals that need no resampling, for proportions and for classes without an error.

A bootstrap of subjects who were all classified correctly draws the same value every time: its
interval has no width, however few the subjects. What is here holds for any number of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import betainccinv, betaincinv


def proportion_bounds(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934, Biometrika 26:404).

    Args:
        hits: of ``trials`` independent ones; ``trials`` is 1 or more.
        confidence: the share of such intervals that hold the true proportion, or more.
    """
    tail = (1 - confidence) / 2
    # Quantiles of the beta distribution; scipy.stats has them too, and takes a second to import.
    low = float(betaincinv(hits, trials - hits + 1, tail)) if hits else 0.0
    high = float(betainccinv(hits + 1, trials - hits, tail)) if hits < trials else 1.0
    return low, high


def mean_proportion_bounds(
    counts: Sequence[tuple[int, int]], confidence: float
) -> tuple[float, float]:
    """Interval of the mean of independent proportions, such as the recalls of the classes.

    The mean of their exact intervals, each with the error divided by their number (Bonferroni):
    where all of them hold, so does that of the mean. It is wide rather than too narrow.

    Args:
        counts: (hits, trials) of each.
        confidence: of the mean's interval, at least.
    """
    each = 1 - (1 - confidence) / len(counts)
    bounds = [proportion_bounds(hits, trials, each) for hits, trials in counts]
    low, high = np.mean(bounds, axis=0)
    return float(low), float(high)


def faultless_area_bounds(
    per_class: Sequence[int], confidence: float, *, reversed_order: bool = False
) -> tuple[float, float]:
    """Interval of an AUROC of exactly 1, or of exactly 0.

    The AUROC is the probability that a subject of the class scores above another (Hanley and
    McNeil 1982, Radiology 143:29). Of m subjects of the smaller side, each paired with another
    subject of the other side, m independent pairs are in order; so the exact interval of m hits in
    m trials holds. It uses m pairs only and is wide rather than too narrow. Several classes are
    each compared with the rest, as in ``mean_proportion_bounds``.

    Args:
        per_class: subjects of each class, 1 or more.
        confidence: at least.
        reversed_order: the AUROC is 0.
    """
    total = sum(per_class)
    sides = per_class[:1] if len(per_class) == 2 else per_class
    pairs = [min(count, total - count) for count in sides]
    counts = [(0 if reversed_order else pair, pair) for pair in pairs]
    return mean_proportion_bounds(counts, confidence)
