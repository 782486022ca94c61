"""neuromamba regions train again in the same folder, with other seeds or without folds."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from neuromamba.commands.regions_synthetic import run as make_data
from neuromamba.commands.regions_train import run
from neuromamba.common.errors import UserInputError
from neuromamba.neurossm import evaluate

Fit = tuple[str, str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set; pages are not drawn."""
    monkeypatch.setattr(evaluate, "write_report", lambda *_: tmp_path / "report.html")
    words = f"--dataset PPMI --output {tmp_path / 'data'} --subjects 40 --frames 60"
    make_data(words.split())
    return tmp_path


def train(place: Path, seeds: str, *, folds: bool = False) -> dict[Fit, dict[str, str]]:
    """Fits the baseline FC; (seed, split) -> row of ``results.csv``."""
    words = f"--dataset PPMI --data_dir {place / 'data'} --dynamic_length 40 --device cpu"
    words += f" --model FC --baselines --folds 2 --results_dir {place / 'results'} --seeds {seeds}"
    run([*words.split(), *([] if folds else ["--skip_cross_validation"])])
    return rows_of(folder(place))


def folder(place: Path) -> Path:
    return place / "results" / "PPMI" / "FC"


def rows_of(place: Path) -> dict[Fit, dict[str, str]]:
    with (place / "results.csv").open(newline="") as file:
        return {(row["seed"], row["split"]): row for row in csv.DictReader(file)}


def test_results_of_earlier_calls_stay(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = train(place, "1 4", folds=True)
    order = ["fold_1", "fold_2", "holdout"]
    assert [*first] == [(seed, split) for seed in "14" for split in order]
    assert "earlier calls" not in capsys.readouterr().out
    second = train(place, "0")
    said = capsys.readouterr().out
    assert "FC: results.csv and summary.json hold 6 fits of earlier calls, too (seeds 1, 4)" in said
    assert [*second] == [("0", "holdout"), *first]
    assert {key: second[key] for key in first} == first
    summary = json.loads((folder(place) / "summary.json").read_text())
    assert summary["holdout"]["auroc"]["fits"] == 3
    assert summary["cross_validation"]["auroc"]["fits"] == 4
    # What is said of holdouts and seeds is said of those that were asked for.
    assert json.loads((folder(place) / "evaluation.json").read_text())["holdouts"].keys() == {"0"}
    # The folds of seed 0 are added in their place, and nothing is fitted again.
    third = train(place, "0 4", folds=True)
    assert capsys.readouterr().out.count("done before") == 4
    assert [*third] == [*(("0", split) for split in order), *first]


def test_a_call_that_was_interrupted_is_no_result(place: Path) -> None:
    train(place, "0 1")
    (folder(place) / "seed_1" / "holdout" / "metrics.json").unlink()
    external = folder(place) / "seed_1" / "external"  # written before the holdout's is
    shutil.copytree(folder(place) / "seed_0" / "holdout", external)
    assert [*train(place, "0")] == [("0", "holdout")]


def test_damaged_files_of_earlier_calls_are_named(place: Path) -> None:
    train(place, "0")
    broken = folder(place) / "seed_0" / "holdout"
    (broken / "metrics.json").write_text("{}")
    with pytest.raises(UserInputError, match=r"^--results_dir: '.*seed_0/holdout' has damaged"):
        train(place, "1")
    shutil.rmtree(broken)
    assert [*train(place, "1")] == [("1", "holdout")]
    (folder(place) / "splits.json").write_text('{"first": {}}')
    with pytest.raises(UserInputError, match=r"^--results_dir: '.*splits.json' is damaged"):
        train(place, "1")
