"""``neuromamba explain`` of a NeuroSSM: parts of regions and pathways, groups, maps, refusals."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel import orientations
from safetensors import safe_open
from safetensors.torch import load_file, save

import neuromamba
from neuromamba.commands.explain import main as explain
from neuromamba.commands.regions_train import main as train
from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.batches import z_scored
from neuromamba.inference.attribution import Objective
from neuromamba.inference.group_maps import group_map
from neuromamba.inference.region_attribution import attribute_regions, randomised_model
from neuromamba.inference.region_explain import RegionExplanation
from neuromamba.inference.region_model import RegionModel
from neuromamba.layers.packing import Packed, pack
from neuromamba.neurossm.attribution_files import read_scan_map
from tests.helpers.trained_regions import TRAINING, TrainedRegions, rows, volumes_of

QUICK = ["--method", "gradxinput", "--no-report"]
PATHWAYS = [f"{signal}_{scale}" for signal in ("raw", "diff") for scale in (1, 2, 4)]


@pytest.fixture(scope="module")
def fit(trained_regions: TrainedRegions) -> Path:
    return trained_regions.fit


@pytest.fixture(scope="module")
def model(trained_regions: TrainedRegions) -> RegionModel:
    return trained_regions.model


@pytest.fixture(scope="module")
def scans(trained_regions: TrainedRegions) -> dict[str, np.ndarray]:
    return trained_regions.scans


@pytest.fixture(scope="module")
def files(trained_regions: TrainedRegions, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight scans as CSV with the names of their regions."""
    names = ",".join(trained_regions.atlas.regions)
    folder, found = tmp_path_factory.mktemp("series"), []
    for name, series in list(trained_regions.scans.items())[:8]:
        found.append(folder / f"sub-{name}_series.csv")
        np.savetxt(found[-1], series.T, delimiter=",", header=names, comments="", fmt="%.9g")
    return found


def column(path: Path, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows(path)])


def called(fit: Path, files: list[Path], out: Path, *flags: str) -> dict:
    words = [str(fit), *map(str, files), "-o", str(out), "--device", "cpu", *flags]
    assert explain(words) == 0
    return json.loads((out / "run.json").read_text())


# --- values ---------------------------------------------------------------------------------------


def test_cpa_is_that_of_the_training(
    trained_regions: TrainedRegions, model: RegionModel, scans: dict[str, np.ndarray]
) -> None:
    """Of holdout scans, from the model file alone, as ``--analysis`` wrote it with the data."""
    maps = sorted(trained_regions.maps.glob("subj_*.npz"))
    assert len(maps) == 8
    for path in maps:
        expected = read_scan_map(path)
        found = model.explain(model.prepare(scans[expected.scan_id]), steps=1)
        assert found.target == expected.classes[expected.target]
        np.testing.assert_allclose(found.pathway.cpa, expected.cpa, atol=1e-6)
        np.testing.assert_allclose(found.pathway.weights, expected.weights, atol=1e-5)
        np.testing.assert_allclose(found.pathway.drops, expected.drops, atol=1e-5)
        np.testing.assert_array_equal(found.pathway.dominant, expected.dominant)
        assert list(found.pathways) == expected.pathways.tolist() == PATHWAYS


def test_values_are_gradients_with_respect_to_the_scan(
    model: RegionModel, scans: dict[str, np.ndarray]
) -> None:
    """Computed here from the whole network, not from its pathways."""
    scan = model.prepare(next(iter(scans.values())))
    x = z_scored(scan.series)
    target = model.class_names.index(str(model.predict(scan).value))

    def gradient(share: float) -> torch.Tensor:
        at = (share * x).requires_grad_()
        logits = model.model(pack([at]))[0].double()
        return torch.autograd.grad(logits[target] - logits[1 - target], at)[0]

    expected = (x * gradient(1.0)).sum(1).double().numpy()
    found = model.explain(scan, method="gradxinput").values
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    steps = [(i + 0.5) / 64 for i in range(64)]
    mean = torch.stack([gradient(share) for share in steps]).mean(0)
    found = model.explain(scan, method="ig").values
    np.testing.assert_allclose(found, (x * mean).sum(1).numpy(), rtol=0.02, atol=1e-4)


