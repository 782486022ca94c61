"""``neuromamba export`` of a NeuroSSM: what travels, what does not, and the same answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import neuromamba
from neuromamba.commands.export import main as export
from neuromamba.data.synthetic.regions import Recipe, scan
from neuromamba.evaluation.scores import read_scores
from neuromamba.inference.region_model import RegionModel
from neuromamba.reports.citations import NEUROSSM
from neuromamba.reports.region_model_card import region_model_card
from tests.helpers.trained_regions import TrainedRegions

SCANS = [scan(Recipe(166, 60, ("slow", "fast")), i % 2, 100 + i) for i in range(3)]


@pytest.fixture(scope="module")
def model(trained_regions: TrainedRegions) -> RegionModel:
    return trained_regions.model


@pytest.fixture(scope="module")
def shared(trained_regions: TrainedRegions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder."""
    folder = tmp_path_factory.mktemp("exported") / "shared"
    assert export([str(trained_regions.results), str(folder)]) == 0
    return folder


def test_a_folder_equals_the_run(shared: Path, model: RegionModel) -> None:
    """Predictions, embeddings, explanations and measures, to the last bit."""
    other = neuromamba.load(shared, device="cpu")
    assert isinstance(other, RegionModel)
    names = sorted(path.name for path in shared.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    for series in SCANS:
        both = [(one, one.prepare(series)) for one in (model, other)]
        assert both[0][1].measures == both[1][1].measures
        ours, theirs = (one.predict(scan).windows for one, scan in both)
        assert np.array_equal(ours, theirs)
        ours, theirs = (one.embed(scan).values for one, scan in both)
        assert np.array_equal(ours, theirs)
        maps = [one.explain(scan, method="gradxinput") for one, scan in both]
        assert np.array_equal(maps[0].values, maps[1].values)
        assert np.array_equal(maps[0].pathway.cpa, maps[1].pathway.cpa)
    assert other.evaluation == model.evaluation
    assert other.contract.describe() == model.contract.describe()


def test_a_file_equals_the_run(shared: Path, model: RegionModel, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    assert export([str(model.path), str(out)]) == 0
    other = neuromamba.load(out, device="cpu")
    ours, theirs = (one.predict(one.prepare(SCANS[0])).windows for one in (model, other))
    assert np.array_equal(ours, theirs)
    record = json.loads((tmp_path / "mine.safetensors.json").read_text())
    assert record["neurossm"] == model.metadata


def test_nothing_names_people_or_places(trained_regions: TrainedRegions, shared: Path) -> None:
    splits = (trained_regions.results / "splits.json").read_text()
    subjects = sorted(set(re.findall(r"1000\d\d", splits)))
    assert len(subjects) >= 6
    hidden = [*subjects, "private_place", str(trained_regions.root)]
    for path in shared.iterdir():
        content = path.read_bytes()
        assert [text for text in hidden if text.encode() in content] == [], path.name


def test_model_card(shared: Path, model: RegionModel, tmp_path: Path) -> None:
    """Its head, its sections, and the numbers of the holdout."""
    card = (shared / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    found = yaml.safe_load(head)
    assert found["library_name"] == "neuromamba" and found["datasets"] == ["PPMI"]
    assert "classification" in found["tags"] and "license" not in found
    assert set(found["metrics"]) == {"roc_auc", "accuracy", "balanced_accuracy"}
    sections = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    parts = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert list(parts) == [
        *("Intended use", "Training data", "What it expects of a scan", "Evaluation", "Limits"),
        *("How to use it", "Licence", "How to cite"),
    ]
    assert "It classifies disease: Control, PD." in sections[0] and "166 brain" in sections[0]
    auroc = model.evaluation["metrics"]["auroc"]
    shown = " ".join(f"{auroc[end]:.3f}" for end in ("value", "low", "high"))
    numbers = re.search(r"this model \| ([\d.]+) \[([\d.]+), ([\d.]+)\]", parts["Evaluation"])
    assert numbers is not None and " ".join(numbers.groups()) == shown
    tested = model.evaluation["subjects"]
    assert f"On the {tested} subjects of the holdout" in parts["Evaluation"]
    assert f"With {tested} test subjects the results decide nothing" in parts["Limits"]
    assert f"{model.metadata['training']['subjects']} subjects" in parts["Training data"]
    assert "Not stated" in parts["Licence"]
    assert NEUROSSM in parts["How to cite"]
    out = tmp_path / "licensed"
    assert export([str(model.path), str(out), "--license", "cc-by-nc-4.0"]) == 0
    licensed = (out / "README.md").read_text()
    assert yaml.safe_load(licensed.split("---\n")[1])["license"] == "cc-by-nc-4.0"
    assert "cc-by-nc-4.0, of the weights" in licensed


def test_the_card_shows_baselines_of_the_same_subjects(
    trained_regions: TrainedRegions, shared: Path, model: RegionModel
) -> None:
    """Their own metrics, from their predictions, and the paired difference."""
    own = read_scores(trained_regions.fit / "predictions.csv")
    text = (shared / "README.md").read_text()
    lines = text.splitlines()
    for name in ("FC", "MeanVariance", "Untrained"):
        place = trained_regions.results.parent / name / "seed_0" / "holdout"
        scores = read_scores(place / "predictions.csv")
        (row,) = (line for line in lines if line.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        metrics = map(scores.interval, ("auroc", "accuracy", "balanced_accuracy"))
        assert cells == [*map(str, metrics), str(own.difference(scores, "auroc"))]
        assert any(line.startswith(f"- {name}: logistic regression") for line in lines)
    # A file from before the metrics of baselines were kept: their cells are empty.
    metadata = json.loads(json.dumps(model.metadata))
    del metadata["evaluation"]["baselines"]
    older = region_model_card("older", metadata, None)
    difference = own.difference(read_scores(place / "predictions.csv"), "auroc")
    assert f"| Untrained |  |  |  | {difference} |" in older
    metadata["evaluation"]["differences"] = {}
    alone = region_model_card("alone", metadata, None)
    assert "No baselines were fitted" in alone and "model less this" not in alone


def test_lines_of_the_card_run(shared: Path, tmp_path: Path) -> None:
    """The Python lines, with the folder and a scan in place."""
    np.savetxt(tmp_path / "sub-01_series.csv", SCANS[0].T, delimiter=",")
    card = (shared / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    code = code.replace("MODEL_FOLDER", str(shared))
    code = code.replace("sub-01_series.csv", str(tmp_path / "sub-01_series.csv"))
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["model"], RegionModel)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights.pt"], "a model of regions has no released layout"),
        (["out", "--dtype", "bf16"], "--dtype: of models of volumes"),
        (["out", "--backbone_only"], "--backbone_only: of models of volumes"),
        (["out", "--keep_subject_keys"], "--keep_subject_keys: of models of volumes"),
        (["model.safetensors", "--license", "mit"], "--license: only used if OUTPUT is a folder"),
    ],
)
def test_what_is_refused(
    model: RegionModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert export([str(model.path), str(tmp_path / words[0]), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unasked(
    shared: Path, model: RegionModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert export([str(model.path), str(out)]) == 0
    assert export([str(model.path), str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert export([str(model.path), str(out), "--force"]) == 0
    assert export([str(model.path), str(model.path), "--force"]) == 2
    assert "is the model file itself" in capsys.readouterr().err
    many = tmp_path / "many"
    for seed in (0, 1):
        place = many / f"seed_{seed}" / "holdout"
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes(model.path.read_bytes())
    assert export([str(many), str(tmp_path / "other")]) == 2
    assert "CHECKPOINT: " in capsys.readouterr().err
