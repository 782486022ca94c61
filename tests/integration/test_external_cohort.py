"""--test_data: every model is tested on scans of another file, too."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromamba.commands.regions_synthetic import run as make_data
from neuromamba.commands.regions_train import run
from neuromamba.common.errors import UserInputError

SMALL = (
    "--dataset PPMI --embed_dim 32 --depth 1 --epochs 2 --dynamic_length 40 --device cpu "
    "--skip_cross_validation --seeds 0 1 --baselines FC Tangent"
)
FILE = "dataset_ppmi_atlas-AAL-3V2.pickle"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a data set with an external cohort; ``place / results``."""
    place = tmp_path_factory.mktemp("external")
    for name, subjects, seed in (("own", 40, 0), ("other", 24, 7)):
        made = f"--dataset PPMI --output {place / name} --subjects {subjects} --frames 60"
        make_data([*made.split(), "--seed", str(seed)])
    other = place / "other" / FILE
    # Other people: their names are those of the first data set otherwise.
    scans: Any = pickle.loads(other.read_bytes())
    for scan in scans:
        scan["pheno"]["subjectId"] = f"x{scan['pheno']['subjectId']}"
    other.write_bytes(pickle.dumps(scans))
    run(command(place))
    return place


def command(place: Path) -> list[str]:
    files = f"--data_dir {place / 'own'} --test_data {place / 'other' / FILE}"
    return f"{SMALL} {files} --results_dir {place / 'results'}".split()


def test_rows_and_intervals_of_the_external_cohort(trained: Path) -> None:
    for model in ("NeuroSSM", "FC", "Tangent"):
        folder = trained / "results" / "PPMI" / model
        with (folder / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["seed"], row["split"]) for row in rows] == [
            (seed, split) for seed in "01" for split in ("holdout", "external")
        ]
        external = [row for row in rows if row["split"] == "external"]
        assert {row["scans_tested"] for row in external} == {"24.0"}
        assert "external" in json.loads((folder / "summary.json").read_text())
    folder = trained / "results" / "PPMI" / "NeuroSSM"
    record = json.loads((folder / "external" / "evaluation.json").read_text())
    value = record["mean_over_seeds"]["metrics"]["auroc"]["value"]
    with (folder / "results.csv").open() as file:
        found = [float(r["auroc"]) for r in csv.DictReader(file) if r["split"] == "external"]
    assert value == pytest.approx(np.mean(found))
    assert record["mean_over_seeds"]["differences"].keys() == {"FC", "Tangent"}
    with (folder / "external" / "subjects.csv").open() as file:
        subjects = list(csv.DictReader(file))
    assert len(subjects) == 48 and all(row["subject"].startswith("x") for row in subjects)
    assert {row["part"] for row in subjects} == {"external"}
    page = (folder / "report.html").read_text()
    assert "Intervals on the external cohort" in page and "External cohort" in page
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison.keys() == {"holdout"}  # the same scans in every split are no sample of splits


def test_the_holdouts_are_those_of_a_run_without_it(trained: Path, tmp_path: Path) -> None:
    words = command(trained)
    del words[words.index("--test_data") : words.index("--test_data") + 2]
    words[words.index("--results_dir") + 1] = str(tmp_path)
    run(words)
    for model in ("NeuroSSM", "Tangent"):
        with_it, without = (
            (folder / "PPMI" / model / "seed_1" / "holdout" / "predictions.csv").read_text()
            for folder in (trained / "results", tmp_path)
        )
        assert with_it == without


def test_it_continues_and_refuses_another_cohort(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = trained / "results" / "PPMI" / "NeuroSSM" / "results.csv"
    before = table.read_text()
    run(command(trained))
    assert capsys.readouterr().out.count("done before") == 6 and table.read_text() == before
    words = command(trained)
    del words[words.index("--test_data") : words.index("--test_data") + 2]
    with pytest.raises(UserInputError, match=r"^--results_dir: .*test_data: .*now None"):
        run(words)


def test_it_can_be_added_to_a_finished_run(trained: Path, tmp_path: Path) -> None:
    words = command(trained)
    at = words.index("--test_data")
    without = [*words[:at], *words[at + 2 : -1], str(tmp_path)]
    run(without)
    fit = tmp_path / "PPMI/NeuroSSM/seed_0/holdout/weights.safetensors"
    before = fit.stat().st_mtime_ns
    run([*words[:-1], str(tmp_path)])
    assert fit.stat().st_mtime_ns == before, "trained again"
    for model in ("NeuroSSM", "FC", "Tangent"):
        for seed in "01":
            place = Path("PPMI") / model / f"seed_{seed}" / "external" / "predictions.csv"
            added, together = (
                [row["prob_1"] for row in csv.DictReader((folder / place).read_text().splitlines())]
                for folder in (tmp_path, trained / "results")
            )
            np.testing.assert_allclose(
                np.array(added, float), np.array(together, float), rtol=1e-4, atol=1e-6
            )
