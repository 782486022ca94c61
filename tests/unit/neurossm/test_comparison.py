"""The comparison of a model with its baselines over splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neuromamba.evaluation.corrected_t import corrected_interval
from neuromamba.evaluation.result_files import Predictions
from neuromamba.neurossm.comparison import COMPARISON, compare_splits, lines, write_comparison
from neuromamba.neurossm.results import FitResult, metrics_of

FOLDS = 5


def fit(seed: int, split: str, effect: float, model: int, scans_each: int = 1) -> FitResult:
    rng = np.random.default_rng([seed, len(split), int(split[-1], 36), model])
    target = np.repeat(np.arange(20) % 2, scans_each)
    p = 1 / (1 + np.exp(-rng.normal(size=len(target)) - effect * (target - 0.5)))
    subjects = [f"s{i // scans_each}" for i in range(len(target))]
    names = [f"scan{i}" for i in range(len(target))]
    found = Predictions(subjects, names, target, np.stack([1 - p, p], axis=1))
    metrics = metrics_of(found) | {"scans_fitted": 80.0, "scans_tested": 20.0, "seconds": 1.0}
    return FitResult(seed, split, found, metrics)


def results_of(seeds: int = 1, scans_each: int = 1) -> dict[str, list[FitResult]]:
    splits = [*(f"fold_{i}" for i in range(1, FOLDS + 1)), "holdout"]
    return {
        name: [fit(s, split, effect, m, scans_each) for s in range(seeds) for split in splits]
        for m, (name, effect) in enumerate({"NeuroSSM": 2.0, "FC": 0.0, "Tangent": 2.0}.items())
    }


@pytest.mark.parametrize("scans_each", [1, 3])
def test_differences_are_paired_by_split(tmp_path: Path, scans_each: int) -> None:
    results = results_of(2, scans_each)
    # Order within a model is no matter: pairs are found by seed and split.
    results["FC"] = results["FC"][::-1]
    folds, holdouts = compare_splits(results)
    assert (folds.part, folds.splits) == ("cross_validation", 2 * FOLDS)
    assert (holdouts.part, holdouts.splits) == ("holdout", 2)
    assert folds.ratio == 0.25
    key = "auroc" if scans_each == 1 else "subject/auroc"
    own = [f.metrics[key] for f in results["NeuroSSM"] if f.split != "holdout"]
    other = [f.metrics[key] for f in results["FC"][::-1] if f.split != "holdout"]
    wanted = corrected_interval(np.subtract(own, other), 0.25)
    assert folds.differences["FC"]["auroc"] == pytest.approx(wanted)
    assert wanted.low > 0
    write_comparison([folds, holdouts], tmp_path)
    record = json.loads((tmp_path / COMPARISON).read_text())
    assert record["cross_validation"]["differences"]["FC"]["auroc"]["low"] == wanted.low
    said = lines([folds], "NeuroSSM")
    assert said[0] == "NeuroSSM less the baselines over 10 splits (cross-validation), AUROC:"
    assert str(wanted) in said[1]


def test_one_split_or_no_baseline_is_no_comparison() -> None:
    results = results_of(1)
    assert [one.part for one in compare_splits(results)] == ["cross_validation"]
    assert compare_splits({"NeuroSSM": results["NeuroSSM"]}) == []
