"""tester.py and run_cpa_analysis.py from files to maps, as a user calls them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from neuromamba.commands.regions_synthetic import run as make_data
from neuromamba.commands.regions_train import main as run_tester
from neuromamba.commands.regions_train import run
from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.atlases import read_atlas
from neuromamba.neurossm.attribution_files import ScanMap, check_names, read_scan_map
from tests.helpers.neurosynth_files import needs_nimare
from tests.helpers.paths import ROOT

NEUROSSM = ROOT / "project" / "neurossm"
SMALL = "--embed_dim 32 --depth 1 --epochs 2 --folds 2 --device cpu"
FIVE = (
    "neurosynth_reference_score",
    "neurosynth_reference_top25_mask",
    "cpa_score",
    "cpa_score_top25_mask",
    "cpa_dominant_pathway",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic PPMI."""
    folder = tmp_path_factory.mktemp("data")
    make_data(["--dataset", "PPMI", "--output", str(folder), "--subjects", "40", "--frames", "60"])
    return folder


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which tester.py has run with two seeds and --analysis."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = f"--dataset PPMI --data_dir {data} --dynamic_length 40 --seeds 0 3 --analysis"
        baselines = ["--baselines", "FC", "GRU", "Untrained"]
        assert run_tester([*flags.split(), *SMALL.split(), *baselines]) == 0
    return folder


def test_files_of_an_evaluation(done: Path) -> None:
    for model in ("NeuroSSM", "FC", "GRU", "Untrained"):
        folder = done / "Results" / "PPMI" / model
        table = pd.read_csv(folder / "results.csv")
        assert table["split"].tolist() == ["fold_1", "fold_2", "holdout"] * 2
        assert table["seed"].tolist() == [0] * 3 + [3] * 3
        summary = json.loads((folder / "summary.json").read_text())
        folds = table[table["split"] != "holdout"]
        found = summary["cross_validation"]["auroc"]
        assert found["mean"] == pytest.approx(folds["auroc"].mean(), abs=1e-9)
        assert found["std"] == pytest.approx(folds["auroc"].std(), abs=1e-9)
        assert summary["holdout"]["auroc"]["fits"] == 2
        splits = json.loads((folder / "splits.json").read_text())
        assert len(splits["0"]["holdout"]) == 8
    own = done / "Results" / "PPMI" / "NeuroSSM"
    assert (own / "splits.json").read_bytes() == (
        done / "Results" / "PPMI" / "FC" / "splits.json"
    ).read_bytes()
    page = (own / "report.html").read_text()
    assert "NeuroSSM on PPMI" in page and "GRU" in page and "http:" not in page
    assert (own / "curves.png").is_file() and (own / "confusion_holdout.png").is_file()
    record = json.loads((own / "evaluation.json").read_text())
    assert set(record["holdouts"]) == {"0", "3"}
    for seed in (0, 3):
        found = record["holdouts"][str(seed)]
        rows = pd.read_csv(own / f"seed_{seed}" / "holdout" / "predictions.csv")
        wanted = sk.roc_auc_score(rows["target"], rows["prob_1"])
        assert found["metrics"]["auroc"]["value"] == pytest.approx(wanted)
        assert set(found["differences"]) == {"FC", "GRU", "Untrained"}
        assert {"ece", "brier"} == set(found["calibration"])
    assert set(record["mean_over_seeds"]["differences"]) == {"FC", "GRU", "Untrained"}
    subjects = pd.read_csv(own / "subjects.csv")
    assert subjects["seed"].tolist() == [0] * 8 + [3] * 8


def test_metrics_are_scikit_learns(done: Path) -> None:
    for place in sorted((done / "Results" / "PPMI").glob("*/seed_*/*")):
        found = json.loads((place / "metrics.json").read_text())
        rows = pd.read_csv(place / "predictions.csv")
        probability = rows[["prob_0", "prob_1"]].to_numpy()
        told, true = probability.argmax(1), rows["target"].to_numpy()
        macro = {"average": "macro", "zero_division": 0}
        wanted = {
            "accuracy": sk.accuracy_score(true, told),
            "balanced_accuracy": sk.balanced_accuracy_score(true, told),
            "macro_f1": sk.f1_score(true, told, **macro),
            "macro_precision": sk.precision_score(true, told, **macro),
            "macro_recall": sk.recall_score(true, told, **macro),
            "auroc": sk.roc_auc_score(true, probability[:, 1]),
        }
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, abs=1e-6), (place, name)


