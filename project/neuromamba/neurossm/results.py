"""Results of fits: their metrics, their files, and their mean and standard deviation.

``Results/<DATASET>/<MODEL>/`` holds for each fit a folder ``seed_<S>/<split>/`` with
``predictions.csv`` and ``metrics.json``, which is written last: a fit that has it is finished.
``results.csv`` and ``summary.json`` are made from these after every fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.data.regions.holdout import EXTERNAL, HOLDOUT_NAME
from neuromamba.evaluation import result_files
from neuromamba.evaluation.metrics import METRICS, balanced_accuracy
from neuromamba.evaluation.result_files import PREDICTIONS, Predictions
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.neurossm.config import COMBAT

# Metrics that every result has.
_ALWAYS = {
    "classification": (
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "macro_precision",
        "macro_recall",
        "auroc",
    ),
    "regression": ("mae", "pearson_r", "r2", "mse"),
}
# With those that the task type has been given since, which results of before do not hold.
METRIC_NAMES = {
    name: tuple(dict.fromkeys((*always, *TASK_TYPES[name].metrics)))
    for name, always in _ALWAYS.items()
}
# That models are compared by over splits, the main one first.
COMPARED = {
    "classification": ("auroc", "balanced_accuracy", "accuracy"),
    "regression": ("pearson_r", "mae", "r2"),
}
# What the baselines are, for pages and model cards.
_TEXTS = {
    "FC": "{kind} regression on the correlations between regions (Fisher's z)",
    "PartialCorrelation": "{kind} regression on the partial correlations between regions",
    "Tangent": "{kind} regression on the correlation matrix in the tangent space of the training "
    "scans' mean, mostly the strongest linear model",
    "MeanVariance": "{kind} regression on each region's mean and variance, which NeuroSSM does "
    "not see",
    "Confounds": "{kind} regression on the columns of --confounds alone, without the scans",
    "MLP": "network with one hidden layer on the correlations between regions",
    "Untrained": "{kind} regression on the features of a NeuroSSM with random weights, over "
    "which a trained one gains what it has learned",
}
BASELINES = frozenset(_TEXTS)
# Decides for the class whose probability exceeds its share of the training scans most, which gives
# the best expected balanced accuracy if probabilities are calibrated. The most probable class may
# be the same for every scan where the other one is rare.
AT_PREVALENCE = "balanced_accuracy_at_prevalence"
_LAST = ("scans_fitted", "scans_tested", "seconds")
PARTS = ("cross_validation", HOLDOUT_NAME, EXTERNAL)


def baseline_text(name: str, task_type: str = "classification") -> str | None:
    """What a baseline is, without a full stop; None of a network."""
    text = _TEXTS.get(name.removesuffix(COMBAT))
    if text is not None and name.endswith(COMBAT):
        return (
            f"the same as {name.removesuffix(COMBAT)}, after differences between sites were "
            "removed from its features by ComBat"
        )
    kind = "logistic" if task_type == "classification" else "ridge"
    return None if text is None else text.format(kind=kind)


class FitResult(NamedTuple):
    """A fit that has been scored.

    Attributes:
        seed, split: which one.
        predictions: of its test scans, probabilities of the classes or values.
        metrics: over scans; ``subject/<name>`` over subjects, where some have several scans of a
            class or value (scores averaged).
    """

    seed: int
    split: str
    predictions: Predictions
    metrics: dict[str, float]

    @property
    def task_type(self) -> str:
        """Key of ``TASK_TYPES``."""
        return _task_type(self.predictions)

    @property
    def part(self) -> str:
        """One of ``PARTS``."""
        return self.split if self.split in PARTS else PARTS[0]


Results = Mapping[str, Sequence[FitResult]]  # model -> its fits


def task_type_of(results: Results) -> str:
    """Key of ``TASK_TYPES`` of an evaluation's results."""
    return next(iter(results.values()))[0].task_type


def _task_type(found: Predictions) -> str:
    return "classification" if found.target.dtype.kind in "iu" else "regression"


def subject_scores(found: Predictions, group_of: Mapping[str, str] | None = None) -> SubjectScores:
    """Average the scores of each subject's scans of a class, or of a value.

    Args:
        found: predictions of scans.
        group_of: subject -> what is not split (its family), which bootstraps draw; None where
            subjects are drawn.

    Returns:
        A row for each subject and class, named after the subject; where subjects have scans of
        several classes or values, rows are named ``<subject>/<class index or value>`` and drawn
        together.
    """
    pairs: dict[tuple[str, int], list[int]] = {}
    for row, key in enumerate(zip(found.subject, found.target.tolist(), strict=True)):
        pairs.setdefault(key, []).append(row)
    keys = sorted(pairs)
    several = len({subject for subject, _ in keys}) < len(keys)
    names = tuple(f"{subject}/{label:.9g}" if several else subject for subject, label in keys)
    unit = None
    if several or group_of is not None:
        unit = tuple(subject if group_of is None else group_of[subject] for subject, _ in keys)
    return SubjectScores(
        names,
        np.array([label for _, label in keys]),
        np.stack([found.score[pairs[key]].mean(axis=0) for key in keys]),
        unit,
    )


