"""neuromamba reproduce --table abide, on a small synthetic copy of the files in their format."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from neuromamba.commands import regions_import, regions_train, reproduce
from neuromamba.common.stages import StageFailure
from neuromamba.evaluation.corrected_t import corrected_interval
from neuromamba.neurossm import evaluate
from neuromamba.reports.real_subjects import abide, tables
from neuromamba.reports.real_subjects.real_table import REAL_TABLES
from tests.helpers.region_collections import people, write_abide_npz, write_nilearn_abide

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with its steps in this process: exit status, stdout, stderr."""
    commands = {"import": regions_import.main, "train": regions_train.main}

    def in_process(stage: str, command: tuple[str, ...]) -> None:
        print(f"$ {stage}")
        if commands[command[1]](command[2:]) != 0:
            raise StageFailure(f"stage '{stage}' failed")

    monkeypatch.setattr(tables, "run_stage", in_process)
    monkeypatch.setattr(evaluate, "write_report", lambda *_: tmp_path / "report.html")
    monkeypatch.chdir(tmp_path)

    def call(words: str) -> tuple[int, str, str]:
        status = reproduce.main(words.split())
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def write_results(folder: Path, auroc: dict[tuple[int, str], float]) -> None:
    """What ``regions train`` leaves of finished fits, as far as a table reads it."""
    folder.mkdir(parents=True)
    rows = [
        {"model": folder.name, "seed": seed, "split": split, "auroc": value}
        | {"balanced_accuracy": value - 0.1, "accuracy": value - 0.05}
        | {"scans_fitted": 40, "scans_tested": 10, "seconds": 3.0}
        for (seed, split), value in auroc.items()
    ]
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    tested: dict[str, dict[str, list[str]]] = {}
    for seed, split in auroc:
        tested.setdefault(str(seed), {})[split] = [f"{seed}{split}{i}" for i in range(10)]
    (folder / "splits.json").write_text(json.dumps(tested))


