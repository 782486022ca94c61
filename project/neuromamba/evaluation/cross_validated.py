"""Probes of features by cross-validation, where there is no split of the subjects yet."""

from __future__ import annotations

import numpy as np

from neuromamba.evaluation.scores import SubjectScores

FOLDS = 5
LEAST = 10  # subjects of a class, or in all for a regression: below, nothing can be said


def cross_validated(
    subjects: tuple[str, ...], x: np.ndarray, y: np.ndarray, *, classes: int, seed: int = 0
) -> dict[str, SubjectScores]:
    """Predict each subject by probes that were fitted on the others.

    Args:
        subjects: S names, each once.
        x: [S, D] features.
        y: int [S] classes, or float [S] values.
        classes: number of classes; 1 of a regression.
        seed: of the folds.

    Returns:
        "linear" and "knn" -> the scores of all subjects; {} where a class has fewer than ``LEAST``
        subjects.
    """
    counts = np.bincount(y, minlength=classes) if classes > 1 else np.array([len(y)])
    if counts.min() < LEAST:
        return {}
    # They bring scikit-learn, which takes a second, and a page of few scans has no probes.
    from sklearn.model_selection import KFold, StratifiedKFold

    from neuromamba.evaluation.probes import Fitted, knn_probe, linear_probe

    if classes > 1:
        folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y))
    else:
        folds = list(KFold(FOLDS, shuffle=True, random_state=seed).split(x))
    found = {name: np.zeros((len(y), classes)) for name in ("linear", "knn")}
    for here, there in folds:
        fitted: dict[str, Fitted] = {
            "linear": linear_probe(
                x[here], y[here], x[there], classes=classes, unit=np.arange(len(here)), seed=seed
            ),
            "knn": knn_probe(x[here], y[here], x[there], classes=classes),
        }
        for name, one in fitted.items():
            found[name][there] = one.score
    return {name: SubjectScores(subjects, y, score) for name, score in found.items()}