def metrics_of(found: Predictions, shares: np.ndarray | None = None) -> dict[str, float]:
    """Compute the metrics of a fit, see ``FitResult.metrics``.

    Args:
        found: predictions of scans.
        shares: [classes], of the training scans, for ``AT_PREVALENCE``; None leaves it out.
    """
    metrics = _metrics(found, shares)
    subjects = subject_scores(found)
    if len(subjects.subjects) < len(found.subject):
        names = subjects.subjects
        over = _metrics(Predictions(names, names, subjects.target, subjects.score), shares)
        metrics |= {f"subject/{name}": value for name, value in over.items()}
    return metrics


def _metrics(found: Predictions, shares: np.ndarray | None) -> dict[str, float]:
    score, target = torch.from_numpy(found.score), torch.from_numpy(found.target)
    names = METRIC_NAMES[_task_type(found)]
    metrics = {name: float(METRICS[name](score, target)) for name in names}
    if shares is not None:
        metrics[AT_PREVALENCE] = float(balanced_accuracy(score / torch.from_numpy(shares), target))
    return metrics


def summary(results: Sequence[FitResult]) -> dict[str, dict[str, dict[str, float]]]:
    """Part -> metric -> mean, standard deviation (of the sample; NaN of one) and number of fits."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for part in PARTS:
        rows = [result.metrics for result in results if result.part == part]
        if not rows:
            continue
        found[part] = {}
        for name in rows[0]:
            if name.startswith("scans_") or name == "seconds":
                continue
            values = np.array([row[name] for row in rows if name in row])
            deviation = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
            found[part][name] = {
                "mean": float(values.mean()),
                "std": deviation,
                "fits": float(len(values)),
            }
    return found


def write_fit(result: FitResult, folder: Path) -> None:
    """Write the predictions of a fit, and last its metrics."""
    result_files.write_predictions(result.predictions, folder / PREDICTIONS["test"], sample="scan")
    result_files.write_metrics(result.metrics, folder / result_files.METRICS)


def read_fit(folder: Path, seed: int, split: str) -> FitResult | None:
    """Read a finished fit; None if it is not finished.

    Raises:
        UserInputError: its files are damaged.
    """
    if not (folder / result_files.METRICS).is_file():
        return None
    try:
        text = (folder / result_files.METRICS).read_text(encoding="utf-8")
        metrics = result_files.metrics_from(parse_json(text))
        predictions = result_files.read_predictions(folder / PREDICTIONS["test"], "")
        if {*_ALWAYS[_task_type(predictions)]} - set(metrics):
            raise ValueError
    except (ValueError, OSError, TypeError, AttributeError, UserInputError):
        raise UserInputError(
            f"--results_dir: '{folder}' has damaged metrics or predictions. Remove it to do that "
            f"fit again."
        ) from None
    return FitResult(seed, split, predictions, metrics)


def read_fits(
    folder: Path, splits: Mapping[int, Sequence[str]]
) -> dict[tuple[int, str], FitResult | None]:
    """Read all finished fits of a model, in the order of ``results.csv``.

    Args:
        folder: of the model.
        splits: seed -> names of its splits, in any order.

    Returns:
        (seed, split) -> fit, None of one that is not finished; each holdout is followed by
        ``EXTERNAL``.

    Raises:
        UserInputError: files of a fit are damaged.
    """
    found: dict[tuple[int, str], FitResult | None] = {}
    for seed, names in sorted(splits.items()):
        for split in sorted(names, key=lambda name: name == HOLDOUT_NAME):
            place = folder / f"seed_{seed}"
            found[seed, split] = read_fit(place / split, seed, split)
            if split == HOLDOUT_NAME:
                # Written before the holdout's, so that it may be there of a fit that was ended.
                done = found[seed, split] is not None
                other = read_fit(place / EXTERNAL, seed, EXTERNAL) if done else None
                found[seed, EXTERNAL] = other
    return found


def write_tables(folder: Path, name: str, results: Sequence[FitResult]) -> None:
    """Write ``results.csv``, one row per fit, and ``summary.json``."""
    rows = [{"model": name, "seed": r.seed, "split": r.split, **r.metrics} for r in results]
    # In one order, whether a fit was made now or read from its files.
    first = ("model", "seed", "split", *METRIC_NAMES[results[0].task_type], AT_PREVALENCE)
    there = dict.fromkeys(column for row in rows for column in row)
    header = [name for name in first if name in there]
    header += [*(name for name in there if "/" in name), *(n for n in _LAST if n in there)]
    header += [name for name in there if name not in header]
    cells = ([_cell(row.get(column)) for column in header] for row in rows)
    result_files.write_rows(header, cells, folder / "results.csv")
    result_files.write_record(summary(results), folder / "summary.json")


def _cell(value: object) -> object:
    """Empty for a value that is absent or not defined."""
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else value
