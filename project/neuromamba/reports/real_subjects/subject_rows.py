"""Rows of a table of real subjects from a value or a score of each subject.

Intervals are BCa bootstraps over the tested subjects, drawn within folds and classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuromamba.common.csv_cells import csv_records
from neuromamba.common.json_text import read_json_record
from neuromamba.evaluation.intervals import Interval, bootstrap_interval, paired_difference
from neuromamba.reports.real_subjects.real_table import Row

OVER_SUBJECTS = (
    "Brackets: 95 % BCa bootstrap intervals over the tested subjects, drawn within folds and "
    "classes. They do not cover the choice of training subjects, nor the seed of a training."
)


class Scored(NamedTuple):
    """A model's scores.

    Attributes:
        model: name of the row.
        scores: subject -> score, higher for class 1.
        seconds: of a fit, the median.
        note: what a reader must know of it.
    """

    model: str
    scores: Mapping[str, float]
    seconds: float | None = None
    note: str = ""


def auroc_rows(
    models: Sequence[Scored], truth: Mapping[str, int], fold: Mapping[str, int]
) -> list[Row]:
    """AUROC of each model, the mean over folds of that within a fold.

    Scores of different folds come from different fits, and are not compared with each other.

    Args:
        models: all with the same subjects; the first is the one that others are compared with.
        truth: subject -> 0 or 1.
        fold: subject -> the fold that it is tested in.
    """
    names = sorted(truth)
    strata = np.array([2 * fold[name] + truth[name] for name in names])
    statistics = []
    for one in models:
        values = np.array([one.scores[name] for name in names])
        statistics.append(_mean_auroc(values, strata))
    rows = []
    for one, statistic in zip(models, statistics, strict=True):
        less = None
        if statistic is not statistics[0]:
            less = paired_difference(statistics[0], statistic, strata)
        found = bootstrap_interval(statistic, strata)
        rows.append(Row(one.model, {"auroc": found}, less, one.seconds, one.note))
    return rows


def _mean_auroc(values: np.ndarray, strata: np.ndarray) -> Callable[[np.ndarray], float]:
    """AUROC of subjects of one fold, the mean over folds; strata are 2 fold + class."""
    above = (values[:, None] > values) + 0.5 * (values[:, None] == values)
    folds = np.unique(strata // 2)

    def statistic(chosen: np.ndarray) -> float:
        own = strata[chosen]
        found = []
        for fold in folds:
            positive, negative = chosen[own == 2 * fold + 1], chosen[own == 2 * fold]
            found.append(above[np.ix_(positive, negative)].mean())
        return float(np.mean(found))

    return statistic


def mean_rows(metric: str, values: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Mean of a value of each subject, such as an accuracy or an AUROC within the subject.

    Args:
        metric: its name.
        values: name of the row -> subject -> value; the first row is compared with the others.
    """
    own = next(iter(values.values()))
    rows = []
    for model, one in values.items():
        less = None if one is own else interval_of_mean({k: own[k] - v for k, v in one.items()})
        rows.append(Row(model, {metric: interval_of_mean(one)}, less))
    return rows


def interval_of_mean(values: Mapping[str, float]) -> Interval:
    """Mean over units and its interval; units are drawn."""
    row = np.array([values[name] for name in sorted(values)])
    if len(row) > 1 and np.ptp(row) == 0:  # nothing to draw
        return Interval(float(row[0]), float(row[0]), float(row[0]))
    return bootstrap_interval(lambda drawn: float(row[drawn].mean()), np.zeros(len(row)))


def scores_of_run(run: Path, positive: str = "prob_1") -> dict[str, float]:
    """Subject or event -> mean over its windows, of ``predictions.csv`` of a training."""
    found: dict[str, list[float]] = {}
    with open(run / "predictions.csv", newline="", encoding="utf-8") as stream:
        for row in csv_records(stream):
            found.setdefault(row["subject"], []).append(float(row[positive]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def seconds_of_run(run: Path) -> float:
    """Time of a training."""
    return float(read_json_record(run / "metrics.json", "Train again.")["train/seconds"])
