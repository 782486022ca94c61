"""Intervals of few subjects: exact ones, or none, and what pages say of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from neuromamba.evaluation.exact_intervals import faultless_area_bounds, proportion_bounds
from neuromamba.evaluation.intervals import Interval, bootstrap_interval
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.evaluation.summary import evaluate_scores
from neuromamba.pages.evidence import decisive, evidence
from neuromamba.pages.score_sections import verdict
from neuromamba.pages.tables import metrics_table


def classified(target: list[int], told: list[int], classes: int = 2) -> SubjectScores:
    """Subjects for whom a model is sure of the class ``told``."""
    score = np.where(np.eye(classes)[told] > 0, 0.9, 0.1 / (classes - 1))
    return SubjectScores(tuple(f"s{i}" for i in range(len(target))), np.array(target), score)


def valued(target: list[float], guess: list[float]) -> SubjectScores:
    names = tuple(f"s{i}" for i in range(len(target)))
    return SubjectScores(names, np.array(target, dtype=float), np.array(guess)[:, None])


# ------------------------------------------------------------------------------ proportions


@pytest.mark.parametrize(("hits", "trials"), [(4, 4), (0, 3), (7, 10), (1, 1), (95, 100)])
def test_accuracy_has_the_exact_interval(hits: int, trials: int) -> None:
    target = [i % 2 for i in range(trials)]
    told = [label if i < hits else 1 - label for i, label in enumerate(target)]
    found = classified(target, told).interval("accuracy")
    exact = binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert tuple(found) == pytest.approx((hits / trials, exact.low, exact.high))
    assert proportion_bounds(hits, trials, 0.95) == pytest.approx((exact.low, exact.high))


def test_a_perfect_classifier_of_four_is_not_known_to_be_perfect() -> None:
    found = classified([0, 0, 1, 1], [0, 0, 1, 1])
    assert str(found.interval("accuracy")) == "1.000 [0.398, 1.000]"
    # Two independent pairs in order: 0.025 to the power of a half.
    assert str(found.interval("auroc")) == "1.000 [0.158, 1.000]"
    assert str(found.interval("balanced_accuracy")) == "1.000 [0.112, 1.000]"
    wrong = classified([0, 0, 1, 1], [1, 1, 0, 0])
    assert str(wrong.interval("auroc")) == "0.000 [0.000, 0.842]"


def test_one_class_for_everybody_has_a_width() -> None:
    found = classified([0] * 6 + [1] * 6, [1] * 12).interval("balanced_accuracy")
    assert found.low < 0.3 < 0.7 < found.high


def test_several_classes_told_apart_without_an_error() -> None:
    target = [0] * 5 + [1] * 6 + [2] * 7
    found = classified(target, target, classes=3).interval("auroc")
    assert found.value == 1 and 0.2 < found.low < 0.6 and found.high == 1


def test_bounds_of_a_faultless_area_hold() -> None:
    """A model of true AUROC 0.75 orders all of 3 and 5 subjects more rarely than 2.5 % allow.

    Its lower bound must be above 0.75 in 2.5 % of samples at most.
    """
    low, high = faultless_area_bounds((3, 5), 0.95)
    assert high == 1 and low == pytest.approx(0.025 ** (1 / 3))
    rng = np.random.default_rng(0)
    truth, shift = low * 0.999, 0.0
    # Scores uniform on [0, 1] and [s, 1 + s]: AUROC 1 - (1 - s)^2 / 2, or (1 + s)^2 / 2 below 0.
    shift = np.sqrt(2 * truth) - 1 if truth < 0.5 else 1 - np.sqrt(2 * (1 - truth))
    ones = rng.random((20000, 3)) + shift
    zeros = rng.random((20000, 5))
    faultless = (ones.min(axis=1) > zeros.max(axis=1)).mean()
    assert faultless <= 0.025


def test_decisions_at_a_threshold_have_them_too() -> None:
    test = classified([0, 0, 1, 1], [0, 0, 1, 1])
    found = evaluate_scores(test, validation=test, adjust_threshold=True).at_threshold
    assert str(found["accuracy"]) == "1.000 [0.398, 1.000]"
    assert str(found["balanced_accuracy"]) == "1.000 [0.112, 1.000]"


# ------------------------------------------------------------------------------ nothing defined


def test_pearson_r_of_few_subjects_is_not_defined() -> None:
    assert str(valued([1, 2], [3, 5]).interval("pearson_r")) == "not defined"
    three = valued([1, 2, 3], [1, 2, 2.5]).interval("pearson_r")
    assert 0.9 < three.value < 1 and np.isnan([three.low, three.high]).all()
    assert np.isfinite(valued([1, 2, 3, 5], [1, 3, 2, 4]).interval("pearson_r").low)


@pytest.mark.parametrize("guess", [[30.0] * 6, [30 + 1e-6 * i for i in range(6)], [0.0] * 6])
def test_pearson_r_of_constant_predictions_is_not_defined(guess: list[float]) -> None:
    scores = valued([20, 25, 30, 35, 40, 41], guess)
    assert str(scores.interval("pearson_r")) == "not defined"
    assert any("all predictions are the same: A" in said for said in evidence({"A": scores}))
    assert "not defined where all predictions are the same: A." in metrics_table({"A": scores}).note


def test_constant_targets_have_no_correlation() -> None:
    scores = valued([30] * 5, [1, 2, 3, 4, 5])
    assert str(scores.interval("pearson_r")) == "not defined"
    assert any("all subjects have the same value" in said for said in evidence({"A": scores}))


def test_an_interval_without_width_is_none() -> None:
    found = bootstrap_interval(lambda chosen: 0.7, np.arange(20) % 2)
    assert found.value == 0.7 and np.isnan([found.low, found.high]).all()
    one = classified([0, 1] * 10, [0, 1] * 10)
    assert str(one.difference(one, "auroc")) == "0.000 [not defined]"


# ------------------------------------------------------------------------------ what is said


def test_one_subject_of_a_class_gives_reasons_and_no_verdict() -> None:
    first = classified([0, 0, 0, 1], [0, 1, 0, 1])
    other = classified([0, 0, 0, 1], [1, 1, 0, 1])
    difference = first.difference(other, "auroc")
    assert np.isnan(difference.low) and not decisive(first)
    (said,) = verdict("A", "auroc", {"B": difference}, decisive=decisive(first))
    assert said == "There are too few held-out subjects to say whether A is better or worse than B."
    reasons = evidence({"A": first}, ("control", "patient"))
    assert "only one subject is patient" in reasons[0]
    assert "fewer than 10 subjects of a class the data cannot decide" in reasons[1]


@pytest.mark.parametrize(
    ("scores", "few"),
    [
        (classified([0] * 9 + [1] * 30, [0] * 39), True),
        (classified([0] * 10 + [1] * 10, [0] * 20), False),
        (valued(list(range(9)), list(range(9))), True),
        (valued(list(range(10)), list(range(10))), False),
        # Twenty scans, but of four subjects.
        (classified([0, 1] * 10, [0, 1] * 10)._replace(resampling_unit=tuple("abcd" * 5)), True),
    ],
)
def test_below_ten_the_data_cannot_decide(scores: SubjectScores, few: bool) -> None:
    said = " ".join(evidence({"A": scores}))
    assert ("the data cannot decide" in said) == few == (not decisive(scores))
    classes = ("a", "b") if scores.task_type == "classification" else ()
    assert ("the data cannot decide" in metrics_table({"A": scores}, classes).note) == few
    above = Interval(0.2, 0.1, 0.3)
    (verdicted,) = verdict("A", "auroc", {"B": above}, decisive=decisive(scores))
    assert ("better than B" in verdicted) == (not few)


def test_no_subject_of_a_class() -> None:
    assert evidence({"A": classified([0] * 12, [0] * 12)}, ("child", "adult"))[0] == (
        "AUROC is not defined: no subject is adult."
    )


def test_a_model_that_calls_everybody_the_same_is_named() -> None:
    target = [0] * 20 + [1] * 12
    same, other = classified(target, [0] * 32), classified(target, [0] * 30 + [1] * 2)
    (said,) = evidence({"A": same, "B": other, "C": same}, ("male", "female"))
    assert said.startswith("For everybody male is the most probable class by A, C: so accuracy")
    assert "balanced accuracy 1 / 2" in said and "AUROC does not depend" in said
    assert evidence({"B": other}, ("male", "female")) == []
    # Without subjects of the other class it is no wonder.
    assert not any("everybody" in x for x in evidence({"A": classified([0] * 12, [0] * 12)}))
