"""Scores of subjects, and what follows from them: metrics, intervals, differences of two models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from neuromamba.common.errors import UserInputError
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.evaluation.exact_intervals import (
    faultless_area_bounds,
    mean_proportion_bounds,
    proportion_bounds,
)
from neuromamba.evaluation.intervals import (
    CONFIDENCE,
    FEWEST_IN_CLASS,
    Interval,
    Statistic,
    Together,
    bootstrap_interval,
    difference,
)
from neuromamba.evaluation.metrics import METRICS
from neuromamba.evaluation.resampled import mean_recall, resampled_metric
from neuromamba.evaluation.result_files import (
    Predictions,
    read_predictions,
    score_columns,
    write_rows,
)


class SubjectScores(NamedTuple):
    """Scores of subjects (sessions, runs, events), a subject's windows averaged.

    Attributes:
        subjects: S names.
        target: int [S], the true class; or float [S], the true value.
        score: float [S, classes], probabilities; or [S, 1], the prediction in the target's units.
        resampling_unit: S names of what a bootstrap draws, where several rows are not independent
            (tasks of a subject, members of a family); None draws the rows themselves.
    """

    subjects: tuple[str, ...]
    target: np.ndarray
    score: np.ndarray
    resampling_unit: tuple[str, ...] | None = None

    @property
    def task_type(self) -> str:
        """Key of ``TASK_TYPES``."""
        return "classification" if self.target.dtype.kind in "iu" else "regression"

    @property
    def is_finite(self) -> bool:
        """Whether every score is a number; otherwise no metric is defined."""
        return bool(np.isfinite(self.score).all())

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics of the task type."""
        return TASK_TYPES[self.task_type].metrics

    @property
    def main_metric(self) -> str:
        """The one that models are compared by."""
        return TASK_TYPES[self.task_type].main_metric

    def statistic(self, name: str) -> Statistic:
        """A metric as a function of the indices of subjects."""
        return resampled_metric(name, self.score, self.target)

    def metrics(self) -> dict[str, float]:
        """Computed as in ``metrics.json``."""
        score, target = torch.from_numpy(self.score), torch.from_numpy(self.target)
        return {name: float(METRICS[name](score, target)) for name in self.metric_names}

    def interval(self, name: str, seed: int = 0) -> Interval:
        """A metric with its 95 % interval over subjects.

        Accuracy has the exact one of a proportion. Where the bootstrap gives none because all
        samples are alike, AUROC and balanced accuracy have those of ``exact_intervals``.
        """
        if not self.is_finite:
            return Interval(float("nan"), float("nan"), float("nan"))
        if name == "accuracy" and self.task_type == "classification":
            return self.proportion(self.score.argmax(axis=1) == self.target, seed)
        found = self.bootstrap(self.statistic(name), seed)
        if np.isfinite(found.value) and np.isnan(found.low) and self._countable:
            if name == "auroc" and found.value in (0.0, 1.0):
                per_class, wrong = self.per_class, found.value == 0.0
                return Interval(
                    found.value,
                    *faultless_area_bounds(per_class, CONFIDENCE, reversed_order=wrong),
                )
            if name == "balanced_accuracy":
                return self._exact_recall(found.value, self.score.argmax(axis=1) == self.target)
        return found

    def proportion(self, hit: np.ndarray, seed: int = 0) -> Interval:
        """Share of the rows that ``hit`` [S] is true for, with its interval.

        It is exact where the rows are independent, else by bootstrap of the units.
        """
        if self._dependent:
            return self.bootstrap(lambda chosen: float(hit[chosen].mean()), seed)
        return Interval(float(hit.mean()), *proportion_bounds(int(hit.sum()), len(hit), CONFIDENCE))

    def mean_recall(self, hit: np.ndarray, seed: int = 0) -> Interval:
        """Mean over the classes of the share that ``hit`` [S] is true for, with its interval.

        By bootstrap; where all samples are alike, of the exact intervals of the classes.
        """
        found = self.bootstrap(mean_recall(hit, self.target), seed)
        if np.isfinite(found.low) or not self._countable:
            return found
        return self._exact_recall(found.value, hit)

    def _exact_recall(self, value: float, hit: np.ndarray) -> Interval:
        classes = [hit[self.target == label] for label in np.unique(self.target)]
        counts = [(int(hits.sum()), len(hits)) for hits in classes]
        return Interval(value, *mean_proportion_bounds(counts, CONFIDENCE))

    @property
    def _dependent(self) -> bool:
        """Whether several rows belong to one unit of the bootstrap."""
        unit = self.resampling_unit
        return unit is not None and len(set(unit)) < len(unit)

    @property
    def _countable(self) -> bool:
        """Whether subjects of each class can be counted as independent trials."""
        if self.task_type != "classification" or self._dependent:
            return False
        return min(self.per_class) >= FEWEST_IN_CLASS

    def difference(self, other: SubjectScores, name: str, seed: int = 0) -> Interval:
        """This less another model's metric on the same subjects, with its paired interval.

        Raises:
            UserInputError: the other was not scored on the same subjects with the same targets.
        """
        return self.bootstrap(self.less(other, name), seed)

    def less(self, other: SubjectScores, name: str) -> Statistic:
        """This model's metric less another's, as a function of the indices of subjects.

        Raises:
            UserInputError: the other was not scored on the same subjects with the same targets.
        """
        one, two = self.statistic(name), other.in_order_of(self).statistic(name)
        return difference(one, two)

    def bootstrap(self, statistic: Statistic, seed: int = 0) -> Interval:
        """Draw units within classes, and compute the interval of a statistic of their rows."""
        draws = Draws([self])
        if isinstance(statistic, Together) and draws.are_rows:
            return bootstrap_interval(statistic, draws.strata, seed)
        return bootstrap_interval(
            lambda chosen: statistic(draws.rows(0, chosen)), draws.strata, seed
        )

    def subset(self, rows: Sequence[int] | np.ndarray) -> SubjectScores:
        """The scores of some rows, in the order given."""
        rows = np.asarray(rows, dtype=int)
        unit = (
            None if self.resampling_unit is None else tuple(self.resampling_unit[i] for i in rows)
        )
        names = tuple(self.subjects[i] for i in rows)
        return SubjectScores(names, self.target[rows], self.score[rows], unit)

    def in_order_of(self, other: SubjectScores) -> SubjectScores:
        """Reorder the scores like another's subjects.

        Raises:
            UserInputError: not the same subjects, or not the same targets.
        """
        place = {name: i for i, name in enumerate(self.subjects)}
        if set(place) != set(other.subjects):
            raise UserInputError("the models were not tested on the same subjects.")
        found = self.subset([place[name] for name in other.subjects])
        if not np.allclose(found.target, other.target):
            raise UserInputError("the models were not tested with the same targets.")
        return found

    @property
    def units_per_class(self) -> list[int]:
        """Units of each class that a bootstrap draws: subjects, or what their rows belong to."""
        units = self.resampling_unit or self.subjects
        of_class: list[set[str]] = [set() for _ in range(self.score.shape[1])]
        for name, label in zip(units, self.target.tolist(), strict=True):
            of_class[label].add(name)
        return [len(names) for names in of_class]

    @property
    def per_class(self) -> list[int]:
        """Subjects of each class."""
        return np.bincount(self.target, minlength=self.score.shape[1]).tolist()