def test_a_table_of_finished_runs(run: Run, tmp_path: Path) -> None:
    own = {(seed, "holdout"): 0.8 + 0.01 * seed for seed in range(4)}
    linear = {(seed, "holdout"): 0.75 + 0.03 * (seed % 2) for seed in range(4)}
    diagnosis = tmp_path / "output/reproduce_abide/diagnosis/Own"
    write_results(diagnosis / "NeuroSSM", own)
    write_results(diagnosis / "FC", linear | {(17, "holdout"): 0.1})  # of another call, left out
    after = {(seed, "holdout"): 0.74 + 0.01 * seed for seed in (0, 1, 2)}
    write_results(diagnosis / "FC-ComBat", after)
    write_results(tmp_path / "output/reproduce_abide/paper/Own/NeuroSSM", {(1, "holdout"): 0.99})
    sites = {(0, "without_A"): 1.0, (0, "without_B"): 0.95, (0, "without_C"): 0.6}
    sites[0, "holdout"] = 0.1
    write_results(tmp_path / "output/reproduce_abide/sites/Own/NeuroSSM", sites)
    status, out, err = run("--table abide --collect --paper_dir paper")
    assert (status, err) == (0, "")
    assert "table abide: paper/table.md" in out
    found = json.loads((tmp_path / "paper/table.json").read_text())
    assert found["command"] == "neuromamba reproduce --table abide"
    by_holdout, by_site = found["groups"]  # sex and age have no results yet
    assert [row["model"] for row in by_holdout["rows"]] == [
        *("NeuroSSM, robust recipe", "FC", "FC-ComBat", "NeuroSSM, paper's recipe"),
    ]
    neurossm, fc, combat, paper = by_holdout["rows"]
    expected = corrected_interval([*own.values()], 0.25)
    assert [*neurossm["metrics"]["auroc"].values()] == pytest.approx([*expected])
    less = corrected_interval([own[key] - linear[key] for key in own], 0.25)
    assert [*fc["first_less_this"].values()] == pytest.approx([*less])
    assert combat["note"] == "3 of 4 splits"
    (pair,) = by_holdout["pairs"]  # the other linear models have no results
    change = corrected_interval([after[key] - linear[key] for key in after], 0.25)
    assert (pair["model"], pair["other"], pair["splits"]) == ("FC-ComBat", "FC", 3)
    assert [*pair["difference"].values()] == pytest.approx([*change])
    assert by_site["pairs"] == []
    assert paper["note"] == "1 of 4 splits"
    assert paper["first_less_this"] == {"value": pytest.approx(-0.18), "low": None, "high": None}
    assert by_holdout["subjects"] == 40 and by_holdout["splits"] == 4

    # Sites without the holdout beside them; no interval goes beyond what an AUROC can be.
    assert by_site["splits"] == 3 and by_site["subjects"] == 30
    mean = by_site["rows"][0]["metrics"]["auroc"]
    assert mean["value"] == pytest.approx(0.85) and mean["high"] == 1.0
    assert by_site["split_hash"] != by_holdout["split_hash"]

    with open(tmp_path / "paper/table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * (4 + 1) + 1
    assert {row["split_hash"] for row in rows[:13]} == {by_holdout["split_hash"]}
    assert rows[12]["model"] == "FC-ComBat less FC" and rows[12]["metric"] == "auroc_difference"
    assert float(rows[12]["low"]) == pytest.approx(change.low, abs=1e-6)
    text = (tmp_path / "paper/table.md").read_text()
    assert "40 subjects tested in 4 splits" in text and "Tangent" not in text
    assert f"| FC-ComBat less FC | {change} | 3 |" in text
    # These results are of before balanced accuracy at prevalence.
    assert "AUROC | Balanced accuracy | Accuracy |" in text
    assert (tmp_path / "paper/figure.png").is_file() and (tmp_path / "paper/figure.pdf").is_file()

    (diagnosis / "FC/results.csv").write_text("model,seed\nFC,x\n")
    status, _, err = run("--table abide --collect")
    assert status == 2 and "FC/results.csv' is damaged" in err


@pytest.mark.slow
@pytest.mark.timeout(1200)  # five evaluations, each a few seconds on an idle processor
def test_a_table_from_files_to_figure(run: Run, tmp_path: Path) -> None:
    """All rows, each compared with NeuroSSM on the same splits, by one command."""
    write_abide_npz(tmp_path / "abide_roi", people(90))
    words = "--table abide --data_dir abide_roi --paper_dir paper --seeds 0"
    status, _, err = run(f"{words} -- --epochs 1")
    assert (status, err) == (0, "")
    found = json.loads((tmp_path / "paper/table.json").read_text())
    groups = {group["name"]: group for group in found["groups"]}
    assert [*groups] == ["diagnosis", "diagnosis_by_site", "sex", "age"]
    assert [group["splits"] for group in groups.values()] == [1, 3, 1, 1]  # three sites
    assert groups["diagnosis_by_site"]["subjects"] == 90
    assert len({group["split_hash"] for group in groups.values()}) == 4
    models = [row["model"] for row in groups["diagnosis"]["rows"]]
    linear = ["Tangent", "FC", "PartialCorrelation"]
    harmonised = [f"{name}-ComBat" for name in linear]
    own, paper = "NeuroSSM, robust recipe", "NeuroSSM, paper's recipe"
    assert models == [own, *linear, "MLP", "Confounds", *harmonised, paper]
    for name in ("diagnosis_by_site", "sex", "age"):
        found_of = [row["model"] for row in groups[name]["rows"]]
        assert found_of == [own, *linear, "MLP", "Confounds"]
    assert [pair["model"] for pair in groups["diagnosis"]["pairs"]] == harmonised
    for group in groups.values():
        assert all(row["first_less_this"] for row in group["rows"][1:])
    assert "balanced_accuracy_at_prevalence" in groups["sex"]["rows"][0]["metrics"]
    assert "balanced_accuracy_at_prevalence" not in groups["age"]["rows"][0]["metrics"]
    fc = pd.read_csv(tmp_path / "output/reproduce_abide/age/Own/FC/results.csv")
    row = next(row for row in groups["age"]["rows"] if row["model"] == "FC")
    assert row["metrics"]["mae"]["value"] == pytest.approx(fc.mae.mean())

    status, out, _ = run(f"{words} -- --epochs 1")
    assert status == 0 and "$ " not in out and out.count("finished before") == 6
    assert json.loads((tmp_path / "paper/table.json").read_text())["groups"] == found["groups"]


def test_tables_without_their_files_are_left_out(run: Run, tmp_path: Path) -> None:
    status, out, err = run("--table abide")
    assert (status, out) == (2, "")
    assert "'../shared/data/abide_roi' does not exist" in err and "docs/results_abide.md" in err
    (tmp_path / "empty").mkdir()
    status, _, err = run("--table abide --data_dir empty")
    assert status == 2 and "'empty' does not hold its files" in err
    status, _, err = run("--table abide --collect")
    assert status == 2 and "nothing to collect" in err
    (tmp_path / "output/reproduce_abide").mkdir(parents=True)
    status, _, err = run("--table abide --collect")
    assert status == 2 and "no finished run" in err


def test_the_folder_of_nilearn_is_enough(tmp_path: Path) -> None:
    write_nilearn_abide(tmp_path)
    assert abide.TABLE.present(tmp_path / "ABIDE_pcp")


def test_the_commands_are_shown(run: Run) -> None:
    status, out, err = run("--table abide --dry_run --seeds 4 5 -- --device 0")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "# abide, from ../shared/data/abide_roi"
    assert len(lines) == 7 and all(line.startswith("neuromamba regions ") for line in lines[1:])
    assert "--device" not in lines[1]
    assert all(line.endswith("--device 0") for line in lines[2:])
    assert "--seeds 4 5 " in lines[2] and "--leave_out site" in lines[5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--table abide 1", "--table: 1 and abide take different flags"),
        ("--table abide --image_path x", "--image_path: belongs to the papers' tables"),
        ("--table abide --dataset_name HCP", "--dataset_name: belongs to the papers' tables"),
        ("--table abide --seeds 1 1", "--seeds: got [1, 1], expected different"),
        ("--table abide -- --recipe paper", "--recipe: stands after --"),
        ("--table 1 --data_dir x", "--data_dir: belongs to the tables abide"),
        ("--study objectives --data_dir x", "--data_dir: belongs to the tables abide"),
    ],
)
def test_mistakes(run: Run, words: str, message: str) -> None:
    status, _, err = run(words)
    assert status == 2 and message in err, err


def test_every_table_is_registered_and_documented() -> None:
    listed = tables.real_tables()
    assert tuple(listed) == REAL_TABLES
    for name, table in listed.items():
        assert table.name == name
        document = Path(__file__).parents[2] / table.document
        assert f"--table {name}" in document.read_text(encoding="utf-8"), table.document
