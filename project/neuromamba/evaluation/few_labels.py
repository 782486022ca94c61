"""Learning from few labelled subjects: draws of them, and the mean over draws with its interval.

All models that are compared learn from the same subjects in each draw and are tested on the same
test subjects. Two things are left to chance, which subjects had labels and which were tested, so a
bootstrap sample draws both: draws of labelled subjects with replacement, and test subjects, within
classes, with replacement. Two models are compared on the same bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from neuromamba.evaluation.intervals import CONFIDENCE, RESAMPLES, Interval, has_width
from neuromamba.evaluation.scores import Draws, SubjectScores


def draw_subjects(
    classes: Mapping[str, int | float], per_class: int, *, draw: int, seed: int = 0
) -> list[str]:
    """Draw labelled subjects, as many of each class.

    Args:
        classes: subject -> class, of the training subjects.
        per_class: subjects of each class.
        draw: number of the draw. A smaller number of subjects is a subset of a larger one of the
            same draw.
        seed: of all draws.

    Returns:
        Their names, sorted.

    Raises:
        ValueError: a class has fewer subjects.
    """
    chosen: list[str] = []
    for label in sorted(set(classes.values())):
        names = sorted(name for name, one in classes.items() if one == label)
        if len(names) < per_class:
            raise ValueError(f"class {label} has {len(names)} subjects, asked for {per_class}")
        order = np.random.default_rng([seed, draw, int(label)]).permutation(len(names))
        chosen += [names[i] for i in order[:per_class]]
    return sorted(chosen)


class FewLabelScores:
    """Test scores of a model in several draws of labelled subjects.

    Args:
        sets: of each draw, of the same test subjects in the same order.
        metric: "auroc" (two classes) or "balanced_accuracy".
    """

    def __init__(self, sets: Sequence[SubjectScores], metric: str) -> None:
        if any(one.subjects != sets[0].subjects for one in sets):
            raise ValueError("expected the same test subjects in all draws")
        self.sets, self.metric = list(sets), metric

    @property
    def values(self) -> list[float]:
        """The metric in each draw."""
        return [one.metrics()[self.metric] for one in self.sets]

    def interval(self, seed: int = 0) -> Interval:
        """Mean over draws with its 95 % interval: percentiles over bootstrap samples.

        Its bounds are NaN for a single draw, where a class has one test
        subject, or where no sample differs from another.
        """
        return self._interval(self.values, self._resampled(seed), seed)

    def difference(self, other: FewLabelScores, seed: int = 0) -> Interval:
        """Mean over draws of this less another model, both on the same bootstrap samples.

        Raises:
            ValueError: the other was not tested on the same subjects in as many draws.
        """
        if other.sets[0].subjects != self.sets[0].subjects or len(other.sets) != len(self.sets):
            raise ValueError("expected the same test subjects and as many draws")
        values = [a - b for a, b in zip(self.values, other.values, strict=True)]
        return self._interval(values, self._resampled(seed) - other._resampled(seed), seed)

    def _resampled(self, seed: int) -> np.ndarray:
        """The metric of each bootstrap sample of test subjects and each draw; [B, draws]."""
        weights = bootstrap_weights(self.sets[0], seed)
        return np.stack(
            [weighted_metric(self.metric, one.score, one.target, weights) for one in self.sets],
            axis=1,
        )

    def _interval(self, values: Sequence[float], resampled: np.ndarray, seed: int) -> Interval:
        value = float(np.mean(values))
        if len(values) < 2 or not np.isfinite(resampled).any() or math.isnan(value):
            return Interval(value, math.nan, math.nan)
        rng = np.random.default_rng([seed, 1])
        drawn = rng.integers(len(values), size=resampled.shape)
        means = np.take_along_axis(resampled, drawn, axis=1).mean(axis=1)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.nanquantile(means, [tail, 1 - tail])
        if not has_width(low, high):
            return Interval(value, math.nan, math.nan)
        return Interval(value, float(low), float(high))


def bootstrap_weights(scores: SubjectScores, seed: int = 0) -> np.ndarray:
    """How often each test subject is in each bootstrap sample, [RESAMPLES, R].

    Units (``SubjectScores.resampling_unit``) are drawn within classes; NaN where a class has one,
    so that nothing can be drawn.
    """
    unit = scores.subjects if scores.resampling_unit is None else scores.resampling_unit
    return _weights(scores.subjects, tuple(scores.target.tolist()), unit, seed)


@lru_cache(maxsize=4)  # every model and number of labels is tested on the same subjects
def _weights(
    subjects: tuple[str, ...], target: tuple[int, ...], unit: tuple[str, ...], seed: int
) -> np.ndarray:
    draws = Draws([SubjectScores(subjects, np.array(target), np.zeros((len(target), 1)), unit)])
    strata = [np.flatnonzero(draws.strata == k) for k in np.unique(draws.strata)]
    count = len(subjects)
    if min(map(len, strata)) < 2:
        return np.full((RESAMPLES, count), np.nan)
    rng = np.random.default_rng([seed, 0])
    found = []
    for _ in range(RESAMPLES):
        units = np.concatenate([rng.choice(part, len(part)) for part in strata])
        found.append(np.bincount(draws.rows(0, units), minlength=count))
    return np.array(found, dtype=np.float64)


def weighted_metric(
    metric: str, score: np.ndarray, target: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """AUROC of two classes or balanced accuracy, each subject counted as often as it was drawn.

    Args:
        metric: "auroc" or "balanced_accuracy".
        score: [R, C]; target: [R].
        weights: [B, R] counts of B bootstrap samples.

    Returns:
        [B]; NaN where a class that the metric needs was not drawn.
    """
    with np.errstate(invalid="ignore"):
        if metric == "auroc":
            one, zero = weights[:, target == 1], weights[:, target == 0]
            above = score[target == 1, 1][:, None] - score[target == 0, 1][None]
            wins = (above > 0) + 0.5 * (above == 0)
            pairs = one.sum(axis=1) * zero.sum(axis=1)
            auroc: np.ndarray = ((one @ wins) * zero).sum(axis=1) / pairs
            return auroc
        hit = score.argmax(axis=1) == target
        recalls = []
        for label in np.unique(target):
            here = weights[:, target == label]
            recalls.append((here @ hit[target == label]) / here.sum(axis=1))
        mean: np.ndarray = np.mean(recalls, axis=0)
        return mean
