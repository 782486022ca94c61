"""Evaluation of test subjects' scores: metrics with intervals, calibration, threshold, confounds.

Both model families write it as ``evaluation.json``, and beside it ``subjects.csv`` with the scores
and decisions of every subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.evaluation.calibration import best_threshold, brier_score, reliability
from neuromamba.evaluation.confounds import ConfoundReport
from neuromamba.evaluation.intervals import CONFIDENCE, RESAMPLES, Interval
from neuromamba.evaluation.result_files import score_columns
from neuromamba.evaluation.scores import SubjectScores


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the test subjects and what qualifies them.

    Attributes:
        metrics: with intervals; the most probable class decides.
        subjects: number of test subjects (sessions, runs, events).
        validation: the same metrics of the validation subjects; empty if there are none.
        calibration: expected calibration error, Brier score; empty for a regression.
        threshold: chosen on the validation subjects; None if that was not asked for.
        at_threshold: accuracy and balanced accuracy of the test subjects there.
        confounds: see ``confounds.ConfoundReport``; None if none were named.
    """

    metrics: Mapping[str, Interval]
    subjects: int
    validation: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None
    at_threshold: Mapping[str, Interval] = field(default_factory=dict)
    confounds: ConfoundReport | None = None

    def flat(self) -> dict[str, float]:
        """Numbers for ``metrics.json``; the metrics in double precision, unlike the run's own."""
        found = {f"test/{name}": value for name, value in self.calibration.items()}
        found |= {f"val/{name}": value for name, value in self.validation.items()}
        for name, interval in self.metrics.items():
            found[f"test/{name}"] = interval.value
            found |= {f"test/{name}_low": interval.low, f"test/{name}_high": interval.high}
        if self.threshold is not None:
            found["test/threshold"] = self.threshold
            found |= {f"test/{name}_adjusted": i.value for name, i in self.at_threshold.items()}
        return found

    def lines(self) -> list[str]:
        """Lines for the end of a run."""
        lines = [
            f"{name:<24}{interval}   {CONFIDENCE:.0%} over {self.subjects} test subjects"
            for name, interval in self.metrics.items()
        ]
        lines += [f"{name:<24}{value:.3f}" for name, value in self.calibration.items()]
        if self.threshold is not None:
            shown = ", ".join(f"{name} {interval}" for name, interval in self.at_threshold.items())
            lines.append(f"{'threshold':<24}{self.threshold:.3f} (validation); {shown}")
        if self.confounds is not None:
            lines += self.confounds.lines()
        return lines

    def record(self, seed: int) -> dict[str, Any]:
        """Plain containers for ``evaluation.json``; ``seed`` is that of the bootstrap."""
        record = asdict(self) | {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": seed}
        for part in ("metrics", "at_threshold"):
            record[part] = {name: i._asdict() for name, i in getattr(self, part).items()}
        if self.confounds is not None:
            record["confounds"] = self.confounds.record()
        return record


def evaluate_scores(
    test: SubjectScores,
    *,
    validation: SubjectScores | None = None,
    adjust_threshold: bool = False,
    confounds: ConfoundReport | None = None,
    seed: int = 0,
) -> Evaluation:
    """Evaluate the scores of test subjects.

    Args:
        test: their scores.
        validation: those of the validation subjects; None if there are none.
        adjust_threshold: choose the threshold on the validation subjects.
        confounds: report on the same test subjects.
        seed: of the bootstrap.

    Raises:
        UserInputError: no validation subjects of two classes to choose a threshold on.
    """
    threshold, there = None, {}
    if adjust_threshold:
        threshold = _threshold(validation, test)
        there = _at(test, threshold, seed)
    return Evaluation(
        metrics={name: test.interval(name, seed) for name in test.metric_names},
        subjects=len(test.subjects),
        validation={} if validation is None else validation.metrics(),
        calibration=calibration_of(test),
        threshold=threshold,
        at_threshold=there,
        confounds=confounds,
    )


def calibration_of(scores: SubjectScores) -> dict[str, float]:
    """Expected calibration error and Brier score; nothing for a regression."""
    if scores.task_type != "classification":
        return {}
    error = reliability(scores.score, scores.target).expected_calibration_error
    return {"ece": error, "brier": brier_score(scores.score, scores.target)}


def _threshold(validation: SubjectScores | None, test: SubjectScores) -> float:
    if test.task_type != "classification" or test.score.shape[1] != 2:
        raise UserInputError("--adjust_thresh: chooses between two classes; the task has not two.")
    if validation is None or len(np.unique(validation.target)) < 2:
        raise UserInputError(
            "--adjust_thresh: needs validation subjects of both classes (--val_split)."
        )
    return best_threshold(validation.score[:, 1], validation.target)


def _at(test: SubjectScores, threshold: float, seed: int) -> dict[str, Interval]:
    """Accuracy and balanced accuracy of decisions at a threshold."""
    if not test.is_finite:
        nothing = Interval(float("nan"), float("nan"), float("nan"))
        return {"accuracy": nothing, "balanced_accuracy": nothing}
    hit = (test.score[:, 1] >= threshold) == (test.target == 1)
    return {
        "accuracy": test.proportion(hit, seed),
        "balanced_accuracy": test.mean_recall(hit, seed),
    }


def subject_header(scores: SubjectScores, unit: str = "") -> list[str]:
    """Columns of ``subjects.csv``; ``unit`` is that of a regression's values."""
    last = ["unit"] if unit else []
    if scores.task_type == "classification":
        last = ["decision"]
    return ["part", "subject", "target", *score_columns(scores.target, scores.score), *last]


def subject_rows(
    part: str, scores: SubjectScores, threshold: float | None = None, unit: str = ""
) -> Iterator[list[Any]]:
    """Rows of ``subjects.csv``: part, name, target, scores, and the class decided for or unit.

    Where a score is not finite, no class is decided for.
    """
    decided: list[Any] = []
    if scores.task_type == "classification":
        decided = scores.score.argmax(axis=1).tolist()
        if threshold is not None:
            decided = (scores.score[:, 1] >= threshold).astype(int).tolist()
        known = np.isfinite(scores.score).all(axis=1)
        decided = [d if k else "" for d, k in zip(decided, known, strict=True)]
    for i, name in enumerate(scores.subjects):
        row = [part, name, scores.target[i], *map(float, scores.score[i])]
        yield [*row, *(decided[i : i + 1] or ([unit] if unit else []))]
