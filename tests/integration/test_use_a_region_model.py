"""A trained NeuroSSM used on scans: ``neuromamba check``, ``predict``, ``embed``, in Python."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import neuromamba
from neuromamba.commands import check, embed, explain, predict
from neuromamba.commands.regions_train import main as train
from neuromamba.commands.train import main as train_volumes
from neuromamba.common.errors import UserInputError
from neuromamba.inference.region_model import RegionModel
from tests.helpers.trained_regions import TrainedRegions, rows, volumes_of


@pytest.fixture(scope="module")
def fit(trained_regions: TrainedRegions) -> Path:
    return trained_regions.fit


@pytest.fixture(scope="module")
def scans(trained_regions: TrainedRegions) -> dict[str, np.ndarray]:
    """Of the holdout."""
    return trained_regions.held_out


@pytest.fixture(scope="module")
def model(trained_regions: TrainedRegions) -> RegionModel:
    return trained_regions.model


@pytest.fixture(scope="module")
def regions(trained_regions: TrainedRegions) -> tuple[str, ...]:
    return trained_regions.atlas.regions


def write(path: Path, series: np.ndarray, names: Any = None) -> Path:
    """Write series [N, T] as a file of any kind."""
    table = pd.DataFrame(series.T, columns=None if names is None else list(names))
    if path.suffix == ".npy":
        np.save(path, series)
    elif path.suffix == ".parquet":
        table.columns = table.columns.map(str)
        table.to_parquet(path)
    else:
        separator = {".csv": ",", ".tsv": "\t", ".1D": " "}[path.suffix]
        table.to_csv(path, sep=separator, index=False, header=names is not None)
    return path


# --- the model file -----------------------------------------------------------------------------


def test_file_of_a_model(fit: Path, regions: tuple[str, ...]) -> None:
    """The weights of the fit, and what is needed to use them; no subject, no folder."""
    with safe_open(fit / "model.safetensors", "pt") as file:
        text = file.metadata()["neurossm"]
    found = json.loads(text)
    assert found["classes"] == ["Control", "PD"] and found["target"] == "disease"
    assert found["regions"] == list(regions) and found["crop"] == 40
    assert found["training"]["scans"] == 32 and found["training"]["measures"]["frames"] == [60] * 3
    record = json.loads((fit.parents[1] / "evaluation.json").read_text())["holdouts"]["0"]
    assert found["evaluation"]["metrics"] == record["metrics"]
    baselines = {"FC", "MeanVariance", "Untrained"}
    assert found["evaluation"]["differences"].keys() == baselines
    assert found["evaluation"]["baselines"].keys() == baselines
    ours, weights = (load_file(fit / n) for n in ("model.safetensors", "weights.safetensors"))
    assert ours.keys() == weights.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in weights.items())
    names = {row["subject"] for row in rows(fit / "predictions.csv")}
    assert "/" not in text.replace("AAL3v2", "") and not any(name in text for name in names)


def test_results_mean_their_only_seed(
    trained_regions: TrainedRegions, fit: Path, model: RegionModel
) -> None:
    for place in (trained_regions.results, fit, fit / "model.safetensors"):
        assert neuromamba.load(place, device="cpu").path == fit / "model.safetensors"
    assert model.contract.describe()[0] == ("series", "166 regions, AAL3v2")
    with pytest.raises(UserInputError, match="no file"):
        neuromamba.load(fit / "nothing", device="cpu")


def test_results_of_several_seeds_and_old_ones(
    fit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        place = tmp_path / "many" / f"seed_{seed}" / "holdout"
        place.mkdir(parents=True)
        (place / "model.safetensors").write_bytes((fit / "model.safetensors").read_bytes())
    with pytest.raises(UserInputError, match=r"several seeds; name .*seed_0/holdout"):
        neuromamba.load(tmp_path / "many", device="cpu")
    place = tmp_path / "old" / "seed_0" / "holdout"
    place.mkdir(parents=True)
    (place / "weights.safetensors").write_bytes((fit / "weights.safetensors").read_bytes())
    with pytest.raises(UserInputError, match="before models were kept in one file"):
        neuromamba.load(tmp_path / "old", device="cpu")
    data = (fit / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserInputError, match="MODEL"):
        neuromamba.load(tmp_path / "cut.safetensors", device="cpu")
    assert explain.main([str(fit), "scan.csv", "-o", str(tmp_path / "out")]) == 2
    assert "BOLD" in capsys.readouterr().err


def test_only_some_commands_use_one(
    trained_regions: TrainedRegions, fit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training of volumes says what it was given, and not that a grid differs."""
    for words in (
        ["--test_only", "--test_ckpt_path", str(fit / "model.safetensors")],
        ["--pretraining", "--load_model_path", str(fit / "model.safetensors")],
    ):
        shared = ["--dataset_name", "Dummy", "--image_path", str(tmp_path), "--accelerator", "cpu"]
        assert train_volumes([*shared, *words]) == 2
        message = capsys.readouterr().err
        assert f"{words[-2]}: " in message and "is a model of regional series" in message
    with pytest.raises(UserInputError, match="BOLD: no file of series"):
        neuromamba.load(fit, device="cpu").predict_many(tmp_path)


