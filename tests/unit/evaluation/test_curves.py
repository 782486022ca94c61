"""ROC and precision-recall curves are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from neuromamba.evaluation.curves import (
    area_under_roc,
    average_precision,
    precision_recall_points,
    roc_points,
)

SCORES = {
    "distinct": lambda random, n: random.permutation(n) / n,
    "ties": lambda random, n: random.integers(0, 4, n) / 4,
    "two values": lambda random, n: random.integers(0, 2, n).astype(float),
    "equal": lambda random, n: np.full(n, 0.25),
    "negative, fp32": lambda random, n: random.normal(size=n).astype(np.float32),
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("size", [2, 3, 40])
def test_as_scikit_learn(kind: str, size: int) -> None:
    random = np.random.default_rng(size)
    target = random.permutation(np.arange(size) % 2)
    score = SCORES[kind](random, size)
    false, true, at = metrics.roc_curve(target, score, drop_intermediate=False)
    for ours, theirs in zip(roc_points(target, score), (false, true, at), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert area_under_roc(target, score) == pytest.approx(metrics.auc(false, true), abs=1e-15)
    precision, recall, _ = metrics.precision_recall_curve(target, score)
    for ours, theirs in zip(
        precision_recall_points(target, score), (precision, recall), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    expected = metrics.average_precision_score(target, score)
    assert average_precision(target, score) == pytest.approx(expected, abs=1e-15)


def test_a_perfect_and_an_inverted_order() -> None:
    target, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert area_under_roc(target, score) == average_precision(target, score) == 1
    assert area_under_roc(1 - target, score) == 0
