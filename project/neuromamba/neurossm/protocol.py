"""The protocol: for each seed and split, fit, score once, write down; finished fits are kept.

``Results/<DATASET>/<MODEL>/`` holds ``settings.json``, ``splits.json``, and the files of each fit
(``results``), beside which a classifier may leave its own: weights and the training curve.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.atomic_files import make_folder, write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import read_json_record
from neuromamba.common.text import some_of
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.holdout import EXTERNAL, HOLDOUT_NAME, Split, splits_of
from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.result_files import Predictions
from neuromamba.neurossm.classifiers import Classifier, NetworkClassifier
from neuromamba.neurossm.results import (
    FitResult,
    metrics_of,
    read_fit,
    read_fits,
    write_fit,
    write_tables,
)

_SPLITS = "splits.json"
_SHOWN = ("accuracy", "auroc", "mae", "pearson_r")  # after each fit


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything about an evaluation but the classifier.

    Attributes:
        cohort: the data.
        seeds: of splits and fits.
        folds: of the cross-validation.
        cross_validation: without it there are holdouts only.
        results: ``Results/<DATASET>``.
        stratify_by, leave_out: columns, see ``splits_of``.
        external: scans that no split has seen; the models of the holdouts are tested on them.
    """

    cohort: Cohort
    seeds: tuple[int, ...]
    folds: int
    cross_validation: bool
    results: Path
    stratify_by: tuple[str, ...] = ()
    leave_out: str | None = None
    external: Cohort | None = None

    def splits(self) -> dict[int, list[Split]]:
        """Seed -> splits."""
        return {
            seed: splits_of(
                self.cohort,
                seed,
                self.folds,
                self.cross_validation,
                stratify_by=self.stratify_by,
                leave_out=self.leave_out,
            )
            for seed in self.seeds
        }

    def folder(self, classifier: Classifier) -> Path:
        """The folder of a classifier's results."""
        return self.results / classifier.name

    def run(self, classifier: Classifier) -> list[FitResult]:
        """Do what is not done yet; all results in order.

        Raises:
            UserInputError: the folder holds results of other settings.
        """
        splits, folder = self.splits(), self.folder(classifier)
        make_folder(folder, "--results_dir")
        self._claim(folder, classifier)
        _write_splits(folder / _SPLITS, self.cohort, splits)
        total = sum(map(len, splits.values()))
        # With those of earlier calls that this one does not ask for: the tables keep them.
        fits = read_fits(folder, _tested(folder / _SPLITS))
        results: list[FitResult] = []
        for seed, of_seed in splits.items():
            for split in of_seed:
                place = folder / f"seed_{seed}" / split.name
                where = f"{classifier.name} {len(results) + 1}/{total}: seed {seed}, {split.name}"
                result = fits[seed, split.name]
                if result is None:
                    result = self._fit(classifier, seed, split, place, where)
                else:
                    print(f"{where}: done before, {_shown(result.metrics)}", flush=True)
                fits[seed, split.name] = result
                results.append(result)
                if split.name == HOLDOUT_NAME and self.external is not None:
                    other = read_fit(place.with_name(EXTERNAL), seed, EXTERNAL)
                    if other is None:  # --test_data was added to a finished run
                        other = self._test_external(classifier, seed, split, place)
                    fits[seed, EXTERNAL] = other
                    results.append(other)
                write_tables(folder, classifier.name, [fit for fit in fits.values() if fit])
        asked = {(result.seed, result.split) for result in results}
        if earlier := [key for key, fit in fits.items() if fit and key not in asked]:
            seeds = some_of(dict.fromkeys(seed for seed, _ in earlier))
            print(
                f"{classifier.name}: results.csv and summary.json hold {len(earlier)} fits of "
                f"earlier calls, too (seeds {seeds}).",
                flush=True,
            )
        return results

    def _fit(
        self, classifier: Classifier, seed: int, split: Split, place: Path, where: str
    ) -> FitResult:
        print(f"{where}: {len(split.train)} scans to fit, {len(split.test)} to test", flush=True)
        if place.exists():
            shutil.rmtree(place)  # left by a run that was ended in the middle of the fit
        place.mkdir(parents=True)
        start = time.monotonic()
        train, test = ([self.cohort.scans[i] for i in part] for part in (split.train, split.test))
        scorer = classifier.fit(train, seed, place)
        scores = scorer(test)
        seconds = round(time.monotonic() - start, 1)
        if self.external and split.name == HOLDOUT_NAME:
            # In a call of its own: how a product rounds depends on the number of its rows.
            others = self.external.scans
            found = _result(seed, EXTERNAL, others, scorer(others), train, seconds)
            place.with_name(EXTERNAL).mkdir(exist_ok=True)
            write_fit(found, place.with_name(EXTERNAL))  # first: the holdout's says all is there
        result = _result(seed, split.name, test, scores, train, seconds)
        write_fit(result, place)
        print(f"{where}: {_shown(result.metrics)} ({seconds:.0f} s)", flush=True)
        return result

    def _test_external(
        self, classifier: Classifier, seed: int, split: Split, place: Path
    ) -> FitResult:
        """Test the finished model of a holdout on the external scans.

        A network has its weights; others are fitted again, which gives the same model.
        """
        assert self.external is not None
        others = self.external.scans
        print(f"{classifier.name}: seed {seed}, {len(others)} external scans to test", flush=True)
        start = time.monotonic()
        train = [self.cohort.scans[i] for i in split.train]
        if isinstance(classifier, NetworkClassifier):
            scores = classifier.finished(train, place)(others)
        else:
            scores = classifier.fit(train, seed, place)(others)
        seconds = round(time.monotonic() - start, 1)
        found = _result(seed, EXTERNAL, others, scores, train, seconds)
        place.with_name(EXTERNAL).mkdir(exist_ok=True)
        write_fit(found, place.with_name(EXTERNAL))
        return found

    def _claim(self, folder: Path, classifier: Classifier) -> None:
        """Note what the results depend on, or compare with what was noted."""
        cohort, path = self.cohort, folder / "settings.json"
        settings: dict[str, Any] = {
            "dataset": cohort.name,
            "data_hash": cohort.hash,
            "classes": list(cohort.details.classes),
            **({"task_type": "regression"} if cohort.details.is_regression else {}),
            "folds": self.folds,
            **({"stratify_by": list(self.stratify_by)} if self.stratify_by else {}),
            **({"leave_out": self.leave_out} if self.leave_out else {}),
            **({"test_data": self.external.hash} if self.external else {}),
            **classifier.settings(),
        }
        settings = json.loads(json.dumps(settings))  # lists for tuples, as in the file
        if path.is_file():
            known = _read_json(path)
            if "test_data" not in known:  # it can be added: no fit depends on it
                known |= {"test_data": settings["test_data"]} if "test_data" in settings else {}
            other = _differences(known, settings)
            if other:
                raise UserInputError(
                    f"--results_dir: '{folder}' holds results of other settings ({other}). Choose "
                    f"another folder, or remove that one."
                )
        write_text_atomically(path, json.dumps(settings, indent=1) + "\n")