def test_occlusion_is_a_prediction_without_the_region(
    model: RegionModel, scans: dict[str, np.ndarray]
) -> None:
    scan = model.prepare(next(iter(scans.values())))
    found = model.explain(scan, method="occlusion")
    target = model.class_names.index(found.target)

    def score(series: np.ndarray) -> float:
        with torch.no_grad():
            logits = model.model(pack([z_scored(series)]))[0].double()
        return float(logits[target] - logits[1 - target])

    for region in (0, 3, 165):
        without = scan.series.copy()
        without[region] = 7.0  # a constant is its own mean
        drop = score(scan.series) - score(without)
        assert found.values[region] == pytest.approx(drop, abs=2e-5)
    network, series = model.neurossm, pack([z_scored(scan.series)])
    inputs = network.inputs(series)
    without_2 = [Packed(u.frames.clone(), u.lengths) for u in inputs]
    without_2[4].frames[:, 5] = 0
    with torch.no_grad():
        both = [
            Objective(target=target)(network.fuse(network.encode(u))) for u in (inputs, without_2)
        ]
    assert found.pathway_values[4, 5] == pytest.approx(float(both[0] - both[1]), abs=2e-5)
    small = attribute_regions(
        network, inputs, Objective(target=target), "occlusion", frames_at_once=100
    )
    np.testing.assert_allclose(small.values, found.values, atol=2e-5)


@pytest.mark.parametrize("method", ["ig", "gradxinput", "occlusion"])
def test_what_an_explanation_holds(
    model: RegionModel, scans: dict[str, np.ndarray], method: str
) -> None:
    found = model.explain(model.prepare(next(iter(scans.values()))), method=method)
    assert found.values.shape == found.randomised_values.shape == (166,)
    assert found.pathway_values.shape == (6, 166)
    if method != "occlusion":
        np.testing.assert_allclose(found.pathway_values.sum(0), found.values, atol=1e-6)
    if method == "ig":
        assert found.completeness_error < 0.02
        np.testing.assert_allclose(
            found.values.sum(), found.score - found.baseline_score, rtol=0.02
        )
    else:
        assert np.isnan(found.completeness_error)
        assert found.record()["completeness_error"] is None
    assert abs(found.rank_correlation) < 1
    assert found.pathway.cpa.sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserInputError, match="needs the atlas of the regions"):
        _ = found.image


def test_random_weights_are_explained_for_the_class_that_they_predict(
    model: RegionModel, scans: dict[str, np.ndarray]
) -> None:
    predicted = set()
    for (_, series), seed in zip(scans.items(), range(12), strict=False):
        scan = model.prepare(series)
        weights = randomised_model(model.neurossm.config, seed, model.device)
        random = dataclasses.replace(model, model=weights)
        found = model.explain(scan, method="gradxinput", seed=seed)
        assert found.randomised_target == random.predict(scan).value
        expected = random.explain(scan, method="gradxinput", seed=seed)
        np.testing.assert_allclose(found.randomised_values, expected.values, atol=1e-9)
        predicted.add((found.target, found.randomised_target))
    assert any(own != random for own, random in predicted)


def test_every_option_changes_what_it_should(
    model: RegionModel, scans: dict[str, np.ndarray]
) -> None:
    scan = model.prepare(next(iter(scans.values())))
    usual = model.explain(scan, steps=2)
    for options in ({"steps": 3}, {"method": "gradxinput"}, {"method": "occlusion"}):
        other = model.explain(scan, **({"steps": 2} | options))
        assert np.abs(other.values - usual.values).max() > 0, options
    other = model.explain(scan, steps=2, seed=1)
    np.testing.assert_array_equal(other.values, usual.values)
    assert np.abs(other.randomised_values - usual.randomised_values).max() > 0
    zero = model.explain(scan, steps=2, ablation="zero")
    np.testing.assert_array_equal(zero.values, usual.values)
    assert np.abs(zero.pathway.drops - usual.pathway.drops).max() > 0
    both = [model.explain(scan, steps=2, target=name) for name in model.class_names]
    assert both[0].randomised_target == both[0].target
    np.testing.assert_allclose(both[0].values, -both[1].values, atol=1e-6)
    for options, message in {
        ("method", "saliency"): "--method: unknown name 'saliency'",
        ("target", "Parkinson"): "--target: got 'Parkinson', expected a class",
        ("ablation", "noise"): "--ablation: unknown name 'noise'",
        ("steps", 0): "--steps: got 0",
        ("seed", -1): "--seed: got -1",
    }.items():
        with pytest.raises(UserInputError, match=message):
            model.explain(scan, **dict([options]))


# --- files ----------------------------------------------------------------------------------------


