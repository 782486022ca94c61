"""Confounds, which could explain a score as well: age, sex, site, motion.

For each confound, how much of the target's and of the score's variance it explains among the test
subjects; what a linear model of the confounds alone achieves; and the metric of the score without
what the confounds explain of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import fdtrc

from neuromamba.common.errors import UserInputError
from neuromamba.evaluation.confound_columns import regressors
from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.linear_models import fit_linear
from neuromamba.evaluation.scores import SubjectScores


class Explained(NamedTuple):
    """Share of variance that a confound explains (adjusted R2), and the p of its F test."""

    share: float
    p: float

    def __str__(self) -> str:
        """``0.120, p 0.03``."""
        return "not defined" if np.isnan(self.share) else f"{self.share:.3f}, p {self.p:.3g}"


class ConfoundReport(NamedTuple):
    """Confounds of a model's test subjects.

    Attributes:
        complete: test subjects with a value of every confound; the report is about them.
        of_target, of_score: confound -> what it explains of either.
        alone: scores of a linear model of the confounds, fitted on training and validation.
        metric: name of the metric below, "auroc" or "pearson_r".
        before, after: the model's metric, as it is and with the confounds regressed out of it.
    """

    complete: int
    of_target: Mapping[str, Explained]
    of_score: Mapping[str, Explained]
    alone: SubjectScores
    metric: str
    before: Interval
    after: Interval

    def record(self) -> dict[str, Any]:
        """Convert the result to plain containers, without the scores."""
        return {
            "subjects": self.complete,
            "of_target": {name: found._asdict() for name, found in self.of_target.items()},
            "of_score": {name: found._asdict() for name, found in self.of_score.items()},
            "alone": {
                name: self.alone.interval(name)._asdict() for name in self.alone.metric_names
            },
            "metric": self.metric,
            "before": self.before._asdict(),
            "after": self.after._asdict(),
        }

    def lines(self) -> list[str]:
        """Lines for the end of a run."""
        lines = [f"confounds, of {self.complete} test subjects (adjusted R2, p)"]
        for name, found in self.of_target.items():
            score = self.of_score[name]
            lines.append(f"  {name:<22}target {found}; score {score}")
        alone = self.alone.interval(self.metric)
        lines.append(f"  {self.metric} of the confounds alone {alone}")
        lines.append(f"  {self.metric} {self.before}; confounds regressed out {self.after}")
        return lines


def explained(x: np.ndarray, value: np.ndarray) -> Explained:
    """Ordinary least squares of a value [S] on x [S, k] and a constant."""
    samples, used = len(value), np.linalg.matrix_rank(x - x.mean(axis=0))
    free = samples - used - 1
    if free < 1 or not used or np.ptp(value) == 0:
        return Explained(float("nan"), float("nan"))
    # Imported here: it takes a second, and most reports have no confounds.
    from sklearn.metrics import r2_score

    share = r2_score(value, value - _residual(x, value))
    if share >= 1:
        return Explained(1.0, 0.0)
    ratio = (share / used) / ((1 - share) / free)
    above = float(fdtrc(used, free, ratio))  # of the F distribution
    return Explained(1 - (1 - share) * (samples - 1) / free, above)


def _residual(x: np.ndarray, value: np.ndarray) -> np.ndarray:
    matrix = np.column_stack([np.ones(len(value)), x])
    return value - matrix @ np.linalg.lstsq(matrix, value, rcond=None)[0]


def confound_report(
    fitted: Mapping[str, Any],
    scores: SubjectScores,
    columns: Mapping[str, Mapping[str, str]],
    seed: int = 0,
) -> ConfoundReport:
    """Compare a model's test scores with the confounds.

    The regression that takes them out is fitted on the test subjects themselves, which removes all
    that it can: what is left of the metric is not linear in the confounds.

    Args:
        fitted: subject -> target, of the training and validation subjects.
        scores: of the test subjects.
        columns: confound -> subject -> text; a subject without a value is left out.
        seed: of draws and folds.

    Raises:
        UserInputError: too few subjects have values, a confound is constant, or a score is not
            finite.
    """
    if not np.isfinite(scores.score).all():
        raise UserInputError(
            "--confounds: scores of test subjects are not finite, so they cannot be compared with "
            "confounds. Leave --confounds out, and look for what made the model diverge."
        )
    complete = set.intersection(*(set(values) for values in columns.values()))
    train = [name for name in fitted if name in complete]
    test = [i for i, name in enumerate(scores.subjects) if name in complete]
    if len(train) < 3 or len(test) < 3:
        raise UserInputError(
            f"--confounds: {len(train)} subjects to fit on and {len(test)} test subjects have "
            f"values of {', '.join(columns)}; expected 3 or more of each."
        )
    kept = scores.subset(test)
    everybody = [*train, *kept.subjects]
    of_all = regressors({n: [values[s] for s in everybody] for n, values in columns.items()})
    of_test = {name: values[len(train) :] for name, values in of_all.items()}
    together = np.hstack(list(of_all.values()))
    model = fit_linear(
        together[: len(train)],
        np.array([fitted[name] for name in train], dtype=kept.target.dtype),
        seed,
        classes=kept.score.shape[1],
    )
    # One column for two classes, and logits, which a linear model may well explain.
    raw = _linear_scores(kept)
    truth = _indicators(kept)
    metric = kept.main_metric
    left = np.column_stack([_residual(together[len(train) :], column) for column in raw.T])
    return ConfoundReport(
        len(test),
        {name: _mean_explained(values, truth) for name, values in of_test.items()},
        {name: _mean_explained(values, raw) for name, values in of_test.items()},
        kept._replace(score=model.score(together[len(train) :])),
        metric,
        _interval(raw, kept, metric, seed),
        _interval(left, kept, metric, seed),
    )


def _linear_scores(scores: SubjectScores) -> np.ndarray:
    """[S, k]: logit of class 1 of two, logits of more classes, or the prediction."""
    if scores.task_type == "regression":
        return scores.score
    p = np.clip(scores.score, 1e-9, 1 - 1e-9)
    logit = np.log(p) - np.log1p(-p)
    return logit[:, 1:] if logit.shape[1] == 2 else logit


def _indicators(scores: SubjectScores) -> np.ndarray:
    """[S, k]: the target in the shape of ``_linear_scores``."""
    if scores.task_type == "regression":
        return scores.target[:, None]
    truth = np.eye(scores.score.shape[1])[scores.target]
    return truth[:, 1:] if truth.shape[1] == 2 else truth


def _mean_explained(x: np.ndarray, values: np.ndarray) -> Explained:
    """Mean share over the columns; the smallest p times their number (Bonferroni)."""
    found = [explained(x, column) for column in values.T]
    shares, ps = [e.share for e in found], [e.p for e in found]
    return Explained(float(np.mean(shares)), float(np.minimum(1.0, np.min(ps) * len(ps))))


def _interval(raw: np.ndarray, scores: SubjectScores, metric: str, seed: int) -> Interval:
    """Interval of scores in the shape of ``_linear_scores``; a class is compared with the rest."""
    both = scores.task_type == "classification" and raw.shape[1] == 1
    columns = np.hstack([-raw, raw]) if both else raw
    return scores._replace(score=columns).interval(metric, seed)
