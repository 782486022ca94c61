"""Scores that are not finite: no metric, interval, curve or decision comes out of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from neuromamba.common.errors import UserInputError
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.evaluation.calibration import best_threshold
from neuromamba.evaluation.confounds import confound_report
from neuromamba.evaluation.metrics import METRICS
from neuromamba.evaluation.scores import Holdouts, SubjectScores
from neuromamba.evaluation.summary import calibration_of, evaluate_scores, subject_rows
from neuromamba.pages.score_sections import prediction_figures, subject_cells
from neuromamba.pages.tables import metrics_table

BAD = (math.nan, math.inf, -math.inf)
NAMES = tuple(f"sub-{i}" for i in range(24))


def scores(kind: str, bad: float | None, share: int = 1) -> SubjectScores:
    """A perfect model of 24 subjects, with ``share`` of its scores lost."""
    if kind == "regression":
        target = np.linspace(20.0, 80.0, 24)
        score = target[:, None].copy()
    else:
        classes = 2 if kind == "two" else 3
        target = np.arange(24) % classes
        score = np.full((24, classes), 0.1)
        score[np.arange(24), target] = 0.9
    if bad is not None:
        score[:share] = bad
    return SubjectScores(NAMES, target, score)


KINDS = ("two", "three", "regression")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("share", [1, 24])
def test_no_metric_is_defined(kind: str, bad: float, share: int) -> None:
    found = scores(kind, bad, share)
    assert all(math.isnan(value) for value in found.metrics().values())
    for name in found.metric_names:
        assert math.isnan(found.statistic(name)(np.arange(20, 24)))
        interval = found.interval(name)
        assert all(map(math.isnan, interval)) and str(interval) == "not defined"
    assert math.isfinite(scores(kind, None).interval(found.metric_names[0]).value)


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize("bad", BAD)
def test_metrics_by_themselves(name: str, bad: float) -> None:
    of_classes = name not in TASK_TYPES["regression"].metrics
    whole = scores("two" if of_classes else "regression", None)
    score, target = torch.from_numpy(whole.score), torch.from_numpy(whole.target)
    assert METRICS[name](score, target).isfinite()
    score[3] = bad
    assert METRICS[name](score, target).isnan()
    if not of_classes:
        score[3], target = 1.0, target.clone()
        target[0] = bad
        assert METRICS[name](score, target).isnan()


@pytest.mark.parametrize("kind", KINDS)
def test_differences_and_means_over_splits(kind: str) -> None:
    good, lost = scores(kind, None), scores(kind, math.nan)
    metric = good.main_metric
    assert str(good.difference(lost, metric)) == "not defined"
    assert str(Holdouts([good, lost]).interval(metric)) == "not defined"


def test_evaluation_of_a_run(tmp_path: Path) -> None:
    lost = scores("two", math.nan)
    found = evaluate_scores(lost, validation=scores("two", None), adjust_threshold=True)
    flat = found.flat()
    for name in ("auroc", "accuracy", "ece", "brier", "accuracy_adjusted", "auroc_low"):
        assert math.isnan(flat[f"test/{name}"]), name
    assert any("not defined" in line for line in found.lines())
    assert [row[-1] for row in subject_rows("test", lost)][:3] == ["", 1, 0]
    assert [row[-1] for row in subject_rows("test", lost, 0.5)][:3] == ["", 1, 0]
    assert all(map(math.isnan, calibration_of(scores("three", math.inf)).values()))


def test_no_threshold_and_no_confounds() -> None:
    lost = scores("two", math.nan)
    with pytest.raises(UserInputError, match="--adjust_thresh: prob"):
        best_threshold(lost.score[:, 1], lost.target)
    age = {name: str(i) for i, name in enumerate((*NAMES, "a", "b", "c", "d"))}
    with pytest.raises(UserInputError, match="--confounds: scores"):
        confound_report({"a": 0, "b": 1, "c": 0, "d": 1}, lost, {"age": age})


@pytest.mark.parametrize("kind", KINDS)
def test_pages_say_so(tmp_path: Path, kind: str) -> None:
    classes = {"two": ("f", "m"), "three": ("a", "b", "c"), "regression": ()}[kind]
    lost, good = scores(kind, math.nan), scores(kind, None)
    section = prediction_figures("x", {"model": lost, "FC": good}, classes, tmp_path)
    assert "not finite for 1 of 24 subjects" in section.text[0] and not section.pictures
    assert prediction_figures("x", {"model": good, "FC": lost}, classes, tmp_path).pictures
    table = metrics_table({"model": lost, "FC": good}, classes)
    assert set(table.rows[0][1:-1]) == {"not defined"}
    cells = subject_cells(lost, 0, classes)
    assert "nan" in cells or cells[1:] == ("not defined", "not defined")