def test_what_a_call_writes(
    fit: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = called(fit, files[:2], tmp_path, "--steps", "4")
    name = files[0].stem
    found = run["maps"][name]
    table = rows(tmp_path / found["table"])
    assert found["table"] == f"{name}_attribution.csv" and "attribution" not in found
    parts = [f"value_{pathway}" for pathway in PATHWAYS]
    assert list(table[0]) == ["region", "value", "random", *parts, "cpa", "dominant_pathway"]
    assert [row["region"] for row in table] == files[0].read_text().split("\n")[0].split(",")
    own = neuromamba.load(fit, device="cpu")
    assert isinstance(own, RegionModel)
    expected = own.explain(own.prepare(files[0]), steps=4)
    np.testing.assert_allclose(column(tmp_path / found["table"], "value"), expected.values)
    np.testing.assert_allclose(
        column(tmp_path / found["table"], "random"), expected.randomised_values
    )
    np.testing.assert_allclose(column(tmp_path / found["table"], "cpa"), expected.pathway.cpa)
    for row, number in zip(table, expected.pathway.dominant, strict=True):
        assert row["dominant_pathway"] == (PATHWAYS[number - 1] if number else "")
    assert found["pathways"]["raw_1"]["weight"] == pytest.approx(expected.pathway.weights[0])
    page = (tmp_path / "report.html").read_text()
    assert "Which regions predictions of disease rest on" in page
    assert f'href="{found["table"]}"' in page and "Random weights" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    largest = max(table, key=lambda row: abs(float(row["value"])))
    assert largest["region"] in page
    capsys.readouterr()
    called(fit, files[:2], tmp_path, "--steps", "4", "--no-report")
    assert "2 of 2 scans were finished by an earlier call" in capsys.readouterr().out


def test_groups_of_subjects(
    trained_regions: TrainedRegions,
    fit: Path,
    files: list[Path],
    model: RegionModel,
    tmp_path: Path,
) -> None:
    atlas = trained_regions.atlas_file
    run = called(fit, files, tmp_path, *QUICK, "--target", "PD", "--atlas", str(atlas))
    (group,) = run["groups"]
    assert group["group"] == "PD" and group["regions"] == 166 and group["permutations"] == 128
    maps = [column(tmp_path / f"{path.stem}_attribution.csv", "value") for path in files]
    found = group_map(maps, [np.arange(166)] * len(maps))
    table = tmp_path / "group_PD.csv"
    assert list(rows(table)[0]) == ["region", "mean", "random", "t", "p"]
    np.testing.assert_allclose(column(table, "mean"), np.mean(maps, axis=0), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(column(table, "t"), found.t, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(column(table, "p"), found.p, atol=0.02)
    labels = trained_regions.atlas
    image = nibabel.load(tmp_path / "group_PD_mean.nii.gz")
    volume = np.asarray(image.dataobj)
    np.testing.assert_allclose(image.affine, labels.image.affine)
    for number in (0, 80, 165):
        inside = volume[labels.labels() == labels.ids[number]]
        np.testing.assert_allclose(inside, np.mean(maps, axis=0)[number], rtol=1e-4, atol=1e-8)
    few = called(fit, files[:3], tmp_path / "few", *QUICK, "--target", "PD")
    assert few["groups"][0]["smallest_p"] is None
    assert list(rows(tmp_path / "few" / "group_PD.csv")[0]) == ["region", "mean", "random"]
    alone = called(fit, files[:1], tmp_path / "alone", *QUICK)
    assert alone["groups"] == [] and "two subjects" in alone["no_groups"]


def test_maps_lie_on_the_scan(
    trained_regions: TrainedRegions, fit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of NIfTI files, with their shape and affine, in whatever order of axes."""
    path, atlas = trained_regions.atlas_file, trained_regions.atlas
    labels = atlas.labels()
    image, _ = volumes_of(atlas)
    now = orientations.io_orientation(image.affine)
    files = []
    for number, codes in enumerate(("LAS", "RAS", "PSR")):
        wanted = orientations.ornt_transform(now, orientations.axcodes2ornt(codes))
        files.append(tmp_path / f"sub-{number}_space-MNI152NLin6Asym_bold.nii.gz")
        nibabel.save(image.as_reoriented(wanted), files[-1])
    out = tmp_path / "out"
    run = called(fit, files, out, "--atlas", str(path), "--steps", "2")
    values = [column(out / found["table"], "value") for found in run["maps"].values()]
    for own in values[1:]:
        np.testing.assert_allclose(own, values[0], rtol=1e-3, atol=1e-5)
    for source, (name, found) in zip(files, run["maps"].items(), strict=True):
        there, scan = nibabel.load(out / found["attribution"]), nibabel.load(source)
        assert there.shape == scan.shape[:3], name
        np.testing.assert_allclose(there.affine, scan.affine)
        data = np.asarray(there.dataobj)
        index = np.argwhere(np.asarray(scan.dataobj)[..., 0] != 0)[::50]
        mm = nibabel.affines.apply_affine(scan.affine, index)
        at = np.rint(nibabel.affines.apply_affine(np.linalg.inv(atlas.image.affine), mm)).astype(
            int
        )
        expected = [values[0][atlas.ids.index(one)] for one in labels[tuple(at.T)].tolist()]
        np.testing.assert_allclose(data[tuple(index.T)], expected, rtol=1e-3, atol=1e-5)
        assert (data[np.asarray(scan.dataobj)[..., 0] == 0] == 0).all()
        random = np.asarray(nibabel.load(out / found["random"]).dataobj)
        assert np.abs(random - data).max() > 0
        assert (out / f"{name}_view.html").is_file()
    assert "glass brain" in (out / "report.html").read_text()
    capsys.readouterr()
    words = [str(fit), str(files[0]), "-o", str(tmp_path / "none"), *QUICK]
    assert explain(words) == 1
    assert "needs --atlas, the atlas of the training (AAL3v2)" in capsys.readouterr().err


# --- refusals -------------------------------------------------------------------------------------


def test_a_file_without_means(
    fit: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written before they were kept: one line with the remedies, of which each works."""
    with safe_open(fit / "model.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["neurossm"])
    means = metadata["training"].pop("pathway_means")
    assert np.shape(means) == (6, 32)
    weights = load_file(fit / "model.safetensors")

    def written(name: str) -> Path:
        path = tmp_path / name / "model.safetensors"
        path.parent.mkdir()
        entries = {"format": "pt", "neurossm": json.dumps(metadata)}
        path.write_bytes(save(weights, entries))
        return path

    old = written("old")
    out = tmp_path / "out"
    assert explain([str(old), str(files[0]), "-o", str(out), *QUICK]) == 2
    message = capsys.readouterr().err
    assert "regions train again" in message and "--ablation zero" in message
    assert message.count("\n") == 1 and not out.exists()
    called(old, files[:1], out, *QUICK, "--ablation", "zero")
    assert neuromamba.load(old, device="cpu").predict_many([files[0]])[0].status == "ok"
    for name, wrong in {"short": means[:5], "nan": [[float("nan")] * 32] * 6, "text": "x"}.items():
        metadata["training"]["pathway_means"] = wrong
        with pytest.raises(UserInputError, match=r"MODEL: .*damaged"):
            neuromamba.load(written(name), device="cpu")


def test_what_is_refused(
    trained_regions: TrainedRegions,
    fit: Path,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(fit), str(files[0]), "-o", str(tmp_path / "out")]
    for flags, message in (
        (["--edge", "2"], "--edge: of models of volumes; this one takes regions"),
        (["--windows", "3"], "--windows: of models of volumes"),
        (["--resolution", "voxel"], "--resolution: of models of volumes"),
        (["--smooth", "5"], "--smooth: of models of volumes"),
        (["--references", str(files[1])], "--references: of models of volumes"),
        (["--mask", "nonzero"], "--mask: of models of volumes"),
        (["--target", "Parkinson"], "--target: got 'Parkinson', expected a class of the model"),
        (["--permutations", "10"], "--permutations: got 10, expected 100 or more"),
    ):
        assert explain([*words, *flags]) == 2, flags
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    flags = (
        f"{TRAINING} --model GRU --epochs 1 "
        f"--data_dir {trained_regions.data} --results_dir {tmp_path / 'gru'} --baselines "
        f"--skip_cross_validation"
    )
    assert train(flags.split()) == 0
    gru = tmp_path / "gru" / "PPMI" / "GRU"
    capsys.readouterr()
    assert explain([str(gru), *words[1:]]) == 2
    assert "is a GRU, no NeuroSSM" in capsys.readouterr().err


def test_an_explanation_has_its_own_type(
    model: RegionModel, scans: dict[str, np.ndarray], trained_regions: TrainedRegions
) -> None:
    """In Python: with the atlas it has images, on the atlas's grid for a series in memory."""
    with_atlas = model.with_atlas(trained_regions.atlas_file)
    found = with_atlas.explain(with_atlas.prepare(next(iter(scans.values()))), steps=2)
    assert isinstance(found, RegionExplanation)
    atlas = trained_regions.atlas
    assert found.regions == atlas.regions
    assert found.image.shape == found.randomised.shape == atlas.labels().shape
    inside = np.asarray(found.image.dataobj)[atlas.labels() == atlas.ids[2]]
    np.testing.assert_allclose(inside, found.values[2], rtol=1e-6)
