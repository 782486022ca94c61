"""Draws of labelled subjects, and intervals over draws and test subjects."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from neuromamba.evaluation.few_labels import (
    FewLabelScores,
    bootstrap_weights,
    draw_subjects,
    weighted_metric,
)
from neuromamba.evaluation.scores import SubjectScores

CLASSES = {f"sub-{i:02}": i % 3 == 0 for i in range(30)}  # 10 of one class, 20 of the other
TARGET = np.arange(24) % 2
NAMES = tuple(f"t{i}" for i in range(24))


def scores(shift: float, seed: int, unit: tuple[str, ...] | None = None) -> SubjectScores:
    one = np.round(np.random.default_rng(seed).uniform(size=24), 1) + shift * TARGET  # with ties
    return SubjectScores(NAMES, TARGET, np.stack([-one, one], axis=1), unit)


def sets(shift: float, draws: int = 5, first: int = 0) -> FewLabelScores:
    return FewLabelScores([scores(shift, first + draw) for draw in range(draws)], "auroc")


def test_draws_are_of_both_classes_and_nested() -> None:
    drawn = {n: draw_subjects(CLASSES, n, draw=1, seed=3) for n in (2, 5, 10)}
    for count, names in drawn.items():
        assert names == sorted(set(names))
        assert sum(CLASSES[name] for name in names) == count == len(names) / 2
    assert set(drawn[2]) < set(drawn[5]) < set(drawn[10])
    assert draw_subjects(CLASSES, 5, draw=1, seed=3) == drawn[5]
    assert draw_subjects(CLASSES, 5, draw=2, seed=3) != drawn[5]
    assert draw_subjects(CLASSES, 5, draw=1, seed=4) != drawn[5]


def test_too_few_subjects_of_a_class() -> None:
    with pytest.raises(ValueError, match="class True has 10 subjects, asked for 11"):
        draw_subjects(CLASSES, 11, draw=0)


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy"])
def test_a_weighted_metric_is_that_of_repeated_subjects(metric: str) -> None:
    one = scores(0.3, 0)
    weights = bootstrap_weights(one)[:20]
    found = weighted_metric(metric, one.score, one.target, weights)
    for weight, value in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(24), weight.astype(int))
        assert (TARGET[rows] == 0).sum() == 12  # drawn within classes
        expected = (
            roc_auc_score(TARGET[rows], one.score[rows, 1])
            if metric == "auroc"
            else balanced_accuracy_score(TARGET[rows], one.score[rows].argmax(1))
        )
        assert value == pytest.approx(expected)


def test_members_of_a_unit_are_drawn_together() -> None:
    unit = tuple(f"u{i // 4}" for i in range(24))
    weights = bootstrap_weights(scores(0.3, 0, unit))
    assert (weights.reshape(-1, 6, 4) == weights.reshape(-1, 6, 4)[..., :1]).all()


def test_interval_of_the_mean() -> None:
    """It holds the value, narrows with draws that agree, and is as wide as the test allows."""
    ours = sets(0.5)
    value = ours.interval()
    assert value.value == pytest.approx(
        np.mean([roc_auc_score(TARGET, one.score[:, 1]) for one in ours.sets])
    )
    assert value.low < value.value < value.high <= 1
    # The same draw five times: what is left is the choice of test subjects.
    same = FewLabelScores([scores(0.5, 0)] * 5, "auroc").interval()
    spread = bootstrap_weights(scores(0.5, 0))
    alone = weighted_metric("auroc", scores(0.5, 0).score, TARGET, spread)
    assert (same.low, same.high) == pytest.approx(tuple(np.quantile(alone, [0.025, 0.975])))


def test_difference_is_paired() -> None:
    ours, theirs = sets(0.9), sets(0.1)
    found = ours.difference(theirs)
    assert found.value == pytest.approx(ours.interval().value - theirs.interval().value)
    assert 0 < found.low < found.value < found.high
    none = ours.difference(sets(0.9))
    assert none.value == 0.0 and np.isnan([none.low, none.high]).all()  # no sample differs
    unrelated = sets(0.5, first=0).difference(sets(0.5, first=100))
    assert unrelated.low < 0 < unrelated.high


def test_not_defined() -> None:
    single = sets(0.5, draws=1).interval()
    assert np.isfinite(single.value) and np.isnan([single.low, single.high]).all()
    few = [
        SubjectScores(NAMES[:3], np.array([0, 0, 1]), np.random.default_rng(i).uniform(size=(3, 2)))
        for i in range(3)
    ]
    lonely = FewLabelScores(few, "auroc").interval()
    assert np.isfinite(lonely.value) and np.isnan([lonely.low, lonely.high]).all()
    with pytest.raises(ValueError, match="same test subjects"):
        FewLabelScores([few[0], scores(0, 0)], "auroc")
    with pytest.raises(ValueError, match="same test subjects"):
        sets(0.5).difference(sets(0.5, draws=4))
