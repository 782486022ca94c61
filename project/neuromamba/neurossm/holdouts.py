"""Evaluation of the holdouts: intervals, differences from the baselines, calibration, confounds.

Every seed has a holdout of its own and a fit of its own, and the holdouts of different seeds
overlap in subjects. So intervals are given

- for each holdout: over its subjects, drawn within classes (whole families with
  ``--group_column``; whole subjects where a subject has scans of several classes);
- for the mean over seeds: drawn from the subjects of all holdouts together, where a subject drawn
  counts in every holdout that it belongs to.

Neither draws training subjects, splits or seeds. ``evaluation.json`` and ``subjects.csv`` of
``Results/<DATASET>/<MODEL>/`` hold what is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.holdout import HOLDOUT_NAME, Split
from neuromamba.evaluation.confound_columns import check_confounds
from neuromamba.evaluation.confounds import confound_report
from neuromamba.evaluation.intervals import CONFIDENCE, RESAMPLES, Interval
from neuromamba.evaluation.result_files import EVALUATION, SUBJECTS, write_record, write_rows
from neuromamba.evaluation.scores import Holdouts, SubjectScores
from neuromamba.evaluation.summary import (
    Evaluation,
    evaluate_scores,
    subject_header,
    subject_rows,
)
from neuromamba.neurossm.results import Results, subject_scores

Intervals = Mapping[str, Interval]  # metric -> value with its interval
BOOTSTRAP_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """The holdout of one seed.

    Attributes:
        seed: of split and fits.
        scores: model -> scores of the same subjects; the evaluated model first.
        evaluation: of the evaluated model.
        differences: baseline -> metric -> the evaluated model less the baseline, paired.
    """

    seed: int
    scores: Mapping[str, SubjectScores]
    evaluation: Evaluation
    differences: Mapping[str, Intervals]


@dataclass(frozen=True, kw_only=True)
class HoldoutReport:
    """The holdouts of all seeds.

    Attributes:
        model: name of the evaluated model.
        drawn: what the intervals draw, in words.
        holdouts: one a seed.
        part: ``HOLDOUT_NAME``, or ``EXTERNAL``.
        metrics: means over seeds; empty for a single seed.
        differences: baseline -> metric -> mean difference over seeds; empty for a single seed.
    """

    model: str
    drawn: str
    holdouts: Sequence[Holdout]
    part: str = HOLDOUT_NAME
    metrics: Intervals = field(default_factory=dict)
    differences: Mapping[str, Intervals] = field(default_factory=dict)

    @property
    def verdict_on(self) -> Mapping[str, Intervals]:
        """Differences that a statement about the baselines rests on: over all seeds."""
        return self.differences or self.holdouts[0].differences

    @property
    def _what(self) -> str:
        return "holdout" if self.part == HOLDOUT_NAME else "the external cohort, by the models"

    def record(self) -> dict[str, Any]:
        """Plain containers for ``evaluation.json``."""
        record: dict[str, Any] = {
            "model": self.model,
            "drawn": self.drawn,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "holdouts": {
                str(one.seed): one.evaluation.record(BOOTSTRAP_SEED)
                | {"differences": _plain(one.differences)}
                for one in self.holdouts
            },
        }
        if self.metrics:
            record["mean_over_seeds"] = {
                "metrics": {name: i._asdict() for name, i in self.metrics.items()},
                "differences": _plain(self.differences),
            }
        return record

    def lines(self) -> list[str]:
        """Lines for the end of a run."""
        lines = []
        for one in self.holdouts:
            lines.append(f"{self._what} of seed {one.seed}, {self.model}:")
            lines += [f"  {line}" for line in one.evaluation.lines()]
            main = one.scores[self.model].main_metric
            lines += _difference_lines(one.differences, main)
        if self.metrics:
            lines.append(f"{self._what} of {len(self.holdouts)} seeds, mean, {self.model}:")
            lines += [f"  {name:<24} {interval}" for name, interval in self.metrics.items()]
            lines += _difference_lines(self.differences, main)
        return lines

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json`` and ``subjects.csv``."""
        write_record(self.record(), folder / EVALUATION)
        first = self.holdouts[0].scores[self.model]
        write_rows(["seed", *subject_header(first)], self._subjects(), folder / SUBJECTS)

    def _subjects(self) -> Iterator[list[Any]]:
        for one in self.holdouts:
            for row in subject_rows(self.part, one.scores[self.model]):
                yield [one.seed, *row]