def test_a_shared_file_is_enough(
    fit: Path, model: RegionModel, scans: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Copied away, alone in a folder of its own."""
    (tmp_path / "model.safetensors").write_bytes((fit / "model.safetensors").read_bytes())
    other = neuromamba.load(tmp_path, device="cpu")
    series = next(iter(scans.values()))
    values = [m.predict(m.prepare(series)).windows for m in (model, other)]
    assert np.array_equal(*values)


# --- predictions --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".npy", ".1D", ".parquet"])
def test_predictions_are_those_of_the_holdout(
    fit: Path,
    scans: dict[str, np.ndarray],
    regions: tuple[str, ...],
    tmp_path: Path,
    suffix: str,
) -> None:
    """From files of every kind, in one call, in the columns of all predictions."""
    names = None if suffix in (".npy", ".1D") else regions
    for name, series in scans.items():
        write(tmp_path / f"{name}{suffix}", series.astype(np.float64), names)
    out = tmp_path / "out"
    status = predict.main([str(fit), str(tmp_path), "-o", str(out), "--no-report"])
    assert status == 0
    table = {row["scan"]: row for row in rows(out / "predictions.csv")}
    columns = "scan subject session run status reason windows prediction spread in_range"
    assert list(next(iter(table.values()))) == [*columns.split(), "prob_Control", "prob_PD"]
    expected = {row["scan"]: row for row in rows(fit / "predictions.csv")}
    assert table.keys() == expected.keys() and len(table) == 8
    for name, row in table.items():
        for ours, theirs in (("prob_Control", "prob_0"), ("prob_PD", "prob_1")):
            assert float(row[ours]) == pytest.approx(float(expected[name][theirs]), abs=1e-6)
        assert row["status"] == ("ok" if names else "warned")
        assert ("only their number" in row["reason"]) == (names is None)
        assert row["in_range"] == "true" and row["windows"] == "1" and row["spread"] == ""
    record = json.loads((out / "run.json").read_text())
    assert record["model"]["kind"] == "NeuroSSM, model of disease"


def test_regions_are_ordered_by_their_names(
    model: RegionModel, scans: dict[str, np.ndarray], regions: tuple[str, ...], tmp_path: Path
) -> None:
    series = next(iter(scans.values()))
    order = np.random.default_rng(0).permutation(len(regions))
    straight = write(tmp_path / "a.csv", series, regions)
    mixed = write(tmp_path / "b.csv", series[order], np.array(regions)[order])
    both = [model.prepare(path) for path in (straight, mixed)]
    assert np.array_equal(both[0].series, both[1].series)
    assert any("by their names" in action for action in both[1].actions)
    assert model.predict(both[0]).probabilities == model.predict(both[1]).probabilities
    other = write(tmp_path / "c.csv", series, ["Region_X", *regions[1:]])
    with pytest.raises(UserInputError, match="other regions than the training's: it lacks"):
        model.prepare(other)


def test_a_column_that_counts_frames_is_no_region(
    model: RegionModel, scans: dict[str, np.ndarray], regions: tuple[str, ...], tmp_path: Path
) -> None:
    series = next(iter(scans.values()))
    pd.DataFrame(series.T, columns=list(regions)).to_csv(tmp_path / "index.csv")  # pandas' index
    found = model.prepare(tmp_path / "index.csv")
    assert found.series.shape == series.shape and found.problems == ()


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
def test_a_transposed_matrix_is_refused(
    model: RegionModel, scans: dict[str, np.ndarray], tmp_path: Path, suffix: str
) -> None:
    series = next(iter(scans.values()))
    path = write(tmp_path / f"turned{suffix}", series.T)
    with pytest.raises(UserInputError, match="It is transposed: turn it"):
        model.prepare(path)
    rng = np.random.default_rng(1)
    count = len(series)
    smooth = np.cumsum(rng.normal(size=(count, count)), axis=1)  # [N, T] with T = N
    assert model.prepare(write(tmp_path / f"square{suffix}", smooth)).series.shape == (count, count)
    with pytest.raises(UserInputError, match="seems to be transposed"):
        model.prepare(write(tmp_path / f"square_turned{suffix}", smooth.T))
    with pytest.raises(UserInputError, match="correlations, not the series"):
        model.prepare(write(tmp_path / f"fc{suffix}", np.corrcoef(series)))


def test_what_cannot_be_used(
    fit: Path,
    scans: dict[str, np.ndarray],
    regions: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One row a scan, with the reason; exit status 1."""
    series = next(iter(scans.values())).astype(np.float64)
    holes = series.copy()
    holes[3, 5] = np.nan
    np.save(tmp_path / "objects.npy", np.array([{"roiTimeseries": series}], dtype=object))
    (tmp_path / "words.csv").write_text(",".join(regions) + "\n" + ",".join(["x"] * 166) + "\n")
    (tmp_path / "ragged.csv").write_text("1,2,3\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    files = {
        "good": write(tmp_path / "good.csv", series, regions),
        "holes": write(tmp_path / "holes.npy", holes),
        "few": write(tmp_path / "few.csv", series[:, :6], regions),
        "atlas": write(tmp_path / "atlas.csv", series[:100]),
        "flat": write(tmp_path / "flat.csv", np.ones_like(series), regions),
        **{n: tmp_path / n for n in ("objects.npy", "words.csv", "ragged.csv", "empty.csv")},
        "kind": tmp_path / "series.mat",
    }
    (tmp_path / "series.mat").write_bytes(b"MATLAB")
    nibabel.save(
        nibabel.Nifti1Image(np.ones((4, 4, 4, 20), np.float32), np.eye(4)), tmp_path / "v.nii.gz"
    )
    files["volume"] = tmp_path / "v.nii.gz"
    words = [*map(str, files.values()), str(tmp_path / "gone.csv")]
    out = tmp_path / "out"
    assert predict.main([str(fit), *words, "-o", str(out)]) == 1
    capsys.readouterr()
    table = rows(out / "predictions.csv")
    found = dict(zip([*files, "gone"], table, strict=True))
    assert found["good"]["status"] == "ok"
    for name, reason in {
        "holes": "1 values are not finite",
        "few": "6 frames, the model needs 8 or more",
        "atlas": "Is it of another atlas?",
        "flat": "all regions are constant",
        "objects.npy": "cannot be read as an array of numbers",
        "words.csv": "line 2 has 'x', expected 166 numbers",
        "ragged.csv": "line 2 has '2 cells', expected 3 numbers",
        "empty.csv": "holds no numbers",
        "kind": "expected the series of one scan",
        "volume": "a NIfTI file needs --atlas, the atlas of the training (AAL3v2)",
        "gone": "no such file",
    }.items():
        assert found[name]["status"] == "refused", name
        assert reason in found[name]["reason"], (name, found[name]["reason"])
    page = (out / "report.html").read_text()
    assert "Prediction of disease" in page and "AUROC" in page and "166 regions" in page
    for flag, value in (("--mask", "nonzero"), ("--scaling", "znorm_minback")):
        assert predict.main([str(fit), words[0], "-o", str(out), flag, value]) == 2
        assert flag in capsys.readouterr().err


def test_repetition_time(fit: Path, scans: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Resampled if the training's is known and another; said if it is not known."""
    loaded = neuromamba.load(fit, device="cpu")
    assert isinstance(loaded, RegionModel)
    series = next(iter(scans.values()))
    assert any("is not known" in action for action in loaded.prepare(series, tr=2.0).actions)
    known = RegionModel(
        path=loaded.path,
        metadata={**loaded.metadata, "tr": [2.0]},
        model=loaded.model,
        device=loaded.device,
    )
    assert known.prepare(series, tr=2.1).series.shape[1] == series.shape[1]
    slower = known.prepare(series, tr=1.0)
    assert slower.series.shape[1] == series.shape[1] // 2 and slower.tr == 2.0
    assert "resampled" in str(slower.problems[0])
    with pytest.raises(UserInputError, match="--strict"):
        known.prepare(series, tr=1.0, strict=True)


def test_out_of_range(model: RegionModel, scans: dict[str, np.ndarray]) -> None:
    noise = np.random.default_rng(0).normal(size=next(iter(scans.values())).shape)
    smooth = model.prepare(np.cumsum(noise, axis=1))
    assert repr(model).startswith("<RegionModel: NeuroSSM, model of disease, ")
    assert repr(smooth).endswith("out of the range of the training>")
    assert smooth.in_range is False
    assert "lag1" in {one.name for one in smooth.out_of_range}
    with pytest.raises(UserInputError, match=r"--strict: .*lag1 \(lag-1 autocorrelation"):
        model.prepare(np.cumsum(noise, axis=1), strict=True)


# --- embeddings, NIfTI --------------------------------------------------------------------------


def test_embeddings_are_the_pathways(
    fit: Path,
    model: RegionModel,
    scans: dict[str, np.ndarray],
    regions: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [
        str(write(tmp_path / f"{name}.csv", series, regions))
        for name, series in list(scans.items())[:3]
    ]
    out = tmp_path / "out"
    assert embed.main([str(fit), *files, "-o", str(out), "--no-report"]) == 0
    table = pyarrow.parquet.read_table(out / "embeddings.parquet").to_pandas()
    layers = ["raw_1", "raw_2", "raw_4", "diff_1", "diff_2", "diff_4", "fused"]
    assert table["layer"].tolist() == layers * 3 and "f31" in table and "f32" not in table
    one = table[table["layer"] == "fused"].filter(regex=r"^f\d").to_numpy()
    logits = one @ model.model.output.weight.detach().numpy().T + (
        model.model.output.bias.detach().numpy()
    )
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, path in zip(chance, files, strict=True):
        found = list(model.predict(model.prepare(path)).probabilities.values())
        assert found == pytest.approx(row.tolist(), abs=1e-5)
    assert embed.main([str(fit), *files, "-o", str(tmp_path / "o"), "--pool", "window"]) == 2
    assert "--pool: of models of volumes" in capsys.readouterr().err


def test_volumes_with_the_atlas(
    trained_regions: TrainedRegions, fit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A 4D NIfTI file gives the prediction of its regional means."""
    path, atlas = trained_regions.atlas_file, trained_regions.atlas
    image, series = volumes_of(atlas)
    scan = tmp_path / "sub-01_space-MNI152NLin6Asym_bold.nii.gz"
    nibabel.save(image, scan)
    model = neuromamba.load(fit, device="cpu")
    assert isinstance(model, RegionModel)
    found = model.with_atlas(path).prepare(scan)
    assert found.subject == "sub-01" and found.tr == 2.0
    np.testing.assert_allclose(found.series, series, rtol=1e-4)
    assert check.main([str(fit), str(scan), "--atlas", str(path)]) == 0
    assert "mean over each of the 166 regions" in capsys.readouterr().out
    with pytest.raises(UserInputError, match="no file and none of"):
        model.with_atlas("AAL99")
    other = tmp_path / "other.nii.gz"
    moved = nibabel.Nifti1Image(np.roll(atlas.labels(), 1, axis=0), atlas.image.affine)
    nibabel.save(moved, other)
    with pytest.raises(UserInputError, match="other voxels or labels"):
        model.with_atlas(other)


def test_extraction_of_the_training_is_recorded(
    trained_regions: TrainedRegions, tmp_path: Path
) -> None:
    """Of series by ``neuromamba regions extract``: atlas, names, cleaning, repetition time."""
    source = next(trained_regions.data.glob("*.pickle"))
    data = tmp_path / "mine.pickle"
    data.write_bytes(source.read_bytes())
    with open(source, "rb") as stream:
        everything = pickle.load(stream)
    for one in everything:
        series = np.asarray(one["roiTimeseries"])
        one["roiTimeseries"] = series if len(series) == 166 else series.T
    with open(data, "wb") as stream:
        pickle.dump(everything, stream)
    record = {
        "atlas": "mine",
        "atlas_hash": "0123",
        "regions": [f"R{i}" for i in range(166)],
        "confounds": "basic",
        "low_pass": 0.1,
        "high_pass": None,
        "runs": [{"tr": 2.0}, {"tr": 2.0}, {"tr": None}],
    }
    (tmp_path / "mine.json").write_text(json.dumps(record))
    words = f"--dataset Own --data_file {data} --target disease --results_dir {tmp_path / 'out'}"
    rest = "--dynamic_length 40 --epochs 1 --embed_dim 32 --depth 1 --device cpu --baselines"
    assert train(f"{words} --skip_cross_validation {rest}".split()) == 0
    model = neuromamba.load(tmp_path / "out" / "Own" / "NeuroSSM", device="cpu")
    expected = dict(model.contract.describe())
    assert expected["series"] == "166 regions, mine" and expected["repetition time"] == "2 s"
    assert expected["order of regions"] == "R0 ... R165"
    assert expected["cleaning"] == "confounds basic, 0 to 0.1 Hz"
