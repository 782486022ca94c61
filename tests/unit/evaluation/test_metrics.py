"""Metrics against scikit-learn and numpy, whatever the batches, the order and the ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from neuromamba.evaluation.metrics import METRICS
from neuromamba.evaluation.subject_keys import subject_key
from neuromamba.evaluation.subject_metrics import SubjectMetrics
from tests.helpers.metric_states import gather


class Windows(NamedTuple):
    subject: np.ndarray
    window: np.ndarray
    score: np.ndarray
    target: np.ndarray

    def at(self, rows: Sequence[int] | np.ndarray) -> Windows:
        return Windows(*(column[rows] for column in self))

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, self))


def classification(classes: int, subjects: int = 30, seed: int = 0) -> Windows:
    """One to four windows a subject, probabilities that carry some of the truth."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, subjects)
    labels = np.arange(subjects) % classes
    names = np.array([subject_key(f"sub-{i}") for i in range(subjects)])
    target = labels.repeat(counts)
    logits = rng.normal(size=(len(target), classes)) + np.eye(classes)[target] * 0.7
    score = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    window = np.concatenate([np.arange(n) for n in counts])
    return Windows(names.repeat(counts), window, score.astype(np.float32), target)


def regression(subjects: int = 30, unit: float = 1.0, offset: float = 0.0) -> Windows:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 5, subjects)
    value = rng.normal(size=subjects)
    prediction = value.repeat(counts) + rng.normal(size=counts.sum())
    return Windows(
        np.arange(subjects).repeat(counts),
        np.concatenate([np.arange(n) for n in counts]),
        (prediction * unit + offset).astype(np.float32)[:, None],
        (value * unit + offset).astype(np.float32).repeat(counts),
    )


