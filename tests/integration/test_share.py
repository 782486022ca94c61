"""``neuromamba export MODEL FOLDER``: what travels, what does not, and the same answers."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import neuromamba
from neuromamba.checkpoints.io import read_checkpoint
from neuromamba.commands import check
from neuromamba.commands.export import main as export
from neuromamba.commands.train import run as train
from neuromamba.evaluation.scores import read_scores
from neuromamba.fmamba.baselines import baselines_of_data
from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.inference.loaded import LoadedModel
from neuromamba.reports.citations import FMAMBA, NEUROSSM
from tests.helpers.paths import ROOT
from tests.helpers.trained_model import Trained


@pytest.fixture(scope="module")
def runs(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of the runs, with predictions of enough validation subjects to calibrate on."""
    folder = tmp_path_factory.mktemp("runs")
    copies = {
        one.name: Path(shutil.copytree(one, folder / one.name))
        for one in (trained.sex, trained.age, trained.backbone)
    }
    rng = np.random.default_rng(3)
    for name in ("sex", "age"):
        head = "subject,window,target," + ("prob_0,prob_1" if name == "sex" else "prediction")
        lines = [head]
        for i in range(24):
            p = float(rng.uniform(0.05, 0.95))
            score = f"{i % 2},{p},{1 - p}" if name == "sex" else f"{20.0 + i},{30 * p + 15}"
            lines.append(f"person-{i:02d},0,{score}")
        (copies[name] / "validation_predictions.csv").write_text("\n".join(lines) + "\n")
    return copies