def test_cpa_files(done: Path, data: Path) -> None:
    atlas = read_atlas(data / "atlases" / "AAL3v2.nii.gz")
    for seed in (0, 3):
        folder = done / "Analysis" / "Explainability" / "PPMI" / f"seed_{seed}"
        files = sorted(folder.glob("subj_*.npz"))
        fit = done / "Results" / "PPMI" / "NeuroSSM" / f"seed_{seed}" / "holdout"
        rows = pd.read_csv(fit / "predictions.csv", dtype={"subject": str, "scan": str})
        assert [f.name for f in files] == sorted(f"subj_{s}.npz" for s in rows["scan"])
        for file in files:
            with np.load(file, allow_pickle=False) as archive:
                assert set(archive) == set(ScanMap._fields)
            one = read_scan_map(file)
            row = rows[rows["scan"] == one.scan_id].iloc[0]
            assert one.label == row["target"] and one.target == one.pred == one.logits.argmax()
            np.testing.assert_allclose(one.probs, row[["prob_0", "prob_1"]].tolist(), atol=1e-5)
            assert one.path_maps.shape == (6, 166) and one.cpa.shape == one.dominant.shape == (166,)
            assert one.cpa.sum() == pytest.approx(1, abs=1e-4) or not one.weights.any()
            assert tuple(one.roi_ids) == atlas.ids and one.atlas == "AAL3v2"
        with np.load(folder / "randomised.npz", allow_pickle=False) as archive:
            assert archive["cpa"].shape == (8, 166)


