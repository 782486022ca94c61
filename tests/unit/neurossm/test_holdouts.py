"""What is said about the holdouts: subjects that are drawn, differences, calibration, confounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.holdout import Split, splits_of
from neuromamba.data.regions.registry import DatasetDetails
from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.result_files import Predictions
from neuromamba.evaluation.scores import Holdouts
from neuromamba.neurossm.holdouts import HoldoutReport, check_holdouts, evaluate_holdouts
from neuromamba.neurossm.report import write_report
from neuromamba.neurossm.results import FitResult, metrics_of, subject_scores
from neuromamba.pages.score_sections import verdict

DETAILS = DatasetDetails("x.pickle", None, None, (), "kind", {}, ("a", "b"), 10)
Splits = dict[int, list[Split]]


def cohort_of(
    subjects: int = 80, *, several: bool = False, family: int = 0, **more: object
) -> Cohort:
    """Subjects of two classes with a scan each, or ``several`` scans, one of each class."""
    rng = np.random.default_rng(0)
    scans = []
    for number in range(subjects):
        group = f"family {number // family}" if family else f"s{number:02d}"
        for label in (0, 1) if several else (number % 2,):
            name = f"s{number:02d}_{label}" if several else f"s{number:02d}"
            series = rng.normal(size=(4, 20)).astype(np.float32)
            scans.append(Scan(f"s{number:02d}", name, label, series, group))
    return Cohort("Own", DETAILS, tuple(scans), **more)  # type: ignore[arg-type]


def fit(cohort: Cohort, seed: int, split: Split, effect: float, model: int) -> FitResult:
    """Predictions that are as good as the effect is large."""
    scans = [cohort.scans[i] for i in split.test]
    rng = np.random.default_rng([seed, model])
    raw = rng.normal(size=len(scans)) + effect * np.array([scan.label for scan in scans])
    p = 1 / (1 + np.exp(-raw))
    found = Predictions(
        [scan.subject for scan in scans],
        [scan.scan for scan in scans],
        np.array([scan.label for scan in scans]),
        np.stack([1 - p, p], axis=1),
    )
    return FitResult(seed, split.name, found, metrics_of(found))


def evaluated(
    cohort: Cohort, seeds: Sequence[int] = (0,), effects: Sequence[float] = (3.0, 0.0)
) -> tuple[HoldoutReport, Splits, dict[str, list[FitResult]]]:
    splits = {seed: splits_of(cohort, seed, 2, False) for seed in seeds}
    results = {
        name: [fit(cohort, seed, splits[seed][-1], effect, model) for seed in seeds]
        for model, (name, effect) in enumerate(zip(("NeuroSSM", "FC"), effects, strict=False))
    }
    return evaluate_holdouts(cohort, splits, results), splits, results


def test_one_holdout(tmp_path: Path) -> None:
    report, _, results = evaluated(cohort_of())
    (one,) = report.holdouts
    scores = subject_scores(results["NeuroSSM"][0].predictions)
    assert one.evaluation.metrics["auroc"] == scores.interval("auroc")
    other = subject_scores(results["FC"][0].predictions)
    assert one.differences["FC"]["auroc"] == scores.difference(other, "auroc")
    assert one.differences["FC"]["auroc"].low > 0
    assert set(one.evaluation.calibration) == {"ece", "brier"}
    assert report.drawn == "subjects, within classes" and not report.metrics
    report.write(tmp_path)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["holdouts"]["0"]["differences"]["FC"]["auroc"]["low"] > 0
    assert "mean_over_seeds" not in record
    rows = (tmp_path / "subjects.csv").read_text().splitlines()
    assert rows[0] == "seed,part,subject,target,prob_0,prob_1,decision"
    assert len(rows) == 1 + 16 and all(row.startswith("0,holdout,s") for row in rows[1:])


def test_the_mean_over_seeds_draws_from_all_holdouts_together() -> None:
    report, *_ = evaluated(cohort_of(), seeds=(0, 1, 2))
    sets = [one.scores["NeuroSSM"] for one in report.holdouts]
    assert report.metrics["auroc"] == Holdouts(sets).interval("auroc")
    values = [one.evaluation.metrics["auroc"].value for one in report.holdouts]
    assert report.metrics["auroc"].value == pytest.approx(np.mean(values))
    difference = report.differences["FC"]["auroc"]
    wanted = [one.differences["FC"]["auroc"].value for one in report.holdouts]
    assert difference.value == pytest.approx(np.mean(wanted)) and difference.low > 0
    assert report.verdict_on == report.differences


def test_subjects_with_scans_of_all_classes_are_drawn_whole() -> None:
    report, *_ = evaluated(cohort_of(40, several=True), effects=(1.0,))
    scores = report.holdouts[0].scores["NeuroSSM"]
    assert (
        scores.resampling_unit is not None
        and len(set(scores.resampling_unit)) == 8 == len(scores.subjects) / 2
    )
    assert report.drawn == "subjects, each with its scans of all classes"
    assert report.holdouts[0].evaluation.metrics["auroc"].low < 1


def test_families_are_drawn_whole() -> None:
    report, *_ = evaluated(cohort_of(80, family=2, group_column="family"))
    scores = report.holdouts[0].scores["NeuroSSM"]
    assert scores.resampling_unit is not None and all(
        name.startswith("family") for name in scores.resampling_unit
    )
    assert report.drawn == "groups of the column family"


def test_what_has_no_interval_says_so() -> None:
    """A holdout with one subject of a class: nothing can be drawn within it."""
    cohort = cohort_of(30)
    split = splits_of(cohort, 0, 2, False)[-1]
    ones = [i for i in split.test if cohort.scans[i].label]
    few = split._replace(test=np.array([*[i for i in split.test if i not in ones], ones[0]]))
    results = {"NeuroSSM": [fit(cohort, 0, few, 1.0, 0)], "FC": [fit(cohort, 0, few, 1.0, 1)]}
    report = evaluate_holdouts(cohort, {0: [few]}, results)
    assert str(report.holdouts[0].evaluation.metrics["auroc"]).endswith("[not defined]")
    assert report.record()["holdouts"]["0"]["metrics"]["auroc"]["low"] != 0
    assert any("[not defined]" in line for line in report.lines())


def test_confounds_are_compared_with_the_scores_of_each_holdout() -> None:
    """A confound that is the class, but for noise, explains target and score."""
    rng = np.random.default_rng(0)
    age = {f"s{i:02d}": f"{30 + 10 * (i % 2) + rng.normal():.2f}" for i in range(80)}
    cohort = cohort_of(confounds={"age": age})
    report, splits, _ = evaluated(cohort, seeds=(0, 1))
    check_holdouts(cohort, splits)
    for one in report.record()["holdouts"].values():
        assert one["confounds"]["of_target"]["age"]["share"] > 0.9
        assert one["confounds"]["alone"]["auroc"]["value"] == 1
        assert one["confounds"]["after"]["value"] < one["confounds"]["before"]["value"]


def test_confounds_of_several_classes_a_subject_are_refused() -> None:
    cohort = cohort_of(40, several=True, confounds={"age": {"s00": "3"}})
    with pytest.raises(UserInputError, match=r"^--confounds: subjects have scans of several"):
        check_holdouts(cohort, {0: splits_of(cohort, 0, 2, False)})


def test_confounds_that_nobody_has_are_refused_before_the_fits() -> None:
    cohort = cohort_of(confounds={"age": {"s00": "3", "s01": "4"}})
    with pytest.raises(UserInputError, match=r"^--confounds: . training subjects have values"):
        check_holdouts(cohort, {0: splits_of(cohort, 0, 2, False)})


def test_a_verdict_names_all_models() -> None:
    above, below, over = Interval(0.2, 0.1, 0.3), Interval(-0.2, -0.3, -0.1), Interval(0.1, -1, 1)
    nan, same = (Interval(value, float("nan"), float("nan")) for value in (0.1, 0.0))
    found = {"A": above, "B": below, "C": over, "D": over, "E": over, "F": nan, "G": same}
    assert verdict("X", "auroc", found) == [
        "By AUROC, X is better than A; is worse than B; is not distinguishable from C, D and E; "
        "cannot be compared (the interval is not defined) with F; has the same value as G."
    ]
    assert verdict("X", "auroc", {}) == []


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ((3.0, 0.0), "NeuroSSM is better than FC"),
        ((0.0, 3.0), "NeuroSSM is worse than FC"),
        ((1.0, 1.0), "NeuroSSM is not distinguishable from FC"),
    ],
)
def test_the_page_states_the_verdict(
    tmp_path: Path, effects: tuple[float, float], words: str
) -> None:
    cohort = cohort_of()
    report, _, results = evaluated(cohort, seeds=(0, 1), effects=effects)
    html = write_report(tmp_path, cohort, results, [report], [], {"dataset": "Own"}, {}).read_text()
    assert f"Over the 2 seeds: by AUROC, {words}." in html
    assert "NeuroSSM on x.pickle" in html
    for text in (
        "Holdout of seed 1",
        "Mean over 2 seeds",
        "Calibration",
        "Subjects",
        "subjects.csv",
    ):
        assert text in html
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {
        "roc", "precision_recall", "confusion", "calibration",
    }  # fmt: skip
