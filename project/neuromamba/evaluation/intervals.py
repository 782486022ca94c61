"""Bootstrap intervals over subjects, of a metric and of the difference of two models.

A subject is what is drawn: windows of one subject are not independent. Subjects of a class are
drawn among themselves, so that every sample holds all classes and AUROC is defined in it (the
default of pROC; Robin et al. 2011, BMC Bioinformatics 12:77). Intervals are bias-corrected and
accelerated (BCa; Efron 1987, JASA 82:171).

An interval without width is none: that no sample differs from another says that there are too few
subjects, not that the value is known. ``exact_intervals`` has those that hold there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST_IN_CLASS = 2  # subjects that can be drawn within a class
FEWEST = 4  # subjects of one stratum: Fisher's standard error of a Pearson r is 1 / sqrt(n - 3)
_ROUNDING = 1e-12  # of bounds that are equal
Statistic = Callable[[np.ndarray], float]


_TOGETHER = 1 << 20  # indices that are worked on at once: some 10 MB an array


class Together:
    """A statistic that computes many resamples of one size at once.

    Args:
        many: [R, n] indices of subjects -> float64 [R].
    """

    def __init__(self, many: Callable[[np.ndarray], np.ndarray]) -> None:
        self.many = many

    def __call__(self, chosen: np.ndarray) -> float:
        """The value of one resample, [n] indices."""
        return float(self.many(np.asarray(chosen)[None])[0])


class Interval(NamedTuple):
    """A value with its interval; NaN where they are not defined.

    Attributes:
        value: on all subjects.
        low, high: bounds of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """``0.812 [0.701, 0.893]``."""
        if math.isnan(self.value):
            return "not defined"
        if math.isnan(self.low) or math.isnan(self.high):
            return f"{self.value:.3f} [not defined]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def has_width(low: float, high: float) -> bool:
    """Whether two bounds differ by more than rounding; without that they are no interval."""
    return bool(high - low > _ROUNDING * max(abs(low), abs(high)))


def bootstrap_interval(
    statistic: Statistic,
    strata: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The interval of a statistic of subjects.

    Args:
        statistic: [n] indices of subjects, some of them several times -> value.
        strata: [S] subjects of one value are drawn among themselves; all alike for one stratum.
        seed: of the draws.
        resamples: number of samples.
        confidence: share of such intervals that cover the true value.

    Returns:
        Bounds are NaN where a stratum has one subject or the only one has three, where no sample
        differs from another, or where the value is not defined.
    """
    value = float(statistic(np.arange(len(strata))))
    parts = [np.flatnonzero(strata == label) for label in np.unique(strata)]
    if not math.isfinite(value):
        value = math.nan
    fewest = FEWEST if len(parts) == 1 else FEWEST_IN_CLASS
    if math.isnan(value) or min(map(len, parts)) < fewest:
        return Interval(value, math.nan, math.nan)

    def of_parts(*chosen: np.ndarray, axis: int) -> np.ndarray:
        """[..., n_k] indices into each stratum -> values [...]."""
        lead = np.broadcast_shapes(*(part.shape[:-1] for part in chosen))
        rows = np.concatenate([np.broadcast_to(c, (*lead, c.shape[-1])) for c in chosen], axis=-1)
        flat = rows.astype(int).reshape(-1, rows.shape[-1])
        return _values(statistic, flat).reshape(lead)

    from scipy.stats import bootstrap  # takes half a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tells of what is NaN here
        result = bootstrap(
            parts,
            of_parts,
            vectorized=True,
            axis=-1,
            n_resamples=resamples,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
        low, high = result.confidence_interval
        if math.isnan(low) or math.isnan(high):
            # BCa is undefined where leaving out any one subject changes nothing, as in a perfect
            # score, or where a sample has no value: then percentiles of those that have.
            tail = (1 - confidence) / 2
            drawn = result.bootstrap_distribution
            drawn = drawn[np.isfinite(drawn)]
            low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (math.nan, math.nan)
    if not has_width(low, high):
        return Interval(value, math.nan, math.nan)
    return Interval(value, float(low), float(high))


def _values(statistic: Statistic, rows: np.ndarray) -> np.ndarray:
    if not isinstance(statistic, Together):
        return np.array([statistic(row) for row in rows])
    pieces = max(1, math.ceil(rows.size / _TOGETHER))
    return np.concatenate([statistic.many(piece) for piece in np.array_split(rows, pieces)])


def difference(one: Statistic, other: Statistic) -> Statistic:
    """``one`` less ``other`` on the same draws."""
    if isinstance(one, Together) and isinstance(other, Together):
        first, second = one.many, other.many
        return Together(lambda rows: first(rows) - second(rows))
    return lambda chosen: one(chosen) - other(chosen)


def paired_difference(
    one: Statistic,
    other: Statistic,
    strata: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """``one`` less ``other``, both on the same draws of subjects; see ``bootstrap_interval``."""
    return bootstrap_interval(difference(one, other), strata, seed, resamples, confidence)
