"""Rows of a comparison of features by probes: matrices of features in, scores with intervals out.

Nothing here knows where features come from. Every table of features is fitted and tested on the
same samples, in the same inner folds and, where labels are few, on the same draws of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from neuromamba.evaluation.intervals import CONFIDENCE, RESAMPLES, Interval
from neuromamba.evaluation.probes import Fitted, knn_probe, linear_probe
from neuromamba.evaluation.resampled import resampled_metric
from neuromamba.evaluation.scores import Draws, SubjectScores

LAST_LAYER, RAW = "features", "raw"
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
    """

    def __init__(self, fitted: Samples, tested: Samples, classes: int, seed: int) -> None:
        self.fitted, self.tested = fitted, tested
        self.classes, self.seed = classes, seed
        self._weights: np.ndarray | None = None

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
        most = int(np.bincount(self.fitted.target, minlength=self.classes).min())
        gone = [n for n in sizes if n > most]
        note = (
            f"Few labels: {', '.join(map(str, gone))} labelled subjects a class are left out, the "
            f"smallest class has {most} in the training and validation set."
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

        The interval is that of percentiles of bootstrap samples, in each of which test samples
        (within classes) and draws are drawn with replacement.

        Args:
            tables: of features; all are fitted on the same draws.
            sizes: samples of each class, see ``possible_sizes``.
            draws: of each size.
        """
        rows = []
        work = [(table, size) for size in sizes for table in tables]
        unit, metric = self.fitted.unit_numbers, metrics_of(self.classes)[0]
        for table, size in progress(work, "few labels"):
            scores = []
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
                scores.append(found.score)
            value = self._mean_over_draws(metric, np.array(scores))
            rows.append(self._row(table, "linear", metric, value, size, draws))
        return rows

    def draw(self, size: int, draw: int) -> np.ndarray:
        """Positions of the labelled samples of a draw, ``size`` of each class, sorted."""
        rng = np.random.default_rng([self.seed, size, draw])
        return np.sort(
            np.concatenate(
                [
                    rng.choice(np.flatnonzero(self.fitted.target == label), size, replace=False)
                    for label in range(self.classes)
                ]
            )
        )

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

    def _mean_over_draws(self, metric: str, scores: np.ndarray) -> Interval:
        """Mean over draws (scores [draws, R, C]) of a metric, with its interval."""
        everybody = np.arange(len(self.tested.names))
        values = [resampled_metric(metric, one, self.tested.target)(everybody) for one in scores]
        value = float(np.mean(values))
        weights = self._resampled()
        if weights is None or math.isnan(value):
            return Interval(value, math.nan, math.nan)
        found = np.stack(
            [weighted_metric(metric, one, self.tested.target, weights) for one in scores], axis=1
        )
        rng = np.random.default_rng([self.seed, 1])
        drawn = rng.integers(len(scores), size=(len(weights), len(scores)))
        tail = (1 - CONFIDENCE) / 2
        means = np.take_along_axis(found, drawn, axis=1).mean(axis=1)
        low, high = np.nanquantile(means, [tail, 1 - tail])
        return Interval(value, float(low), float(high))

    def _resampled(self) -> np.ndarray | None:
        """How often each test sample is in each bootstrap sample [RESAMPLES, R]; made once.

        None where a stratum has one unit, so that nothing can be drawn.
        """
        if self._weights is None:
            score = np.zeros((len(self.tested.names), self.classes))
            draws = Draws(
                [SubjectScores(self.tested.names, self.tested.target, score, self.tested.unit)]
            )
            strata = [np.flatnonzero(draws.strata == k) for k in np.unique(draws.strata)]
            if min(map(len, strata)) < 2:
                return None
            rng = np.random.default_rng([self.seed, 0])
            found = []
            for _ in range(RESAMPLES):
                units = np.concatenate([rng.choice(part, len(part)) for part in strata])
                rows = draws.rows(0, units)
                found.append(np.bincount(rows, minlength=len(self.tested.names)))
            self._weights = np.array(found, dtype=np.float64)
        return self._weights


def weighted_metric(
    metric: str, score: np.ndarray, target: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """AUROC of two classes or balanced accuracy, each sample counted as often as it was drawn.

    Args:
        metric: "auroc" or "balanced_accuracy".
        score: [R, C]; target: [R].
        weights: [B, R] counts of B bootstrap samples.

    Returns:
        [B]; NaN where a class that the metric needs was not drawn.
    """
    if metric == "auroc":
        one, zero = weights[:, target == 1], weights[:, target == 0]
        above = score[target == 1, 1][:, None] - score[target == 0, 1][None]
        wins = (above > 0) + 0.5 * (above == 0)
        pairs = one.sum(axis=1) * zero.sum(axis=1)
        with np.errstate(invalid="ignore"):
            found: np.ndarray = ((one @ wins) * zero).sum(axis=1) / pairs
        return found
    hit = score.argmax(axis=1) == target
    recalls = []
    for label in np.unique(target):
        here = weights[:, target == label]
        with np.errstate(invalid="ignore"):
            recalls.append((here @ hit[target == label]) / here.sum(axis=1))
    mean: np.ndarray = np.nanmean(recalls, axis=0)
    return mean


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
