"""The corrected resampled t interval: its formula, and that it covers what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from neuromamba.evaluation.corrected_t import corrected_interval


def test_without_tested_samples_it_is_the_t_interval() -> None:
    values = np.random.default_rng(0).normal(size=12)
    found = corrected_interval(values, 0.0)
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert found == pytest.approx((values.mean(), low, high))


def test_the_ratio_of_tested_to_fitted_widens_it() -> None:
    values = np.random.default_rng(0).normal(size=10)
    plain, corrected = corrected_interval(values, 0.0), corrected_interval(values, 0.25)
    wider = (corrected.high - corrected.low) / (plain.high - plain.low)
    assert wider == pytest.approx(math.sqrt((0.1 + 0.25) / 0.1))


@pytest.mark.parametrize(
    "values", [[], [0.3], [0.3, 0.4], [0.2, 0.2, 0.2], [0.1, float("nan"), 0.4]]
)
def test_where_there_is_none(values: list[float]) -> None:
    found = corrected_interval(values, 0.25)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_it_covers_a_difference_of_none_where_the_t_interval_does_not() -> None:
    """Two models that are equally good, over ten holdouts of a fifth of the same 60 samples."""
    rng = np.random.default_rng(1)
    covered, plain = 0, 0
    for _ in range(300):
        x, y = rng.normal(size=60), rng.normal(size=60)
        differences = []
        for _ in range(10):
            order = rng.permutation(60)
            train, test = order[12:], order[:12]
            # Two constant predictions: the means of the training halves' values.
            one, two = x[train].mean(), y[train].mean()
            differences.append(np.mean((x[test] - one) ** 2 - (y[test] - two) ** 2))
        corrected = corrected_interval(differences, 0.25)
        naive = corrected_interval(differences, 0.0)
        covered += corrected.low <= 0 <= corrected.high
        plain += naive.low <= 0 <= naive.high
    assert covered / 300 > 0.88
    assert plain / 300 < covered / 300 - 0.15