class Draws:
    """The units that a bootstrap draws from one set of subjects, or from several that overlap.

    A unit is a subject, or ``SubjectScores.resampling_unit``; one that occurs in several sets is
    one unit, so that it is drawn for all of them at once. Units are drawn within classes where each
    of them has one class throughout; otherwise, and in a regression, all of them together.

    Args:
        sets: scores of each set.

    Attributes:
        names: U units.
        strata: [U] units of one value are drawn among themselves.
    """

    def __init__(self, sets: Sequence[SubjectScores]) -> None:
        units = [
            one.subjects if one.resampling_unit is None else one.resampling_unit for one in sets
        ]
        self.names = list(dict.fromkeys(name for names in units for name in names))
        number = {name: i for i, name in enumerate(self.names)}
        classes: list[set[float]] = [set() for _ in self.names]
        self._rows: list[list[list[int]]] = []
        for one, names in zip(sets, units, strict=True):
            rows: list[list[int]] = [[] for _ in self.names]
            for row, (name, label) in enumerate(zip(names, one.target.tolist(), strict=True)):
                rows[number[name]].append(row)
                classes[number[name]].add(label)
            self._rows.append(rows)
        within = sets[0].task_type == "classification" and all(len(c) == 1 for c in classes)
        self.strata = np.array([next(iter(c)) if within else 0 for c in classes])
        # Where no unit has two rows, the row of each unit, -1 for none: much faster than lists.
        self._row = [
            np.array([r[0] if r else -1 for r in rows]) if max(map(len, rows)) == 1 else None
            for rows in self._rows
        ]

    @property
    def are_rows(self) -> bool:
        """Whether there is one set, and unit i is row i of it."""
        row = self._row[0]
        return len(self._row) == 1 and row is not None and np.array_equal(row, range(len(row)))

    def rows(self, which: int, chosen: np.ndarray) -> np.ndarray:
        """Rows of a set that belong to the units drawn, as often as each was drawn."""
        row = self._row[which]
        if row is None:
            found = [row for unit in chosen for row in self._rows[which][unit]]
            return np.array(found, dtype=int)
        found_rows: np.ndarray = row[chosen]
        return found_rows[found_rows >= 0]

    def together(self, which: int, statistic: Statistic) -> Together | None:
        """The statistic of a set's rows as one of units, many resamples at once; None: one by one.

        NaN where none of the units drawn is in the set.
        """
        row = self._row[which]
        if row is None or not isinstance(statistic, Together):
            return None

        def many(chosen: np.ndarray) -> np.ndarray:
            rows = row[chosen]
            there = rows >= 0
            count, values = there.sum(axis=1), np.full(len(rows), np.nan)
            for size in np.unique(count[count > 0]):
                alike = count == size
                values[alike] = statistic.many(rows[alike][there[alike]].reshape(-1, size))
            return values

        return Together(many)


