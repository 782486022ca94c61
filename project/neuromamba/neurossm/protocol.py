"""The protocol: for each seed and split, fit, score once, write down; finished fits are kept.

``Results/<DATASET>/<MODEL>/`` holds ``settings.json``, ``splits.json`` and for each fit a folder
``seed_<S>/<split>/`` with ``predictions.csv``, ``metrics.json`` and what the method writes, weights
and curve. ``metrics.json`` is written last: a fit that has it is finished. ``results.csv`` and
``summary.json`` come from these, after every fit.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from neuromamba.common.atomic_files import atomic_path, make_folder, write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.dataset import Cohort
from neuromamba.data.regions.holdout import HOLDOUT_NAME, Split, splits_of
from neuromamba.evaluation.metrics import METRICS
from neuromamba.evaluation.result_files import write_metrics
from neuromamba.neurossm.classifiers import Classifier

METRIC_NAMES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "auroc",
)
PARTS = ("cross_validation", HOLDOUT_NAME)


class FitResult(NamedTuple):
    """A fit that has been scored.

    Attributes:
        seed, split: which one.
        predictions: a row a test scan: subject, scan, target, prob_0, ...
        metrics: over scans; ``subject/<name>`` over subjects, where some have several scans of a
            class (probabilities averaged).
    """

    seed: int
    split: str
    predictions: pd.DataFrame
    metrics: dict[str, float]

    @property
    def part(self) -> str:
        """Of ``PARTS``."""
        return HOLDOUT_NAME if self.split == HOLDOUT_NAME else PARTS[0]

    @property
    def probability(self) -> np.ndarray:
        """[S, classes]."""
        return probabilities(self.predictions)


@dataclass(frozen=True)
class Protocol:
    """Everything about an evaluation but the method.

    Attributes:
        cohort: the data.
        seeds: of splits and fits.
        folds: of the cross-validation.
        cross_validation: without it there are holdouts only.
        results: ``Results/<DATASET>``.
    """

    cohort: Cohort
    seeds: tuple[int, ...]
    folds: int
    cross_validation: bool
    results: Path

    def splits(self) -> dict[int, list[Split]]:
        """Seed -> splits."""
        return {
            seed: splits_of(self.cohort, seed, self.folds, self.cross_validation)
            for seed in self.seeds
        }

    def folder(self, method: Classifier) -> Path:
        """Of a method."""
        return self.results / method.name

    def run(self, method: Classifier) -> list[FitResult]:
        """Do what is not done yet; all results in order.

        Raises:
            UserInputError: the folder holds results of other settings.
        """
        splits, folder = self.splits(), self.folder(method)
        make_folder(folder, "--results_dir")
        self._claim(folder, method)
        _write_splits(folder / "splits.json", self.cohort, splits)
        total = sum(map(len, splits.values()))
        results: list[FitResult] = []
        for seed, of_seed in splits.items():
            for split in of_seed:
                place = folder / f"seed_{seed}" / split.name
                where = f"{method.name} {len(results) + 1}/{total}: seed {seed}, {split.name}"
                result = read_fit(place, seed, split.name)
                if result is None:
                    result = self._fit(method, seed, split, place, where)
                else:
                    print(f"{where}: done before, {_shown(result.metrics)}", flush=True)
                results.append(result)
                write_tables(folder, method.name, results)
        return results

    def _fit(
        self, method: Classifier, seed: int, split: Split, place: Path, where: str
    ) -> FitResult:
        print(f"{where}: {len(split.train)} scans to fit, {len(split.test)} to test", flush=True)
        if place.exists():
            shutil.rmtree(place)  # left by a run that was ended in the middle of the fit
        place.mkdir(parents=True)
        start = time.monotonic()
        train, test = ([self.cohort.scans[i] for i in part] for part in (split.train, split.test))
        probability = method.fit_and_score(train, test, seed, place)
        columns = {
            "subject": [scan.subject for scan in test],
            "scan": [scan.scan for scan in test],
            "target": [scan.label for scan in test],
        }
        columns |= {f"prob_{i}": values for i, values in enumerate(probability.T)}
        predictions = pd.DataFrame(columns)
        metrics = metrics_of(predictions)
        metrics |= {"scans_fitted": float(len(train)), "scans_tested": float(len(test))}
        metrics["seconds"] = round(time.monotonic() - start, 1)
        write_table(predictions, place / "predictions.csv")
        write_metrics(metrics, place / "metrics.json")
        print(f"{where}: {_shown(metrics)} ({metrics['seconds']:.0f} s)", flush=True)
        return FitResult(seed, split.name, predictions, metrics)

    def _claim(self, folder: Path, method: Classifier) -> None:
        """Note what the results depend on, or compare with what was noted."""
        cohort, path = self.cohort, folder / "settings.json"
        settings: dict[str, Any] = {
            "dataset": cohort.name,
            "data_hash": cohort.hash,
            "classes": list(cohort.details.classes),
            "folds": self.folds,
            **method.settings(),
        }
        settings = json.loads(json.dumps(settings))  # lists for tuples, as in the file
        if path.is_file():
            other = _differences(_read_json(path), settings)
            if other:
                raise UserInputError(
                    f"--results_dir: '{folder}' holds results of other settings ({other}). Choose "
                    f"another folder, or remove that one."
                )
        write_text_atomically(path, json.dumps(settings, indent=1) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserInputError(
            f"--results_dir: '{path}' is damaged. Choose another folder, or remove that one."
        )
    return found


def _differences(old: dict[str, Any], new: dict[str, Any], name: str = "") -> str:
    """``epochs: 20, now 5`` for each that differs."""
    found = []
    for key in [*new, *(key for key in old if key not in new)]:
        one, two = old.get(key), new.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            found.append(_differences(one, two, f"{key}."))
        elif one != two:
            found.append(f"{name}{key}: {one}, now {two}")
    return ", ".join(filter(None, found))


def _write_splits(path: Path, cohort: Cohort, splits: dict[int, list[Split]]) -> None:
    """Seed -> split -> subjects tested; an earlier call's seeds stay."""
    known = _read_json(path) if path.is_file() else {}
    for seed, of_seed in splits.items():
        known.setdefault(str(seed), {}).update(
            {split.name: sorted({cohort.scans[i].subject for i in split.test}) for split in of_seed}
        )
    write_text_atomically(path, json.dumps(known, indent=1) + "\n")


