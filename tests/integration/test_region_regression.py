"""NeuroSSM predicts a value: planted ages, from the fit to explanations in years."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, r2_score

import neuromamba
from neuromamba.commands import explain, predict
from neuromamba.commands.regions_train import main as train
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.holdout import splits_of
from neuromamba.data.regions.registry import details_of
from neuromamba.inference.region_model import RegionModel
from neuromamba.reports.region_model_card import region_model_card

SUBJECTS, ROIS, FRAMES = 60, 8, 40
FLAGS = (
    "--dataset Own --data_file ages.pickle --target age --dynamic_length 30 --recipe robust "
    "--epochs 4 --members 2 --device cpu"
)


def write_ages(path: Path, seed: int = 0) -> None:
    """The correlation of regions 1 and 2 grows with age, from 8 to 38 years; three sites."""
    rng = np.random.default_rng(seed)
    scans = []
    for i, age in enumerate(rng.permutation(np.linspace(8, 38, SUBJECTS))):
        series = rng.standard_normal((ROIS, FRAMES)).astype(np.float32)
        share = (age - 8) / 30
        series[1] = share * series[0] + (1 - share) * series[1]
        pheno = {"subjectId": f"{i:02d}", "age": f"{age:.2f}", "site": "ABC"[i % 3]}
        scans.append({"roiTimeseries": series, "pheno": pheno})
    path.write_bytes(pickle.dumps(scans))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation with two seeds."""
    folder = tmp_path_factory.mktemp("ages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_ages(Path("ages.pickle"))
        words = f"{FLAGS} --stratify_by site --skip_cross_validation --seeds 0 1 2 --baselines "
        assert train([*words.split(), "FC", "Tangent"]) == 0
    return folder


def test_the_planted_age_is_predicted_in_years(done: Path) -> None:
    results = done / "Results/Own/NeuroSSM"
    table = pd.read_csv(results / "results.csv")
    assert {"mae", "pearson_r", "r2", "mse"} <= set(table.columns)
    assert not {"auroc", "accuracy"} & set(table.columns)
    for seed in range(3):
        one = pd.read_csv(results / f"seed_{seed}/holdout/predictions.csv")
        row = table[table.seed == seed].iloc[0]
        assert row.mae == pytest.approx(mean_absolute_error(one.target, one.prediction))
        assert row.r2 == pytest.approx(r2_score(one.target, one.prediction))
        assert row.pearson_r == pytest.approx(pearsonr(one.target, one.prediction).statistic)
        assert one.target.min() >= 8 and one.target.max() <= 38
    assert table.pearson_r.mean() > 0.6  # by chance 0, with a standard error of 0.17
    assert table.mae.mean() < 7.5  # 7.5 for the mean age for everybody


def test_intervals_differences_and_page(done: Path) -> None:
    results = done / "Results/Own/NeuroSSM"
    found = json.loads((results / "evaluation.json").read_text())
    holdout = found["holdouts"]["0"]
    assert set(holdout["metrics"]) == {"mse", "mae", "pearson_r", "r2"}
    assert holdout["metrics"]["mae"]["low"] < holdout["metrics"]["mae"]["high"]
    assert holdout["calibration"] == {} and found["drawn"] == "subjects"
    compared = json.loads((results / "comparison.json").read_text())["holdout"]
    assert set(compared["differences"]) == {"FC", "Tangent"}
    assert set(compared["differences"]["FC"]) == {"pearson_r", "mae", "r2"}
    subjects = pd.read_csv(results / "subjects.csv")
    assert list(subjects.columns) == ["seed", "part", "subject", "target", "prediction"]
    page = (results / "report.html").read_text()
    for words in (
        "Regression of age from 60 scans",
        "Absolute error (years)",
        "ridge regression on the correlations",
        "squared error (standardised)",
    ):
        assert words in page, words
    assert "Confusion" not in page and "cross entropy" not in page
    assert (results / "figures/scatter.png").is_file()


def test_quarters_of_the_values_are_spread_evenly(done: Path) -> None:
    details = details_of("Own", str(done / "ages.pickle"), "age", 30)
    cohort = load_cohort("Own", details, done, data_file=done / "ages.pickle")
    assert cohort.labels.dtype.kind == "f" and cohort.details.classes == ()
    *folds, holdout = splits_of(cohort, 0, 5)
    for split in (*folds, holdout):
        counts = np.bincount(cohort.strata[split.test], minlength=4)
        assert counts.max() - counts.min() <= 1
    sites = splits_of(cohort, 0, 5, leave_out="site")
    assert [split.name for split in sites] == ["without_A", "without_B", "without_C", "holdout"]


def test_a_model_file_predicts_and_explains_in_years(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = done / "Results/Own/NeuroSSM/seed_0/holdout"
    model = neuromamba.load(fit, device="cpu")
    assert isinstance(model, RegionModel)
    assert model.class_names == () and model.unit == "years"
    told = pd.read_csv(fit / "predictions.csv").iloc[0]
    subject = f"{int(told.subject):02d}"
    scans = pickle.loads((done / "ages.pickle").read_bytes())
    series = next(s["roiTimeseries"] for s in scans if s["pheno"]["subjectId"] == subject)
    found = model.predict(model.prepare(series))
    assert found.value == pytest.approx(told.prediction, abs=1e-4)
    assert found.probabilities == {} and str(found).endswith(" years")

    explained = model.explain(model.prepare(series))
    assert explained.score == pytest.approx(found.value, abs=1e-3)
    assert explained.unit == "years" and explained.target == ""
    total = explained.values.sum()
    assert total == pytest.approx(explained.score - explained.baseline_score, abs=0.3)
    assert explained.record()["pathways"].keys() == {"raw_2", "second_order"}

    monkeypatch.chdir(tmp_path)
    pd.DataFrame(series.T).to_csv("sub-01_series.csv", index=False)
    assert predict.main([str(fit), "sub-01_series.csv", "-o", "told", "--device", "cpu"]) == 0
    row = pd.read_csv("told/predictions.csv").iloc[0]
    assert row.prediction == pytest.approx(told.prediction, abs=1e-3)
    assert "years" in Path("told/report.html").read_text()
    assert explain.main([str(fit), "sub-01_series.csv", "-o", "why", "--device", "cpu"]) == 0
    page = Path("why/report.html").read_text()
    assert "raises the predicted value" in page and "what the predicted value loses" in page


def test_the_model_card_is_of_a_regression(done: Path) -> None:
    model = neuromamba.load(done / "Results/Own/NeuroSSM/seed_0/holdout", device="cpu")
    assert isinstance(model, RegionModel)
    card = region_model_card("ages", model.metadata, None)
    assert "It predicts the value of age in years." in card
    assert "Absolute error" in card and "ridge regression" in card and "AUROC" not in card


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--analysis", "--analysis: compares the maps of classes"),
        ("--label_smoothing 0.1", "--label_smoothing: is of classes"),
        ("--target site --task_type regression", "'site' holds text (A, B, C)"),
        ("--task_type classification", "values and not classes. Predict them with --task_type"),
        ("--dataset PPMI --task_type regression", "--task_type: belongs to --dataset Own"),
    ],
)
def test_mistakes(
    done: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    monkeypatch.chdir(done)
    words = FLAGS.split()
    if "--dataset PPMI" in flags:
        words = ["--dynamic_length", "30", "--device", "cpu"]
    assert train([*words, *flags.split(), "--results_dir", "elsewhere"]) == 2
    assert message in capsys.readouterr().err


def test_missing_codes_among_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_ages(Path("ages.pickle"))
    scans = pickle.loads(Path("ages.pickle").read_bytes())
    scans[3]["pheno"]["age"] = "-9999"
    Path("ages.pickle").write_bytes(pickle.dumps(scans))
    assert train(FLAGS.split()) == 2
    assert "-9999 (1 times)" in capsys.readouterr().err
    details = details_of("Own", "ages.pickle", "age", 30)
    cohort = load_cohort(
        "Own", details, tmp_path, data_file=Path("ages.pickle"), missing_codes=["-9999"]
    )
    assert len(cohort.scans) == SUBJECTS - 1
