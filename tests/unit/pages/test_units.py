"""Units on axes, in tables and in CSV files; and no Pearson r where predictions hardly vary."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from neuromamba.evaluation.scores import SubjectScores
from neuromamba.evaluation.summary import subject_header, subject_rows
from neuromamba.pages import score_sections
from neuromamba.pages.figures import hardly_varies, scatter_figure
from neuromamba.pages.score_sections import prediction_figures, subjects_table
from neuromamba.pages.tables import metric_label, metrics_table
from neuromamba.reports.quality.store_page import shorter_runs


def values(spread: float = 4.0, subjects: int = 20) -> SubjectScores:
    rng = np.random.default_rng(1)
    target = rng.normal(40, 10, subjects)
    guess = 40 + spread * (target - 40) / 10 + 0.3 * spread * rng.normal(size=subjects)
    return SubjectScores(tuple(f"s{i}" for i in range(subjects)), target, guess[:, None])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("mae", "Absolute error (years)"),
        ("mse", "Squared error (years²)"),
        ("pearson_r", "Pearson r"),
        ("r2", "R²"),
    ],
)
def test_errors_have_the_unit(name: str, label: str) -> None:
    assert metric_label(name, "years") == label
    assert label in metrics_table({"A": values()}, unit="years").header
    assert metric_label("mae") == "Absolute error"


def test_axes_have_the_unit() -> None:
    (axes,) = scatter_figure(values(), "age", "years").axes
    assert axes.get_xlabel() == "true age (years)"
    assert axes.get_ylabel() == "predicted age (years)"
    assert axes.get_title(loc="left").startswith("Pearson r 0.8") and axes.get_title(
        loc="left"
    ).endswith(" years")
    (axes,) = scatter_figure(values(), "score").axes
    assert axes.get_xlabel() == "true score"


def test_tables_of_subjects_have_the_unit() -> None:
    head = subjects_table([], (), "", unit="years").header
    assert head == ("subject", "true (years)", "predicted (years)", "error (years)")
    assert subjects_table([], ("a", "b"), "").header[-1] == "p(true)"


def test_the_file_of_subjects_has_the_unit(tmp_path: Path) -> None:
    scores = values()
    path = tmp_path / "subjects.csv"
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(subject_header(scores, "years"))
        writer.writerows(subject_rows("test", scores, unit="years"))
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["unit"] for row in rows} == {"years"} and len(rows) == 20
    assert float(rows[0]["prediction"]) == scores.score[0, 0]
    assert "unit" not in subject_header(scores)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.2])
def test_predictions_that_hardly_vary_have_no_headline(spread: float, tmp_path: Path) -> None:
    scores = values(spread)
    assert hardly_varies(scores)
    (axes,) = scatter_figure(scores, "age", "years").axes
    assert "Pearson" not in axes.get_title(loc="left") and "hardly vary" in axes.get_title(
        loc="left"
    )
    section = prediction_figures("Prediction of age", {"A": scores}, (), tmp_path, "years")
    assert "so that Pearson r says nothing" in section.pictures[0].caption


@pytest.mark.parametrize(("target", "label"), [("age", "true age"), ("", "true Holdout")])
def test_the_axes_name_the_target(
    target: str, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []

    def drawn(*words: Any) -> Figure:
        figures.append(scatter_figure(*words))
        return figures[-1]

    monkeypatch.setattr(score_sections, "scatter_figure", drawn)
    prediction_figures("Holdout", {"A": values(4.0)}, (), tmp_path, "years", target)
    assert figures[0].axes[0].get_xlabel() == f"{label} (years)"


def test_predictions_that_vary_have_one() -> None:
    assert not hardly_varies(values(4.0))


def test_a_regression_has_no_notes_on_classes() -> None:
    note = metrics_table({"A": values()}).note
    assert "class" not in note.lower() and "accurac" not in note.lower()
    assert (
        "Clopper-Pearson"
        in metrics_table(
            {"A": SubjectScores(("a", "b"), np.array([0, 1]), np.eye(2))}, ("x", "y")
        ).note
    )


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([10, 10], " (All 2 runs have 10 frames and so no window: use a smaller"),
        ([10, 30], " (1 have 10 frames and so no window"),
        ([10, 12, 30], " (2 have at most 12 frames and so no window"),
        ([20, 30], ""),
    ],
)
def test_windows_longer_than_the_runs(lengths: list[int], said: str) -> None:
    found = shorter_runs(lengths, 20)
    assert found.startswith(said) and bool(found) == bool(said)
