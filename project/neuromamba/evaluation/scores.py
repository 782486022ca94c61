"""Scores of subjects, and what follows from them: metrics, intervals, differences of two models."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.errors import UserInputError
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.evaluation.intervals import (
    Interval,
    Statistic,
    bootstrap_interval,
    paired_difference,
)
from neuromamba.evaluation.metrics import METRICS


class SubjectScores(NamedTuple):
    """Scores of subjects (sessions, runs, events), a subject's windows averaged.

    Attributes:
        subjects: S names.
        target: int [S], the true class; or float [S], the true value.
        score: float [S, classes], probabilities; or [S, 1], the prediction in the target's units.
    """

    subjects: tuple[str, ...]
    target: np.ndarray
    score: np.ndarray

    @property
    def task_type(self) -> str:
        """Key of ``TASK_TYPES``."""
        return "classification" if self.target.dtype.kind in "iu" else "regression"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of the task type."""
        return TASK_TYPES[self.task_type].metrics

    @property
    def main_metric(self) -> str:
        """The one that models are compared by."""
        return "auroc" if self.task_type == "classification" else "pearson_r"

    def statistic(self, name: str) -> Statistic:
        """A metric as a function of the indices of subjects."""
        score, target = torch.from_numpy(self.score), torch.from_numpy(self.target)
        return lambda chosen: float(METRICS[name](score[chosen], target[chosen]))

    def metrics(self) -> dict[str, float]:
        """Computed as in ``metrics.json``."""
        everybody = np.arange(len(self.subjects))
        return {name: self.statistic(name)(everybody) for name in self.metric_names}

    @property
    def strata(self) -> np.ndarray:
        """[S] the class; one stratum for a regression."""
        return self.target if self.task_type == "classification" else np.zeros(len(self.target))

    def interval(self, name: str, seed: int = 0) -> Interval:
        """A metric with its 95 % interval over subjects."""
        return bootstrap_interval(self.statistic(name), self.strata, seed)

    def difference(self, other: SubjectScores, name: str, seed: int = 0) -> Interval:
        """This less another model's metric on the same subjects, with its paired interval.

        Raises:
            UserInputError: the other was not scored on the same subjects with the same targets.
        """
        same = other.in_order_of(self)
        return paired_difference(self.statistic(name), same.statistic(name), self.strata, seed)

    def in_order_of(self, other: SubjectScores) -> SubjectScores:
        """The same scores in the order of another's subjects.

        Raises:
            UserInputError: not the same subjects, or not the same targets.
        """
        place = {name: i for i, name in enumerate(self.subjects)}
        if set(place) != set(other.subjects):
            raise UserInputError("the models were not tested on the same subjects.")
        order = np.array([place[name] for name in other.subjects], dtype=int)
        target = self.target[order]
        if not np.allclose(target, other.target):
            raise UserInputError("the models were not tested with the same targets.")
        return SubjectScores(other.subjects, target, self.score[order])

    @property
    def per_class(self) -> list[int]:
        """Subjects of each class."""
        return np.bincount(self.target, minlength=self.score.shape[1]).tolist()


def read_scores(path: Path) -> SubjectScores:
    """Scores of a file of predictions, a subject's windows averaged.

    Args:
        path: with the columns subject, target, and prob_0, prob_1, ... or prediction.

    Raises:
        UserInputError: it cannot be read, is damaged, or holds no predictions.
    """
    windows: dict[str, list[list[float]]] = {}
    target: dict[str, str] = {}
    columns: list[str] = []
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                columns = columns or [n for n in row if n.startswith("prob_") or n == "prediction"]
                windows.setdefault(row["subject"], []).append([float(row[c]) for c in columns])
                target[row["subject"]] = row["target"]
        values = [
            float(text) if columns == ["prediction"] else int(text) for text in target.values()
        ]
    except OSError as error:
        raise UserInputError(
            f"{path}: cannot be read ({error.strerror}). Give the folder of a finished run of "
            f"neuromamba train."
        ) from None
    except (KeyError, TypeError, ValueError):
        raise UserInputError(f"{path}: damaged, or no file of predictions.") from None
    if not columns:
        raise UserInputError(f"{path}: no predictions in it.")
    return SubjectScores(
        tuple(windows),
        np.array(values),
        np.array([np.mean(scores, axis=0) for scores in windows.values()]),
    )


def write_scores(scores: SubjectScores, path: Path) -> None:
    """Write the file that ``read_scores`` reads, a row a subject."""
    columns = [f"prob_{i}" for i in range(scores.score.shape[1])]
    if scores.task_type == "regression":
        columns = ["prediction"]
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["subject", "target", *columns])
        for name, target, score in zip(*scores, strict=True):
            writer.writerow([name, target, *map(float, score)])
