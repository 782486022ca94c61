"""Propensity matching: pairs of subjects of two classes that agree in covariates.

The propensity score is the probability of class 1 given the covariates, by logistic regression
(Rosenbaum and Rubin 1983). Each subject of the smaller class takes the nearest one left of the
other class on the logit, if it lies within a caliper of so many standard deviations of the logit
(Austin 2011 recommends 0.2). Who finds no partner is left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neuromamba.common.text import number


@dataclass(frozen=True)
class Matched:
    """The result of a matching.

    Attributes:
        subjects: kept, both classes in equal number, sorted.
        difference_before, difference_after: largest standardised mean difference of a covariate
            between the classes; 0.1 and less counts as balanced.
    """

    subjects: tuple[str, ...]
    difference_before: float
    difference_after: float


def covariate_matrix(values: Sequence[Sequence[str]]) -> np.ndarray:
    """Covariates as standardised numbers, float64 [S, C]; text becomes one column a value.

    Args:
        values: for each covariate the text of its S values.
    """
    columns = []
    for texts in values:
        numbers = [number(text) for text in texts]
        if all(value is not None for value in numbers):
            columns.append(np.array(numbers, dtype=np.float64))
        else:
            # One value of each text follows from the others.
            columns += [
                np.array([text == level for text in texts], dtype=np.float64)
                for level in sorted(set(texts))[1:]
            ]
    matrix = np.stack(columns, axis=1) if columns else np.zeros((len(values[0]), 0))
    spread = matrix.std(axis=0)
    return (matrix - matrix.mean(axis=0)) / np.where(spread > 0, spread, 1.0)


def propensity_logits(covariates: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Logit of the probability of class 1 for each subject, float64 [S]."""
    if not covariates.shape[1]:
        return np.zeros(len(classes))
    from sklearn.linear_model import LogisticRegression

    return np.asarray(
        LogisticRegression(max_iter=1000).fit(covariates, classes).decision_function(covariates)
    )


def mean_difference(covariates: np.ndarray, classes: np.ndarray) -> float:
    """Largest standardised mean difference between the classes over the covariates [S, C]."""
    one, other = covariates[classes == 1], covariates[classes == 0]
    if not len(one) or not len(other) or not covariates.shape[1]:
        return 0.0
    spread = np.sqrt((one.var(axis=0) + other.var(axis=0)) / 2)
    gap = np.abs(one.mean(axis=0) - other.mean(axis=0))
    return float((gap / np.where(spread > 0, spread, 1.0)).max())


def match(
    subjects: Sequence[str],
    classes: np.ndarray,
    logits: np.ndarray,
    covariates: np.ndarray,
    caliper: float,
) -> Matched:
    """Pair the subjects of two classes, greedily from the largest logit down, each used once.

    Args:
        subjects: S names.
        classes: int [S], 0 or 1.
        logits: [S], of the propensity score.
        covariates: [S, C], for the report.
        caliper: largest distance of a pair, on the scale of ``logits``.
    """
    few = 0 if np.count_nonzero(classes == 0) <= np.count_nonzero(classes == 1) else 1
    # By logit, then name: the result does not depend on the order of the subjects.
    order = sorted(range(len(subjects)), key=lambda i: (logits[i], subjects[i]))
    free = [i for i in order if classes[i] != few]
    free_logits = [float(logits[i]) for i in free]
    kept: list[int] = []
    for i in reversed([i for i in order if classes[i] == few]):
        at = bisect_left(free_logits, logits[i])
        near = min(
            (j for j in (at - 1, at) if 0 <= j < len(free)),
            key=lambda j: (abs(free_logits[j] - logits[i]), j),
            default=None,
        )
        if near is not None and abs(free_logits[near] - logits[i]) <= caliper:
            kept += [i, free.pop(near)]
            free_logits.pop(near)
    after = np.array(sorted(kept), dtype=np.int64)
    return Matched(
        tuple(sorted(subjects[i] for i in kept)),
        mean_difference(covariates, classes),
        mean_difference(covariates[after], classes[after]),
    )


def match_within(
    parts: Sequence[Sequence[str]],
    classes: Mapping[str, int | float],
    values: Sequence[Mapping[str, str]],
    caliper: float,
) -> list[Matched]:
    """Match within each part of a split, with one propensity model of all subjects.

    Args:
        parts: subjects of the parts.
        classes: subject -> 0 or 1.
        values: for each covariate, subject -> text.
        caliper: in standard deviations of the logit over all subjects.
    """
    everybody = [name for part in parts for name in part]
    labels = np.array([classes[name] for name in everybody], dtype=np.int64)
    covariates = covariate_matrix([[column[name] for name in everybody] for column in values])
    logits = propensity_logits(covariates, labels)
    distance = caliper * float(logits.std()) if len(logits) else 0.0
    matched, start = [], 0
    for part in parts:
        rows = slice(start, start + len(part))
        start += len(part)
        matched.append(match(part, labels[rows], logits[rows], covariates[rows], distance))
    return matched