# ------------------------------------------------------------------------------ results


def probabilities(predictions: pd.DataFrame) -> np.ndarray:
    """float64 [S, classes]."""
    return predictions.filter(regex=r"^prob_\d+$").to_numpy(dtype=np.float64, copy=True)


def metrics_of(predictions: pd.DataFrame) -> dict[str, float]:
    """See ``FitResult.metrics``."""
    found = _metrics(predictions)
    together = predictions.groupby(["subject", "target"], sort=True, as_index=False).mean(
        numeric_only=True
    )
    if len(together) < len(predictions):
        found |= {f"subject/{name}": value for name, value in _metrics(together).items()}
    return found


def _metrics(predictions: pd.DataFrame) -> dict[str, float]:
    probability = torch.from_numpy(probabilities(predictions))
    target = torch.from_numpy(predictions["target"].to_numpy(dtype=np.int64, copy=True))
    return {name: float(METRICS[name](probability, target)) for name in METRIC_NAMES}


def read_fit(place: Path, seed: int, split: str) -> FitResult | None:
    """A finished fit, None if it is not finished.

    Raises:
        UserInputError: its files are damaged.
    """
    if not (place / "metrics.json").is_file():
        return None
    try:
        metrics = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
        predictions = pd.read_csv(place / "predictions.csv", dtype={"subject": str, "scan": str})
        if {*METRIC_NAMES} - set(metrics) or {"subject", "scan", "target"} - set(predictions):
            raise ValueError
    except (ValueError, OSError, TypeError):
        raise UserInputError(
            f"--results_dir: '{place}' has damaged metrics or predictions. Remove it to do that "
            f"fit again."
        ) from None
    clean = {name: float("nan") if value is None else value for name, value in metrics.items()}
    return FitResult(seed, split, predictions, clean)


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


def write_tables(folder: Path, name: str, results: Sequence[FitResult]) -> None:
    """``results.csv``, a row a fit, and ``summary.json``."""
    rows = [{"model": name, "seed": r.seed, "split": r.split, **r.metrics} for r in results]
    write_table(pd.DataFrame(rows), folder / "results.csv")
    found = summary(results)
    text = json.dumps(found, indent=1).replace("NaN", "null")
    write_text_atomically(folder / "summary.json", text + "\n")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in ("accuracy", "auroc"))