def _result(
    seed: int,
    split: str,
    scans: Sequence[Scan],
    scores: np.ndarray,
    fitted: Sequence[Scan],
    seconds: float,
) -> FitResult:
    predictions = Predictions(
        [scan.subject for scan in scans],
        [scan.scan for scan in scans],
        np.array([scan.label for scan in scans]),
        np.asarray(scores, dtype=np.float64),
    )
    shares = None
    if predictions.target.dtype.kind in "iu":
        counts = np.bincount([scan.label for scan in fitted], minlength=predictions.score.shape[1])
        shares = np.maximum(counts, 1) / len(fitted)
    metrics = metrics_of(predictions, shares)
    metrics |= {"scans_fitted": float(len(fitted)), "scans_tested": float(len(scans))}
    return FitResult(seed, split, predictions, metrics | {"seconds": seconds})


def _read_json(path: Path) -> dict[str, Any]:
    remedy = "Choose another folder, or remove that one."
    return read_json_record(path, remedy, "--results_dir")


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


def _tested(path: Path) -> dict[int, list[str]]:
    """Seed -> names of its splits, of all calls in this folder."""
    try:
        return {int(seed): [*of_seed] for seed, of_seed in _read_json(path).items()}
    except (ValueError, TypeError):
        raise UserInputError(
            f"--results_dir: '{path}' is damaged. Choose another folder, or remove that one."
        ) from None


def _shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in _SHOWN if name in metrics)