def _plain(differences: Mapping[str, Intervals]) -> dict[str, Any]:
    return {
        name: {metric: i._asdict() for metric, i in found.items()}
        for name, found in differences.items()
    }


def _difference_lines(differences: Mapping[str, Intervals], main: str) -> list[str]:
    return [
        f"  {f'{metric} less {name}':<24} {found[metric]}"
        for name, found in differences.items()
        for metric in (main,)
    ]


def check_holdouts(cohort: Cohort, splits: Mapping[int, Sequence[Split]]) -> None:
    """Refuse before the fits confounds that would say nothing after them.

    Raises:
        UserInputError: subjects have scans of several classes; or see ``check_confounds``.
    """
    if not cohort.confounds:
        return
    classes: dict[str, set[float]] = {}
    for scan in cohort.scans:
        classes.setdefault(scan.subject, set()).add(scan.label)
    several = next((subject for subject, labels in classes.items() if len(labels) > 1), None)
    if several is not None:
        raise UserInputError(
            f"--confounds: subjects have scans of several classes or values (e.g. {several}), and "
            f"a column "
            f"of the subjects is the same for all of them, so that it explains none. Leave the "
            f"flag out."
        )
    for of_seed in splits.values():
        split = of_seed[-1]
        parts = {"training": split.train, "test": split.test}
        names = {what: _subjects_of(cohort, rows) for what, rows in parts.items()}
        check_confounds(cohort.confounds, {what: list(found) for what, found in names.items()})


def _subjects_of(cohort: Cohort, rows: Any) -> dict[str, float]:
    """Subject -> class or value."""
    return {cohort.scans[i].subject: cohort.scans[i].label for i in rows}


def evaluate_holdouts(
    cohort: Cohort,
    splits: Mapping[int, Sequence[Split]],
    results: Results,
    part: str = HOLDOUT_NAME,
) -> HoldoutReport:
    """Evaluate the first model on the holdout of every seed, beside the others.

    Args:
        cohort: the data; with ``EXTERNAL`` the other cohort.
        splits: seed -> splits, the holdout last.
        results: model -> its fits; the evaluated model first.
        part: ``HOLDOUT_NAME``, or ``EXTERNAL`` for scans of another file by the same models.
    """
    group_of = None
    if cohort.group_column is not None:
        group_of = {scan.subject: scan.group for scan in cohort.scans}
    scores: dict[int, dict[str, SubjectScores]] = {seed: {} for seed in splits}
    for name, of_model in results.items():
        for result in of_model:
            if result.split == part:
                scores[result.seed][name] = subject_scores(result.predictions, group_of)
    model, *baselines = results
    holdouts = [
        _holdout(cohort, seed, splits[seed][-1], of_seed) for seed, of_seed in scores.items()
    ]
    drawn = "subjects" if cohort.details.is_regression else "subjects, within classes"
    first = holdouts[0].scores[model]
    if group_of is not None:
        drawn = f"groups of the column {cohort.group_column}"
    elif first.resampling_unit is not None:
        drawn = "subjects, each with its scans of all classes"
    if len(holdouts) == 1:
        return HoldoutReport(model=model, drawn=drawn, holdouts=holdouts, part=part)
    pooled = {name: Holdouts([one.scores[name] for one in holdouts]) for name in results}
    return HoldoutReport(
        model=model,
        drawn=drawn,
        holdouts=holdouts,
        part=part,
        metrics={n: pooled[model].interval(n, BOOTSTRAP_SEED) for n in first.metric_names},
        differences={
            name: {
                metric: pooled[model].difference(pooled[name], metric, BOOTSTRAP_SEED)
                for metric in first.metric_names
            }
            for name in baselines
        },
    )


def _holdout(
    cohort: Cohort, seed: int, split: Split, scores: Mapping[str, SubjectScores]
) -> Holdout:
    own, *others = scores.values()
    report = None
    if cohort.confounds:
        fitted = _subjects_of(cohort, split.train)
        report = confound_report(fitted, own, cohort.confounds, BOOTSTRAP_SEED)
    return Holdout(
        seed=seed,
        scores=scores,
        evaluation=evaluate_scores(own, confounds=report, seed=BOOTSTRAP_SEED),
        differences={
            name: {
                metric: own.difference(other, metric, BOOTSTRAP_SEED) for metric in own.metric_names
            }
            for name, other in zip(list(scores)[1:], others, strict=True)
        },
    )
