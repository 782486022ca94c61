"""What a finished run's predictions say: metrics with intervals, calibration, threshold, confounds.

``evaluation.json`` of a run folder; ``subjects.csv`` beside it has the scores and decisions of
every validation and test subject. Both follow from the predictions alone (confounds from the
store's tables, too), so they can be made again at any time.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from neuromamba.common.atomic_files import atomic_path, write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.calibration import best_threshold, brier_score, reliability
from neuromamba.evaluation.confounds import ConfoundReport, confound_report
from neuromamba.evaluation.intervals import CONFIDENCE, RESAMPLES, Interval, bootstrap_interval
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.fmamba.run_folder import RunFolder

FILE, SUBJECTS = "evaluation.json", "subjects.csv"


@dataclass(frozen=True)
class Evaluation:
    """See the module.

    Attributes:
        metrics: of the test subjects, the decision at 0.5 or the most probable class.
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
        """What a user reads at the end of a run."""
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


def evaluate_run(
    run: RunFolder,
    data: RunData,
    confounds: Sequence[str] = (),
    adjust_threshold: bool = False,
    seed: int = 0,
) -> Evaluation:
    """Evaluate a run and write ``evaluation.json`` and ``subjects.csv``.

    Args:
        run: a finished one, of a downstream task.
        data: of the run.
        confounds: columns of the store's tables.
        adjust_threshold: choose the threshold on the validation subjects.
        seed: of the bootstrap.

    Raises:
        UserInputError: no predictions; no validation subjects of both classes to choose a
            threshold on; a confound that no table has.
    """
    test = run.scores("test")
    validation = run.scores("val") if run.has_scores("val") else None
    metrics = {name: test.interval(name, seed) for name in test.metric_names}
    calibration: dict[str, float] = {}
    if test.task_type == "classification":
        error = reliability(test.score, test.target).expected_calibration_error
        calibration = {"ece": error, "brier": brier_score(test.score, test.target)}
    threshold, there = None, {}
    if adjust_threshold:
        threshold = _threshold(validation, test)
        there = _at(test, threshold, seed)
    report = None
    if confounds:
        fitted = data.named_targets("train", "val")
        report = confound_report(fitted, test, data.confounds(confounds), seed)
    found = Evaluation(
        metrics,
        len(test.subjects),
        {} if validation is None else validation.metrics(),
        calibration,
        threshold,
        there,
        report,
    )
    _write_subjects(run, {"val": validation, "test": test}, threshold)
    text = json.dumps(_plain(_record(found, seed)), indent=1, allow_nan=False)
    write_text_atomically(run.path / FILE, text + "\n")
    return found


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
    hit = (test.score[:, 1] >= threshold) == (test.target == 1)

    def balanced(chosen: np.ndarray) -> float:
        of_class = [hit[chosen][test.target[chosen] == label] for label in (0, 1)]
        return float(np.mean([hits.mean() for hits in of_class if len(hits)]))

    statistics = {
        "accuracy": lambda chosen: float(hit[chosen].mean()),
        "balanced_accuracy": balanced,
    }
    return {
        name: bootstrap_interval(statistic, test.strata, seed)
        for name, statistic in statistics.items()
    }


# ------------------------------------------------------------------------------ files


def _record(found: Evaluation, seed: int) -> dict[str, Any]:
    record = asdict(found) | {"confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": seed}
    for part in ("metrics", "at_threshold"):
        record[part] = {name: i._asdict() for name, i in getattr(found, part).items()}
    if found.confounds is not None:
        record["confounds"] = found.confounds.record()
    return record


def _plain(value: Any) -> Any:
    """Containers for JSON; null for what is not defined."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_subjects(
    run: RunFolder, parts: Mapping[str, SubjectScores | None], threshold: float | None
) -> None:
    """A row a subject: part, name, target, scores, and the class decided for."""
    with (
        atomic_path(run.path / SUBJECTS) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        for part, scores in parts.items():
            if scores is None:
                continue
            decided: list[Any] = []
            columns = ["prediction"]
            if scores.task_type == "classification":
                columns = [f"prob_{i}" for i in range(scores.score.shape[1])] + ["decision"]
                decided = scores.score.argmax(axis=1).tolist()
                if threshold is not None:
                    decided = (scores.score[:, 1] >= threshold).astype(int).tolist()
            if stream.tell() == 0:
                writer.writerow(["part", "subject", "target", *columns])
            for i, name in enumerate(scores.subjects):
                row = [part, name, scores.target[i], *map(float, scores.score[i])]
                writer.writerow([*row, *decided[i : i + 1]])