class Holdouts:
    """Scores of one model per split (seed): each split has its own fit and its own test subjects.

    The test subjects of different splits overlap. A statistic is the mean over splits; its interval
    draws from the subjects of all splits together, and a subject drawn counts in every split that
    has tested it. So it says how much the choice of test subjects matters, given these fits;
    training subjects, splits and seeds are not drawn.

    Args:
        sets: scores of each split.
    """

    def __init__(self, sets: Sequence[SubjectScores]) -> None:
        self.sets, self.draws = list(sets), Draws(sets)

    def interval(self, name: str, seed: int = 0) -> Interval:
        """Mean of a metric over splits, with its interval."""
        return self._bootstrap([one.statistic(name) for one in self.sets], seed)

    def difference(self, other: Holdouts, name: str, seed: int = 0) -> Interval:
        """Mean over splits of the difference of two models, both on the same draws of subjects.

        Raises:
            UserInputError: the other was not scored on the same subjects with the same targets.
        """
        pairs = zip(self.sets, other.sets, strict=True)
        return self._bootstrap([own.less(two, name) for own, two in pairs], seed)

    def _bootstrap(self, statistics: Sequence[Statistic], seed: int) -> Interval:
        together = [self.draws.together(i, one) for i, one in enumerate(statistics)]
        sets = [one.many for one in together if one is not None]
        if len(sets) == len(statistics):
            both = Together(lambda chosen: np.mean([many(chosen) for many in sets], axis=0))
            return bootstrap_interval(both, self.draws.strata, seed)

        def mean(chosen: np.ndarray) -> float:
            found = []
            for i, statistic in enumerate(statistics):
                rows = self.draws.rows(i, chosen)
                found.append(statistic(rows) if len(rows) else float("nan"))
            return float(np.mean(found))

        return bootstrap_interval(mean, self.draws.strata, seed)


def read_scores(path: Path) -> SubjectScores:
    """Read the scores of a file of predictions, a subject's windows averaged.

    Args:
        path: with the columns subject, target, and prob_0, prob_1, ... or prediction.

    Raises:
        UserInputError: it cannot be read, is damaged, or holds no predictions.
    """
    return average_by_subject(
        read_predictions(path, "Give the folder of a finished run of neuromamba train.")
    )


def average_by_subject(found: Predictions) -> SubjectScores:
    """Average the scores of each subject's samples; the target is that of the last of them."""
    scores: dict[str, list[np.ndarray]] = {}
    target = {}
    for subject, value, score in zip(found.subject, found.target, found.score, strict=True):
        scores.setdefault(subject, []).append(score)
        target[subject] = value
    return SubjectScores(
        tuple(scores),
        np.array(list(target.values())),
        np.array([np.mean(windows, axis=0) for windows in scores.values()]),
    )


def write_scores(scores: SubjectScores, path: Path) -> None:
    """Write the file that ``read_scores`` reads, one row per subject."""
    rows = zip(scores.subjects, scores.target.tolist(), scores.score.tolist(), strict=True)
    write_rows(
        ["subject", "target", *score_columns(scores.target, scores.score)],
        ([name, target, *score] for name, target, score in rows),
        path,
    )
