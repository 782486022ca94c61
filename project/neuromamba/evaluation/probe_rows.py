"""Rows of a comparison of features by probes: matrices of features in, scores with intervals out.

Nothing here knows where features come from. Every table of features is fitted and tested on the
same samples, in the same inner folds and, where labels are few, on the same draws of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import read_json
from neuromamba.config.names import LAST_LAYER
from neuromamba.evaluation.few_labels import FewLabelScores, draw_subjects
from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.probes import Fitted, knn_probe, linear_probe
from neuromamba.evaluation.scores import SubjectScores

RAW = "raw"
PRETRAINED, UNTRAINED = "pretrained", "untrained"


@dataclass(frozen=True)
class Samples:
    """Who is fitted on or tested: subjects, or sessions, runs or events.

    Attributes:
        names: S names.
        target: int [S] classes, or float [S] values.
        unit: S names of what stays together in folds and in the bootstrap: family or person.
    """

    names: tuple[str, ...]
    target: np.ndarray
    unit: tuple[str, ...]

    @property
    def unit_numbers(self) -> np.ndarray:
        """int [S], the units counted."""
        return np.unique(self.unit, return_inverse=True)[1]


@dataclass(frozen=True)
class FeatureTable:
    """Features of all samples, from one place.

    Attributes:
        layer: of the backbone, or ``RAW``.
        pool: how a window's tokens became a row, or the name of a feature of the raw signal.
        model: ``PRETRAINED``, ``UNTRAINED`` or ``RAW``.
        fitted: [S, D]; tested: [R, D].
    """

    layer: str
    pool: str
    model: str
    fitted: np.ndarray
    tested: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """A score of a probe; the fields are the keys of ``--json``.

    Attributes:
        layer, pool, model: see ``FeatureTable``.
        probe: "linear" or "knn".
        metric: "auroc" (two classes), "balanced_accuracy" (more), "pearson_r" or "r2".
        value, low, high: on the test samples, with the 95 % interval; NaN where not defined.
        subjects_a_class: labelled samples of each class; None for all there are.
        n_train, n_test: samples fitted on and tested.
        draws: of the labelled samples, over which the value is the mean; 1 for all of them.
    """

    layer: str
    pool: str
    model: str
    probe: str
    metric: str
    value: float
    low: float
    high: float
    subjects_a_class: int | None
    n_train: int
    n_test: int
    draws: int

    def plain(self) -> dict[str, Any]:
        """Return the row as JSON holds it: None for NaN, for what is not defined."""
        found = asdict(self)
        for name in ("value", "low", "high"):
            found[name] = found[name] if math.isfinite(found[name]) else None
        return found


def read_rows(path: Path) -> list[ProbeRow]:
    """Read the rows of ``--json``."""
    remedy = "Remove it and call neuromamba probe again."
    listed = read_json(path, remedy)
    bounds = ("value", "low", "high")
    try:
        numbers = [
            {name: math.nan if row[name] is None else row[name] for name in bounds}
            for row in listed
        ]
        return [ProbeRow(**(row | known)) for row, known in zip(listed, numbers, strict=True)]
    except (KeyError, TypeError):
        raise UserInputError(f"{path}: is damaged. {remedy}") from None


ROW_KEYS = tuple(field.name for field in fields(ProbeRow))
Progress = Callable[[Iterable[Any], str], Iterable[Any]]


def silent(items: Iterable[Any], what: str) -> Iterable[Any]:
    """Show no progress."""
    return items


def metrics_of(classes: int) -> tuple[str, ...]:
    """The metrics of a task: of two classes, of more, or of a regression (1)."""
    if classes == 1:
        return ("pearson_r", "r2")
    return ("auroc",) if classes == 2 else ("balanced_accuracy",)


class ProbeStudy:
    """Probes of several tables of features on the same samples.

    Args:
        fitted: samples that probes are fitted on and their penalty is chosen within.
        tested: samples that they are scored on, once.
        classes: number of classes; 1 of a regression.
        seed: of inner folds, draws and bootstrap.
        labelled: names of the fitted samples that few labels are drawn from, the training part of
            the split, as in ``neuromamba label-efficiency``; None for all.
    """

    def __init__(
        self,
        fitted: Samples,
        tested: Samples,
        classes: int,
        seed: int,
        labelled: Collection[str] | None = None,
    ) -> None:
        self.fitted, self.tested = fitted, tested
        self.classes, self.seed = classes, seed
        rows = zip(fitted.names, fitted.target.tolist(), strict=True)
        self._classes_of = {n: c for n, c in rows if labelled is None or n in labelled}

    def all_labels(
        self, tables: Sequence[FeatureTable], progress: Progress = silent
    ) -> list[ProbeRow]:
        """Score both probes of each table with all labels, with BCa intervals over the samples."""
        rows = []
        for table in progress(tables, "probes"):
            for name, found in self._both(table):
                scores = SubjectScores(
                    self.tested.names, self.tested.target, found.score, self.tested.unit
                )
                for metric in metrics_of(self.classes):
                    value = scores.interval(metric, self.seed)
                    rows.append(self._row(table, name, metric, value, None, 1))
        return rows

    def _both(self, table: FeatureTable) -> Iterable[tuple[str, Fitted]]:
        y, unit = self.fitted.target, self.fitted.unit_numbers
        settings: dict[str, Any] = {"classes": self.classes, "unit": unit, "seed": self.seed}
        yield "linear", linear_probe(table.fitted, y, table.tested, **settings)
        yield "knn", knn_probe(table.fitted, y, table.tested, classes=self.classes)

    def possible_sizes(self, sizes: Sequence[int]) -> tuple[list[int], list[str]]:
        """The numbers of labelled samples a class that there are, and notes on the others."""
        if self.classes == 1:
            return [], ["Few labels: a regression has no classes to draw labelled subjects from."]
        found = list(self._classes_of.values())
        most = min(found.count(label) for label in range(self.classes))
        gone = [n for n in sizes if n > most]
        note = (
            f"Few labels: {', '.join(map(str, gone))} labelled subjects a class are left out, the "
            f"smallest class has {most} in the training set."
        )
        return [n for n in sizes if n <= most], [note] if gone else []

    def few_labels(
        self,
        tables: Sequence[FeatureTable],
        sizes: Sequence[int],
        draws: int,
        progress: Progress = silent,
    ) -> list[ProbeRow]:
        """Score linear probes of few labelled samples of each class: the mean over draws of these.

        The interval is that of ``FewLabelScores``.

        Args:
            tables: of features; all are fitted on the same draws.
            sizes: samples of each class, see ``possible_sizes``.
            draws: of each size.
        """
        rows = []
        work = [(table, size) for size in sizes for table in tables]
        unit, metric = self.fitted.unit_numbers, metrics_of(self.classes)[0]
        for table, size in progress(work, "few labels"):
            sets = []
            for draw in range(draws):
                chosen = self.draw(size, draw)
                found = linear_probe(
                    table.fitted[chosen],
                    self.fitted.target[chosen],
                    table.tested,
                    classes=self.classes,
                    unit=unit[chosen],
                    seed=self.seed,
                )
                names, target = self.tested.names, self.tested.target
                sets.append(SubjectScores(names, target, found.score, self.tested.unit))
            value = FewLabelScores(sets, metric).interval(self.seed)
            rows.append(self._row(table, "linear", metric, value, size, draws))
        return rows

    def draw(self, size: int, draw: int) -> np.ndarray:
        """Positions of the labelled samples of a draw, ``size`` of each class, sorted."""
        chosen = set(draw_subjects(self._classes_of, size, draw=draw, seed=self.seed))
        return np.array([i for i, name in enumerate(self.fitted.names) if name in chosen])

    def _row(
        self,
        table: FeatureTable,
        probe: str,
        metric: str,
        value: Interval,
        size: int | None,
        draws: int,
    ) -> ProbeRow:
        return ProbeRow(
            layer=table.layer,
            pool=table.pool,
            model=table.model,
            probe=probe,
            metric=metric,
            value=value.value,
            low=value.low,
            high=value.high,
            subjects_a_class=size,
            n_train=len(self.fitted.names) if size is None else size * self.classes,
            n_test=len(self.tested.names),
            draws=draws,
        )


def flat_probes(rows: Sequence[ProbeRow]) -> dict[str, float]:
    """Linear probes of the last features with all labels, flat: ``probe/mean/auroc``.

    Those of the untrained backbone are ``probe/untrained_mean/auroc``.
    """
    prefix: Mapping[str, str] = {PRETRAINED: "", UNTRAINED: "untrained_"}
    return {
        f"probe/{prefix[row.model]}{row.pool}/{row.metric}": row.value
        for row in rows
        if row.layer == LAST_LAYER
        and row.probe == "linear"
        and row.subjects_a_class is None
        and row.model in prefix
    }