def by_subject(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Mean score and target of every subject, by loops over distinct windows."""
    scores: dict[int, dict[int, np.ndarray]] = {}
    targets = {}
    for subject, window, score, target in zip(*windows, strict=True):
        scores.setdefault(subject, {})[window] = score.astype(np.float64)
        targets[subject] = target
    means = [np.mean(list(seen.values()), axis=0) for seen in scores.values()]
    return np.array(means), np.array([targets[subject] for subject in scores])


def measured(
    task_type: str, windows: Windows, batches: Sequence[np.ndarray] | None = None
) -> dict[str, float]:
    metric = SubjectMetrics(task_type)
    for rows in batches if batches is not None else [np.arange(len(windows.subject))]:
        metric.update(*windows.at(rows).tensors())
    return {name: value.item() for name, value in metric.compute().items()}


# ---------------------------------------------------------------------- values of a subject


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_classification_against_sklearn(classes: int, seed: int) -> None:
    windows = classification(classes, seed=seed)
    mean, target = by_subject(windows)
    guess = mean.argmax(1)
    if classes == 2:
        area = sklearn_metrics.roc_auc_score(target, mean[:, 1])
    else:
        area = sklearn_metrics.roc_auc_score(target, mean, multi_class="ovr", average="macro")
    assert measured("classification", windows) == pytest.approx(
        {
            "auroc": area,
            "accuracy": sklearn_metrics.accuracy_score(target, guess),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(target, guess),
        },
        rel=1e-12,
    )
    # Over windows the values would be others: the test can tell.
    accuracy = (windows.score.argmax(1) == windows.target).mean()
    assert abs(accuracy - measured("classification", windows)["accuracy"]) > 1e-3


@pytest.mark.parametrize(
    ("unit", "offset"), [(1.0, 0.0), (15.0, 100.0), (1e-3, 0.0), (1e-6, 0.0), (1.0, 1e4)]
)
def test_regression_against_sklearn(unit: float, offset: float) -> None:
    """In any unit of the target, far from zero too."""
    windows = regression(unit=unit, offset=offset)
    mean, target = by_subject(windows)
    guess, truth = mean[:, 0], target.astype(np.float64)
    assert measured("regression", windows) == pytest.approx(
        {
            "mse": sklearn_metrics.mean_squared_error(truth, guess),
            "mae": sklearn_metrics.mean_absolute_error(truth, guess),
            "pearson_r": np.corrcoef(truth, guess)[0, 1],
            "r2": sklearn_metrics.r2_score(truth, guess),
        },
        rel=1e-9,
    )


def test_by_hand() -> None:
    """Three subjects; the first has two windows that average to 0.6 for its class, 1."""
    windows = Windows(
        np.array([5, 5, 6, 7]),
        np.array([0, 1, 0, 0]),
        np.array([[0.7, 0.3], [0.1, 0.9], [0.2, 0.8], [0.55, 0.45]]),
        np.array([1, 1, 0, 0]),
    )
    values = measured("classification", windows)
    # Scores 0.6 (1), 0.8 (0), 0.45 (0): one of two pairs in order; two of three right.
    assert values == pytest.approx(
        {"auroc": 0.5, "accuracy": 2 / 3, "balanced_accuracy": (1 / 1 + 1 / 2) / 2}
    )


def test_ties_count_half() -> None:
    score = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.1, 0.9]], dtype=torch.float64)
    target = torch.tensor([0, 0, 1, 1])
    assert METRICS["auroc"](score, target).item() == pytest.approx(0.75)


# -------------------------------------------------------------- batches, order, duplicates


@pytest.mark.parametrize("task_type", ["classification", "regression"])
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_order_and_batch_size_do_not_matter(task_type: str, size: int) -> None:
    windows = classification(3) if task_type == "classification" else regression()
    order = np.random.default_rng(size).permutation(len(windows.subject))
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    assert measured(task_type, windows, batches) == pytest.approx(
        measured(task_type, windows), rel=1e-12
    )


def test_a_window_seen_twice_counts_once() -> None:
    """Samplers repeat windows to pad ranks; nothing may tip over for it."""
    windows = classification(2)
    everything = np.arange(len(windows.subject))
    again = np.array([0, 3, 3, len(everything) - 1])
    metric = SubjectMetrics("classification")
    metric.update(*windows.at(everything).tensors())
    before = metric.compute()
    metric.update(*windows.at(again).tensors())
    assert metric.compute() == before
    seen = metric.windows()
    assert len(seen.subject) == len(everything)
    expected = sorted(zip(*map(np.ndarray.tolist, windows), strict=True))
    found = sorted(zip(*(column.tolist() for column in seen), strict=True))
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in expected])


def test_windows_come_back_sorted_and_whole() -> None:
    metric = SubjectMetrics("regression")
    metric.update(*map(torch.tensor, ([9, 2], [0, 1], [[0.9], [0.21]], [9.0, 2.0])))
    metric.update(*map(torch.tensor, ([2, 9], [0, 0], [[0.2], [77.0]], [2.0, 9.0])))
    seen = metric.windows()
    assert seen.subject.tolist() == [2, 2, 9] and seen.window.tolist() == [0, 1, 0]
    # Of the window (9, 0) the first reading is kept.
    assert seen.score[:, 0].tolist() == pytest.approx([0.2, 0.21, 0.9])
    assert seen.target.tolist() == [2.0, 2.0, 9.0]


@pytest.mark.parametrize("task_type", ["classification", "regression"])
@pytest.mark.parametrize("way", ["merge", "gather"])
def test_two_ranks(task_type: str, way: str) -> None:
    """Ranks that see different windows, a subject's on both, and one window twice as padding."""
    windows = classification(3) if task_type == "classification" else regression()
    rows = np.arange(len(windows.subject))
    ranks = [SubjectMetrics(task_type), SubjectMetrics(task_type)]
    for rank, metric in enumerate(ranks):
        for row in rows[rank::2]:
            metric.update(*windows.at([row]).tensors())
    ranks[1].update(*windows.at([0]).tensors())
    if way == "merge":
        ranks[0].merge_state(ranks[1])
    else:
        gather(ranks[0], ranks[1], ("subject", "window", "score", "target"))
    found = {name: value.item() for name, value in ranks[0].compute().items()}
    assert found == pytest.approx(measured(task_type, windows), rel=1e-12)


# ----------------------------------------------------------------------------- edge cases


def test_absent_class_makes_auroc_undefined_only() -> None:
    windows = classification(3)
    values = measured("classification", windows.at(windows.target != 1))
    assert math.isnan(values["auroc"])
    mean, target = by_subject(windows.at(windows.target != 1))
    hits = mean.argmax(1) == target
    assert values["accuracy"] == pytest.approx(hits.mean())
    assert values["balanced_accuracy"] == pytest.approx(
        (hits[target == 0].mean() + hits[target == 2].mean()) / 2
    )


def test_constant_predictions_and_targets() -> None:
    windows = regression()
    flat = measured("regression", windows._replace(score=np.full_like(windows.score, 0.1)))
    assert math.isnan(flat["pearson_r"]) and flat["r2"] < 0
    for count in range(2, 40):  # whatever the rounding of the mean
        score = torch.full((count, 1), 0.1, dtype=torch.float64)
        assert METRICS["pearson_r"](score, torch.arange(count)).isnan()
    same = measured("regression", windows._replace(target=np.full_like(windows.target, 0.1)))
    assert math.isnan(same["pearson_r"]) and math.isnan(same["r2"]) and same["mse"] > 0


def test_a_single_subject() -> None:
    values = measured("regression", regression(subjects=1))
    assert math.isnan(values["pearson_r"]) and math.isnan(values["r2"])
    assert math.isfinite(values["mse"]) and math.isfinite(values["mae"])


def test_targets_that_happen_to_be_whole_numbers() -> None:
    windows = regression(unit=10.0)
    whole = windows._replace(target=windows.target.round())
    as_integers = whole._replace(target=whole.target.astype(np.int64))
    assert measured("regression", as_integers) == pytest.approx(measured("regression", whole))


def test_reset_forgets() -> None:
    windows, other = classification(2), classification(2, seed=5)
    metric = SubjectMetrics("classification")
    metric.update(*windows.tensors())
    metric.compute()
    metric.reset()
    metric.update(*other.tensors())
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found == pytest.approx(measured("classification", other))


def test_windows_of_a_subject_share_a_target() -> None:
    metric = SubjectMetrics("classification")
    score = torch.tensor([[0.4, 0.6], [0.4, 0.6]])
    metric.update(torch.tensor([5, 5]), torch.tensor([0, 1]), score, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="different targets"):
        metric.compute()