def test_the_same_command_does_nothing_twice_and_adds_a_seed(
    done: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(done / "Results", tmp_path / "Results")
    monkeypatch.chdir(tmp_path)
    flags = f"--dataset PPMI --data_dir {data} --dynamic_length 40 --baselines"
    before = (tmp_path / "Results/PPMI/NeuroSSM/seed_0/fold_1/weights.safetensors").stat()
    assert run_tester([*flags.split(), *SMALL.split(), "--seeds", "0", "3"]) == 0
    assert capsys.readouterr().out.count("done before") == 6
    after = (tmp_path / "Results/PPMI/NeuroSSM/seed_0/fold_1/weights.safetensors").stat()
    assert before.st_mtime_ns <= after.st_mtime_ns and before.st_size == after.st_size
    # A fit that was ended in the middle is done again, with the same numbers.
    place = tmp_path / "Results/PPMI/NeuroSSM/seed_3/fold_2"
    wanted = (place / "predictions.csv").read_text()
    (place / "metrics.json").unlink()
    (place / "predictions.csv").write_text("torn")
    assert run_tester([*flags.split(), *SMALL.split(), "--seeds", "0", "3"]) == 0
    assert (place / "predictions.csv").read_text() == wanted
    with pytest.raises(UserInputError, match=r"^--results_dir: .*training.epochs: 2, now 3"):
        run([*flags.split(), *SMALL.replace("--epochs 2", "--epochs 3").split()])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("settings.json", '{"x', "settings.json' is damaged (Unterminated string"),
        ("settings.json", "[]", "settings.json' is damaged (found list, expected names"),
        ("seed_0/fold_1/metrics.json", "{}", "has damaged metrics or predictions. Remove it"),
        ("seed_0/fold_1/metrics.json", "3", "has damaged metrics or predictions. Remove it"),
        ("seed_0/fold_1/predictions.csv", "a,b\n1,2\n", "has damaged metrics or predictions"),
        ("seed_0/holdout/weights.safetensors", "torn", "holdout' to do that fit again"),
        ("seed_0/holdout/weights.safetensors", None, "holdout' to do that fit again"),
    ],
)
def test_damaged_results_are_named(
    done: Path, data: Path, tmp_path: Path, file: str, content: str | None, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(done / "Results", tmp_path / "Results")
    path = tmp_path / "Results/PPMI/NeuroSSM" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    flags = f"--dataset PPMI --data_dir {data} --dynamic_length 40 --results_dir {tmp_path}/Results"
    analysis = ["--analysis", "--analysis_dir", str(tmp_path / "maps"), "--baselines"]
    assert run_tester([*flags.split(), *SMALL.split(), *analysis]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_maps_never_take_each_others_place() -> None:
    check_names(["a-b", "a.b"])
    with pytest.raises(UserInputError, match=r"^--analysis: the scan 'a b' and the scan 'a/b'"):
        check_names(["a b", "a/b"])
    with pytest.raises(UserInputError, match=r"^--analysis: the scan 'x+ \.\.\.' has a name"):
        check_names(["x" * 300])
    with pytest.raises(UserInputError, match=r"^--analysis: the class 'a b' and the class 'a/b'"):
        check_names([], ["a b", "a/b"])
    with pytest.raises(UserInputError, match=r"^--analysis: the class 'y+ \.\.\.'"):
        check_names([], ["y" * 300])


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--analysis_dir", "cannot be made"), ("--atlas", "expected one volume of whole numbers")],
)
def test_an_explanation_is_checked_before_the_fits(
    data: Path, tmp_path: Path, flag: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    image = nib.nifti1.Nifti1Image(np.full((2, 2, 2), 0.5, dtype=np.float32), np.eye(4))
    nib.save(image, tmp_path / "half.nii.gz")
    value = {"--analysis_dir": "taken/maps", "--atlas": "half.nii.gz"}[flag]
    flags = f"--dataset PPMI --data_dir {data} --dynamic_length 40 --analysis"
    words = [*flags.split(), flag, f"{tmp_path}/{value}", "--results_dir", f"{tmp_path}/Results"]
    assert run_tester([*words, *SMALL.split()]) == 2
    assert re.search(f"^.*{flag}: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "Results").exists()


def test_a_killed_run_goes_on(data: Path, tmp_path: Path) -> None:
    """SIGTERM in the middle of a fit: status 75; the same command finishes the rest."""
    flags = f"--dataset PPMI --data_dir {data} --dynamic_length 40 --baselines"
    command = [sys.executable, "-W", "ignore", str(NEUROSSM / "tester.py"), *flags.split()]
    long = [*command, *SMALL.replace("--epochs 2", "--epochs 60").split()]
    process = subprocess.Popen(
        long, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    curve = tmp_path / "Results/PPMI/NeuroSSM/seed_0/fold_2/logs/metrics.csv"
    for _ in range(1200):
        if curve.is_file() and curve.read_text().count("\n") > 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "stopped in step" in errors and "Start it again" in errors
    assert (curve.parents[2] / "fold_1" / "metrics.json").is_file()
    assert not (curve.parents[1] / "metrics.json").exists()


@needs_nimare
def test_reference_analysis(
    done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the 20 studies that come with NiMARE."""
    import nimare

    from neuromamba.commands.regions_explain_reference import main as analyse

    shutil.copytree(data, tmp_path / "data")
    sample = Path(nimare.__file__).parent / "tests" / "data"
    (tmp_path / "data" / "neurosynth").mkdir()
    for file in sample.glob("data-neurosynth_version-7_*"):
        shutil.copy(file, tmp_path / "data" / "neurosynth")
    monkeypatch.chdir(tmp_path)
    Path("terms.yaml").write_text("PPMI:\n  Control: [activations]\n  PD: [acquisition, 12]\n")
    root = str(done / "Analysis" / "Explainability")
    flags = ["--root", root, "--out", "out", "--data_dir", "data", "--draws", "50"]
    status = analyse([*flags, "--terms", "terms.yaml"])
    maps = [read_scan_map(f) for f in sorted(Path(root).glob("PPMI/seed_*/subj_*.npz"))]
    right = {c for one in maps if one.correct for c in [str(one.classes[one.label])]}
    if not right:
        pytest.skip("this model has classified nothing rightly")
    assert status == 0
    atlas = read_atlas(data / "atlases" / "AAL3v2.nii.gz")
    labels = atlas.labels()
    assert {p.name for p in Path("out/maps/PPMI").iterdir()} == right
    for name in right:
        folder = Path("out/maps/PPMI") / name
        assert sorted(p.name for p in folder.iterdir()) == sorted(f"{n}.nii.gz" for n in FIVE)
        values = {}
        for kind in FIVE:
            image = nib.load(folder / f"{kind}.nii.gz")
            assert image.shape == labels.shape and np.array_equal(image.affine, atlas.image.affine)
            volume = np.asanyarray(image.dataobj)
            assert not volume[labels == 0].any()
            values[kind] = np.array([volume[labels == i][0] for i in atlas.ids])
            assert all(np.ptp(volume[labels == i]) == 0 for i in atlas.ids)
        own = [m for m in maps if m.correct and str(m.classes[m.label]) == name]
        np.testing.assert_allclose(
            values["cpa_score"], np.mean([m.cpa for m in own], axis=0), atol=1e-6
        )
        assert set(np.unique(values["cpa_dominant_pathway"])) <= set(range(7))
        top = values["cpa_score"] >= np.quantile(values["cpa_score"], 0.75)
        np.testing.assert_array_equal(values["cpa_score_top25_mask"], top)
        assert values["neurosynth_reference_score"].any()
    record = json.loads(Path("out/reports/PPMI/scores.json").read_text())
    assert set(record["classes"]) == right and record["draws"] == 50
    assert len(record["matrix"]["correlation"]) == len(right)
    assert "CPA and Neurosynth: PPMI" in Path("out/reports/PPMI/report.html").read_text()
    # The maps of terms are kept; a changed data base is noticed.
    kept = sorted(Path("data/neurosynth/z_maps").iterdir())
    times = [p.stat().st_mtime_ns for p in kept]
    assert analyse([*flags, "--terms", "terms.yaml"]) == 0
    assert [p.stat().st_mtime_ns for p in kept] == times
    vocabulary = Path("data/neurosynth/data-neurosynth_version-7_vocab-terms_vocabulary.txt")
    vocabulary.write_text(vocabulary.read_text() + "more\n")
    assert analyse([*flags, "--terms", "terms.yaml"]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dataset HCP_RST", "--dataset: unknown name 'HCP_RST'. Did you mean 'HCP_REST'?"),
        ("--dataset PPMI --model NeuroSMM", "--model: unknown name"),
        ("--dataset PPMI --device 0", "--device 0: torch finds no such GPU here"),
        ("--dataset PPMI --device gpu", "--device: got 'gpu', expected cpu or the number"),
        ("--dataset PPMI --device cpu --folds 1", "--folds: got 1, expected 2 or more"),
        ("--dataset PPMI --device cpu --seeds 1 1", "--seeds: got [1, 1]"),
        ("--dataset PPMI --device cpu --data_dir nowhere", "cannot be read"),
        ("--dataset PPMI --device cpu --model FC --analysis", "--analysis: explains NeuroSSM"),
        ("--dataset PPMI --device cpu --target x", "--target: belongs to --dataset Own"),
        ("--dataset PPMI --device cpu DATA --epochs 0", "--epochs: got 0, expected 1 or more"),
        ("--dataset PPMI --device cpu DATA --learning_rate 1", "--learning_rate: got 1"),
        ("--dataset PPMI --device cpu DATA --folds 50", "fewer than the 50 folds"),
        ("--dataset PPMI --device cpu DATA --short_scans refuse", "--short_scans refuse: 40"),
        ("--dataset PPMI --device cpu DATA --atlas x --analysis --skip_cross_validation "
         "--epochs 1 --embed_dim 32 --depth 1 --dynamic_length 40 --baselines",
         "--atlas: 'x' does not exist"),
    ],
)  # fmt: skip
def test_mistakes(
    flags: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = flags.replace("DATA", f"--data_dir {data}").split()
    assert run_tester(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and lines[-1].startswith("error: "), lines
