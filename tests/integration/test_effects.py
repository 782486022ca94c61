"""Two synthetic data sets of one kind of effect each: baselines see their own kind, and only it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from neuromamba.commands import preprocess as preprocessing
from neuromamba.commands import synthetic as synthetic_command
from neuromamba.commands.report import main as report
from neuromamba.commands.train import main as train
from neuromamba.evaluation.scores import read_scores

GRID = ["15", "18", "15"]


@pytest.mark.parametrize(
    ("effect", "wins", "fails"),
    [("spatial", "mean_volume", "fc"), ("correlations", "fc", "mean_volume")],
)
def test_a_baseline_sees_its_own_kind_of_effect(
    effect: str, wins: str, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the public commands, to the sentence in the report."""
    monkeypatch.chdir(tmp_path)
    make = ["--output", "nifti", "--subjects", "80", "--frames", "24", "--effect", effect]
    assert synthetic_command.main([*make, "--grid", *GRID, "--num_workers", "1"]) == 0
    convert = ["--input", "nifti", "--output", "store", "--img_size", *GRID]
    assert preprocessing.main([*convert, "--dataset_name", "Dummy", "--num_workers", "1"]) == 0
    Path("store/metadata").mkdir(exist_ok=True)
    shutil.copy("nifti/participants.csv", "store/metadata")
    flags = (
        "--dataset_name Dummy --image_path store --img_size 15 18 15 8 --patch_size 5 6 5 4 "
        "--embed_dim 16 --depth 1 --train_split 0.5 --val_split 0.1 --max_epochs 1 "
        "--accelerator cpu --batch_size 8 --output_dir run"
    )
    assert train(flags.split()) == 0
    assert report(["run"]) == 0
    area = {
        name: read_scores(Path(f"run/baselines/{name}.csv")).metrics()["auroc"]
        for name in (wins, fails)
    }
    assert area[wins] >= 0.95 and 0.25 < area[fails] < 0.75, area
    html = Path("run/report/report.html").read_text(encoding="utf-8")
    better = {"fc": "FC", "mean_volume": "mean volume"}[wins]
    assert f"is worse than {better}" in html
    assert len(json.loads(Path("run/baselines/baselines.json").read_text())["baselines"]) == 3
