"""Scores of haxby2001 in ``frozen_decoding.py``; sherlock_pmc's are in ``sherlock_scores``.

Every row is a kind of features and has one value a run that was left out.
"""

from __future__ import annotations

import numpy as np

from neuromamba.evaluation.linear_models import fit_svm, svm_pipeline
from neuromamba.reports.real_subjects.frozen_samples import Samples
from neuromamba.reports.real_subjects.sherlock_scores import PLACES, POOLED, RAW, SHUFFLED, Values

CATEGORIES = 8
SHUFFLES = 5


def haxby_rows(samples: Samples, seed: int) -> Values:
    """Accuracy of a linear support vector machine on the run left out.

    C is chosen in inner folds over the other runs. In the control, which has the C of the true
    labels, the labels of the fitted runs are exchanged within each run, several times.
    """
    fitted, runs = ~samples.held_out, samples.runs
    (tested,) = set(runs[samples.held_out])
    target, true = samples.target[fitted], samples.target[samples.held_out]
    rows: Values = {}
    kinds: dict[str, np.ndarray] = {
        name: samples.features[kind] for name, kind in (PLACES | POOLED).items()
    }
    penalties = {}
    for name, x in (kinds | {RAW: samples.volume}).items():
        model = fit_svm(x[fitted], target, seed, CATEGORIES, groups=runs[fitted])
        found = model.score(x[samples.held_out]).argmax(axis=1)
        rows[name] = {str(tested): float((found == true).mean())}
        penalties[name] = model.penalty
    (name, *_) = PLACES
    rows[SHUFFLED] = {str(tested): shuffled_accuracy(samples, kinds[name], penalties[name], seed)}
    return rows


def shuffled_accuracy(samples: Samples, x: np.ndarray, penalty: float, seed: int) -> float:
    """Mean accuracy with labels exchanged within each fitted run; other ones in every fold."""
    fitted, runs = ~samples.held_out, samples.runs
    (tested,) = set(runs[samples.held_out])
    rng = np.random.default_rng([seed, int(np.flatnonzero(np.unique(runs) == tested)[0])])
    accuracy = []
    for _ in range(SHUFFLES):
        labels = samples.target.copy()
        for run in np.unique(runs[fitted]):
            labels[runs == run] = rng.permutation(labels[runs == run])
        model = svm_pipeline(penalty).fit(x[fitted], labels[fitted])
        found = model.predict(x[samples.held_out])
        accuracy.append((found == samples.target[samples.held_out]).mean())
    return float(np.mean(accuracy))
