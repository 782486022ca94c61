"""Metrics and tables of fits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from neuromamba.evaluation.result_files import Predictions
from neuromamba.neurossm.results import AT_PREVALENCE, metrics_of


def predictions(score: np.ndarray, target: np.ndarray) -> Predictions:
    names = [f"s{i}" for i in range(len(target))]
    return Predictions(names, names, target, score)


def test_a_rare_class_is_found_at_its_share_of_the_training() -> None:
    """A model that ranks well and finds every probability of a rare class below 0.5."""
    rng = np.random.default_rng(0)
    target = np.array([0] * 80 + [1] * 16)
    positive = 0.16 + 0.05 * target + 0.03 * rng.standard_normal(96)
    found = metrics_of(
        predictions(np.stack([1 - positive, positive], 1), target), np.array([0.84, 0.16])
    )
    assert found["auroc"] > 0.8 and found["balanced_accuracy"] == 0.5
    expected = balanced_accuracy_score(target, positive > 0.16)
    assert found[AT_PREVALENCE] == pytest.approx(expected) and expected > 0.7


def test_of_several_classes_the_one_most_above_its_share() -> None:
    shares = np.array([0.7, 0.2, 0.1])
    score = np.array([[0.7, 0.15, 0.15], [0.6, 0.3, 0.1], [0.8, 0.15, 0.05]])
    found = metrics_of(predictions(score, np.array([2, 1, 0])), shares)
    assert found[AT_PREVALENCE] == 1.0 and found["balanced_accuracy"] == pytest.approx(1 / 3)
    even = metrics_of(predictions(score, np.array([2, 1, 0])), np.full(3, 1 / 3))
    assert even[AT_PREVALENCE] == even["balanced_accuracy"]


def test_without_shares_and_of_values_there_is_none() -> None:
    score = np.array([[0.3, 0.7], [0.6, 0.4]])
    assert AT_PREVALENCE not in metrics_of(predictions(score, np.array([1, 0])))
    values = predictions(np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 2.5, 3.0]))
    assert AT_PREVALENCE not in metrics_of(values)
    broken = predictions(np.array([[math.nan, 0.7], [0.6, 0.4]]), np.array([1, 0]))
    assert math.isnan(metrics_of(broken, np.array([0.5, 0.5]))[AT_PREVALENCE])