@pytest.fixture(scope="module")
def shared(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exported folders of the three runs."""
    folder = tmp_path_factory.mktemp("shared")
    for name, run in runs.items():
        assert export([str(run), str(folder / name)]) == 0
    return {name: folder / name for name in runs}


def parts(card: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The YAML head of a model card, and its sections by title."""
    _, head, text = card.split("---\n", 2)
    sections = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return yaml.safe_load(head), dict(zip(sections[1::2], sections[2::2], strict=True))


@pytest.mark.parametrize("name", ["sex", "age", "backbone"])
def test_a_folder_equals_the_run(
    trained: Trained, runs: dict[str, Path], shared: dict[str, Path], name: str
) -> None:
    """Predictions to the last bit, what is expected of a scan, ``in_range`` and calibration."""
    one, other = (neuromamba.load(place, device="cpu") for place in (runs[name], shared[name]))
    assert sorted(path.name for path in shared[name].iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    for number in range(3):
        scans = [model.prepare(trained.scan(number)) for model in (one, other)]
        assert scans[0].measures == scans[1].measures and scans[0].in_range is not None
        assert scans[0].in_range == scans[1].in_range
        assert scans[0].actions[:3] == scans[1].actions[:3]
        ours, theirs = (m.embed(s).values for m, s in zip((one, other), scans, strict=True))
        assert np.array_equal(ours, theirs)
        if name != "backbone":
            first, second = (m.predict(s) for m, s in zip((one, other), scans, strict=True))
            assert first.value == second.value and first.spread == second.spread
            assert np.array_equal(first.windows, second.windows)
            assert first.interval == second.interval and first.calibrated == second.calibrated
            assert (first.interval if name == "age" else first.calibrated) is not None
    assert one.calibration == other.calibration
    assert other.evaluation.get("metrics") == one.evaluation.get("metrics")
    assert (one.calibration is None) == (name == "backbone")


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pt"])
def test_nothing_names_people_or_places(
    trained: Trained, runs: dict[str, Path], tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"model{suffix}"
    assert export([str(runs["sex"]), str(out)]) == 0
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    data = read_checkpoint(runs["sex"]).metadata["data"]
    keys = {
        str(key)
        for name in ("training_subjects", "training_units", "training_contents")
        for key in data[name]
    }
    assert len(keys) >= 10  # of people, and of images
    hidden = [*keys, str(trained.root), str(runs["sex"].parent), "training_subjects", "sub-0"]
    for path in files:
        content = path.read_bytes()
        # The example's file name is sub-01_task-rest_bold.nii.gz.
        content = content.replace(b"sub-01_task-rest_bold", b"")
        assert [text for text in hidden if text.encode() in content] == [], path.name


def test_keys_are_kept_when_asked(runs: dict[str, Path], tmp_path: Path) -> None:
    assert export([str(runs["sex"]), str(tmp_path / "own"), "--keep_subject_keys"]) == 0
    contents = read_checkpoint(tmp_path / "own")
    assert contents.metadata == read_checkpoint(runs["sex"]).metadata
    assert contents.export["source"].startswith(str(runs["sex"]))
    assert "Do not publish this file" in (tmp_path / "own" / "README.md").read_text()


def test_loading_says_that_the_guard_is_lost(
    trained: Trained,
    runs: dict[str, Path],
    shared: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def recognised(model: LoadedModel) -> int:
        found = [f"{p}" for i in range(10) for p in model.prepare(trained.scan(i)).problems]
        return sum("trained on these very values" in text for text in found)

    with caplog.at_level(logging.WARNING, "neuromamba"):
        model = neuromamba.load(runs["sex"], device="cpu")
        assert caplog.text == ""
        assert recognised(model) == 5
        model = neuromamba.load(shared["sex"], device="cpu")
    assert "does not hold the keys of its training subjects" in caplog.text
    assert recognised(model) == 0
    check.main([str(shared["sex"]), str(trained.scan(0))])
    assert "training scans    not recognised" in capsys.readouterr().out


def test_a_run_says_that_the_guard_is_lost(
    trained: Trained,
    runs: dict[str, Path],
    shared: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A test of a shared model asks for the store, gives the same results, and warns."""
    flags = f"--test_only --test_ckpt_path {shared['sex']} --accelerator cpu"
    store = f"--image_path {trained.store} --output_dir {tmp_path / 'again'}"
    with caplog.at_level(logging.WARNING, "neuromamba"):
        train(f"{flags} {store}".split())
    assert "subjects held out here who were trained on there are not found" in caplog.text
    found = [read_scores(run / "predictions.csv") for run in (runs["sex"], tmp_path / "again")]
    assert found[0].subjects == found[1].subjects
    np.testing.assert_allclose(found[0].score, found[1].score, atol=1e-6)


# --- the model card -----------------------------------------------------------------------------


def test_card(runs: dict[str, Path], shared: dict[str, Path], tmp_path: Path) -> None:
    card = (shared["age"] / "README.md").read_text()
    head, sections = parts(card)
    assert head["library_name"] == "neuromamba" and "fmri" in head["tags"]
    assert "license" not in head and sections["Licence"].strip().startswith("Not stated.")
    assert head["datasets"] == ["Dummy"] and head["metrics"] == [
        *("mse", "mae", "pearsonr", "r_squared"),
    ]
    data = sections["Training data"]
    counts = read_checkpoint(runs["age"]).metadata["data"]
    for part, label in (("train", "training"), ("val", "validation"), ("test", "test")):
        n, windows = counts["subjects"][part], counts["windows"][part]
        assert f"| {label} | {n} subjects, {windows} windows |" in data
    assert "| repetition time | 2 s |" in data and "voxelnorm_zeroback" in data
    contract = neuromamba.load(shared["age"], device="cpu").contract
    for name, value in contract.describe():
        assert f"| {name} | {value} |" in sections["What it expects of a scan"]
    measured = json.loads((runs["age"] / "evaluation.json").read_text())
    error = measured["metrics"]["mae"]["value"]
    assert f"{error:.3f}" in sections["Evaluation"] and "years" in sections["Evaluation"]
    assert f"On {measured['subjects']} held-out test subjects" in sections["Evaluation"]
    assert "No baselines were fitted" in sections["Evaluation"]
    assert "no medical device" in sections["Intended use"]
    assert "guard against testing on training subjects is lost" in sections["Limits"]
    assert FMAMBA in sections["How to cite"]
    assert export([str(runs["age"]), str(tmp_path / "free"), "--license", "cc-by-4.0"]) == 0
    head, sections = parts((tmp_path / "free" / "README.md").read_text())
    assert head["license"] == "cc-by-4.0" and "cc-by-4.0" in sections["Licence"]


def test_card_of_a_backbone(shared: dict[str, Path]) -> None:
    head, sections = parts((shared["backbone"] / "README.md").read_text())
    assert "feature-extraction" in head["tags"] and "metrics" not in head
    assert "Loss of the validation subjects" in sections["Evaluation"]
    assert "Dynamic skill" in sections["Evaluation"]
    assert "neuromamba embed" in sections["How to use it"]


def test_card_shows_baselines_of_the_same_subjects(trained: Trained, tmp_path: Path) -> None:
    """Those that ``neuromamba report`` has fitted; not those of other targets."""
    run = tmp_path / "age"
    shutil.copytree(trained.age, run)
    baselines_of_data(RunFolder(run).data(), run / "baselines")
    assert export([str(run), str(tmp_path / "model")]) == 0
    shown = parts((tmp_path / "model" / "README.md").read_text())[1]["Evaluation"]
    model = read_scores(run / "predictions.csv")
    names = json.loads((run / "baselines" / "baselines.json").read_text())["baselines"]
    assert len(names) == 3
    for one in names:
        scores = read_scores(run / "baselines" / one["file"])
        row = next(line for line in shown.splitlines() if line.startswith(f"| {one['name']} |"))
        assert str(scores.interval("mae")) in row
        assert row.endswith(f"| {model.difference(scores, 'pearson_r')} |")
    assert "No baselines" not in shown
    record = run / "baselines" / "baselines.json"
    changed = json.loads(record.read_text())
    changed["key"]["targets_hash"] = "other"
    record.write_text(json.dumps(changed))
    assert export([str(run), str(tmp_path / "other")]) == 0
    shown = parts((tmp_path / "other" / "README.md").read_text())[1]["Evaluation"]
    assert "| mean volume |" not in shown and "No baselines" in shown


def test_commands_of_the_card(
    trained: Trained, shared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python lines run; its commands are those of the program."""
    for name in ("age", "backbone"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copytree(shared[name], folder / "MODEL_FOLDER")
        shutil.copy(trained.scan(1), folder / "sub-01_task-rest_bold.nii.gz")
        monkeypatch.chdir(folder)
        text = parts((shared[name] / "README.md").read_text())[1]["How to use it"]
        code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
        assert code.count("\n") == 5
        exec(compile(code, "README.md", "exec"), {})
        lines = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[0].splitlines()
        assert len(lines) == 3
        for line in lines[1:]:
            _, command, *words = line.split()
            module = __import__(f"neuromamba.commands.{command}", fromlist=["main"])
            assert module.main(words) == 0


def test_citations_are_the_repositorys() -> None:
    assert f"{FMAMBA}\n\n{NEUROSSM}\n" == (ROOT / "CITATION.bib").read_text()
    readme = (ROOT / "README.md").read_text()
    assert FMAMBA in readme


# --- refusals -----------------------------------------------------------------------------------


def test_refusals(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str | Path) -> str:
        assert export([*map(str, words)]) == 2
        return capsys.readouterr().err

    out = tmp_path / "model-1.5"  # no ending
    assert export([str(runs["sex"]), str(out)]) == 0
    assert (out / "README.md").is_file()
    assert "is there already" in refused(runs["sex"], out)
    assert export([str(runs["sex"]), str(out), "--force"]) == 0
    assert "holds another model (checkpoints)" in refused(runs["sex"], runs["age"], "--force")
    (out / "adapter.safetensors").write_bytes(b"")
    assert "holds another model (adapter.safetensors)" in refused(runs["sex"], out, "--force")
    assert "--license" in refused(runs["sex"], tmp_path / "w.pt", "--license", "mit")
    assert "identifier" in refused(runs["sex"], tmp_path / "w", "--license", "my own terms")
    torch.save({"norm.weight": torch.ones(2)}, tmp_path / "weights.pt")
    assert "holds weights only" in refused(tmp_path / "weights.pt", tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_tables_of_the_user_keep_their_names_only(trained: Trained, tmp_path: Path) -> None:
    """Labels from a file of the user's: its folder does not travel, the task stays the same."""
    table = tmp_path / "secret-place" / "scores.csv"
    table.parent.mkdir()
    with open(table, "w", newline="") as stream:
        csv.writer(stream).writerows(
            [("subject", "score"), *((f"sub-{i:02d}", i % 4) for i in range(10))]
        )
    train(
        f"--dataset_name Dummy --image_path {trained.store} --img_size 12 12 12 8 --embed_dim 16 "
        f"--depth 1 --train_split 0.5 --val_split 0.2 --max_epochs 1 --batch_size 2 --accelerator "
        f"cpu --label_csv {table} --target_column score --downstream_task_type regression "
        f"--output_dir {tmp_path / 'run'}".split()
    )
    assert export([str(tmp_path / "run"), str(tmp_path / "model")]) == 0
    for path in (tmp_path / "model").iterdir():
        assert b"secret-place" not in path.read_bytes()
    one, other = (neuromamba.load(tmp_path / name, device="cpu") for name in ("run", "model"))
    assert other.task is not None and other.task.label_csv == "scores.csv"
    values = [m.predict(m.prepare(trained.scan(0))).value for m in (one, other)]
    assert values[0] == values[1]
