"""Synthetic fMRI: the class changes the dynamics and nothing else; the files are reproducible."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from neuromamba.commands import synthetic as synthetic_command
from neuromamba.common.errors import UserInputError
from neuromamba.data.cohorts.labels import read_labels
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.store.reader import RunFile, list_runs, read_header
from neuromamba.data.synthetic import runs as synthetic
from neuromamba.data.synthetic.brain import generate_subject, planted_weight, subject_class
from neuromamba.data.synthetic.spec import SyntheticSpec

SPEC = SyntheticSpec(subjects=60, frames=24, grid=(15, 18, 15))


def in_brain(volume: np.ndarray) -> np.ndarray:
    """Time courses of the brain voxels, float64 [N, T]."""
    return volume[(volume != 0).any(axis=-1)].astype(np.float64)


def band_power(volume: np.ndarray) -> np.ndarray:
    """Share of each frequency in the variance, averaged over the brain's voxels."""
    bold = in_brain(volume)
    bold -= bold.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(bold, axis=1)) ** 2
    return (power / power.sum(axis=1, keepdims=True)).mean(axis=0)


def auroc(features: list[np.ndarray], labels: list[int]) -> float:
    x = np.array(features)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-12)
    model = LogisticRegression(C=0.01, max_iter=1000)
    return cross_val_score(model, x, labels, cv=5, scoring="roc_auc").mean()


@pytest.mark.parametrize("effect_size", [0.5, 3.0])
@pytest.mark.parametrize("index", [0, 5])
def test_class_changes_neither_mask_nor_mean_nor_variance(effect_size, index):
    spec = replace(SPEC, effect_size=effect_size)
    slow, _, _ = generate_subject(spec, index, sex=0)
    for other in (
        generate_subject(spec, index, sex=1)[0],
        generate_subject(replace(spec, effect_size=0.0), index)[0],
    ):
        np.testing.assert_array_equal((slow != 0), (other != 0))
        a, b = in_brain(slow), in_brain(other)
        assert np.abs(a - b).max() > 1  # the class did change something
        np.testing.assert_allclose(a.mean(axis=1), b.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(a.var(axis=1), b.var(axis=1), rtol=1e-4)
        np.testing.assert_allclose(a.mean(), b.mean(), rtol=1e-7)
        np.testing.assert_allclose(a.var(), b.var(), rtol=1e-6)


@pytest.mark.parametrize(("radius", "least", "most"), [(22.0, 0.05, 0.3), (45.0, 0.4, 0.8)])
def test_class_changes_the_spectrum_in_the_network_only(radius, least, most):
    spec = replace(SPEC, network_radius=radius)
    slow, _, _ = generate_subject(spec, 0, sex=0)
    fast, _, _ = generate_subject(spec, 0, sex=1)
    difference = band_power(fast) - band_power(slow)
    frequency = np.fft.rfftfreq(SPEC.frames)
    assert difference[frequency > 0.3].sum() > 0.02
    assert difference[frequency < 0.1].sum() < -0.02
    changed = np.abs(in_brain(fast) - in_brain(slow)).max(axis=1) > 0
    assert least < changed.mean() < most


def test_effect_size_zero_plants_nothing():
    spec = replace(SPEC, effect_size=0.0)
    np.testing.assert_array_equal(
        generate_subject(spec, 3, sex=0)[0], generate_subject(spec, 3, sex=1)[0]
    )


def test_dynamics_separate_the_classes_and_the_mean_volume_does_not():
    powers, means, shapes, labels = [], [], [], []
    for index in range(SPEC.subjects):
        volume, _, _ = generate_subject(SPEC, index)
        powers.append(band_power(volume))
        means.append(volume.mean(axis=-1).ravel() / in_brain(volume).mean())
        bold = in_brain(volume)
        shapes.append(np.array([len(bold), bold.mean(), bold.std()]))
        labels.append(subject_class(SPEC.seed, index))
    assert auroc(powers, labels) > 0.95
    assert 0.35 < auroc(means, labels) < 0.65
    assert 0.3 < auroc(shapes, labels) < 0.7
    none = replace(SPEC, effect_size=0.0)
    unplanted = [band_power(generate_subject(none, i)[0]) for i in range(SPEC.subjects)]
    assert 0.3 < auroc(unplanted, labels) < 0.7


def test_a_spatial_effect_is_in_the_mean_image_alone():
    spec = replace(SPEC, effect="spatial")
    dark, bright = (in_brain(generate_subject(spec, 3, sex=sex)[0]) for sex in (0, 1))
    difference = bright.mean(axis=1) - dark.mean(axis=1)
    assert difference.min() >= -1e-3 and (difference / dark.mean(axis=1)).max() > 0.05
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (dark, bright))
    np.testing.assert_allclose(a, b, atol=0.01)


def test_an_effect_on_correlations_is_in_nothing_else():
    spec = replace(SPEC, effect="correlations")
    against, along = (in_brain(generate_subject(spec, 3, sex=sex)[0]) for sex in (0, 1))
    np.testing.assert_allclose(against.mean(axis=1), along.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(against.var(axis=1), along.var(axis=1), rtol=1e-4)
    turned = np.abs(against - along).max(axis=1) > 1
    assert 0.05 < turned.mean() < 0.6

    def together(bold: np.ndarray) -> float:
        """Correlation of the means of what turns and of the rest."""
        z = (bold - bold.mean(axis=1, keepdims=True)) / bold.std(axis=1, keepdims=True)
        return np.corrcoef(z[turned].mean(axis=0), z[~turned].mean(axis=0))[0, 1]

    assert together(along) > 0.5 and together(against) < -0.5


def test_classes_are_balanced_and_shuffled():
    labels = [subject_class(0, i) for i in range(40)]
    assert sum(labels) == 20
    assert labels != [subject_class(1, i) for i in range(40)]
    assert 0 < sum(labels[::2]) < 20


def test_subject_does_not_depend_on_their_number():
    volume, _, labels = generate_subject(SPEC, 7)
    again, _, labels_again = generate_subject(replace(SPEC, subjects=8), 7)
    np.testing.assert_array_equal(volume, again)
    assert labels == labels_again
    assert not np.array_equal(volume, generate_subject(replace(SPEC, seed=1), 7)[0])


def test_subjects_differ_in_shape_and_gain():
    first, second = (generate_subject(SPEC, i)[0] for i in (0, 1))
    assert ((first != 0) != (second != 0)).any()
    assert abs(in_brain(first).mean() / in_brain(second).mean() - 1) > 0.02


def test_noise_is_realistic():
    spec = replace(SPEC, effect_size=0.0, grid=(30, 36, 30), frames=40, tsnr=50.0)
    volume, _, _ = generate_subject(spec, 0)
    bold = in_brain(volume)
    tsnr = bold.mean(axis=1) / bold.std(axis=1)
    assert np.median(tsnr) == pytest.approx(50, rel=0.1)
    residual = volume - volume.mean(axis=-1, keepdims=True)
    inside = (volume != 0).all(axis=-1)
    pairs = inside[1:] & inside[:-1]
    neighbours = np.corrcoef(residual[1:][pairs].ravel(), residual[:-1][pairs].ravel())[0, 1]
    successive = np.corrcoef(residual[inside][:, 1:].ravel(), residual[inside][:, :-1].ravel())
    assert neighbours > 0.3  # smooth in space
    assert 0.1 < successive[0, 1] < 0.7  # autocorrelated in time


@pytest.mark.parametrize(
    ("grid", "voxel"), [((96, 96, 96), 2.0), ((30, 36, 30), 5.8), ((15, 18, 15), None)]
)
def test_voxel_size_fits_the_brain(grid, voxel):
    spec = replace(SPEC, grid=grid, frames=12)
    assert voxel is None or spec.voxel_mm == voxel
    volume, affine, _ = generate_subject(spec, 0)
    inside = (volume != 0).any(axis=-1)
    for axis in range(3):
        profile = inside.any(axis=tuple(a for a in range(3) if a != axis))
        assert not profile[0] and not profile[-1], f"axis {axis} cuts the brain"
    litres = inside.sum() * abs(np.linalg.det(affine[:3, :3])) / 1e6
    assert 1.5 < litres < 2.3


def test_orientation():
    ras, affine_ras, _ = generate_subject(SPEC, 0)
    las, affine_las, _ = generate_subject(replace(SPEC, orientation="LAS"), 0)
    assert nibabel.aff2axcodes(affine_ras) == ("R", "A", "S")
    assert nibabel.aff2axcodes(affine_las) == ("L", "A", "S")
    flipped = nibabel.as_closest_canonical(nibabel.Nifti1Image(las, affine_las))
    np.testing.assert_array_equal(flipped.get_fdata(dtype=np.float32), ras)
    np.testing.assert_allclose(flipped.affine, affine_ras)


def digests(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_files(tmp_path):
    spec = replace(SPEC, subjects=4)
    synthetic.write_nifti_dataset(spec, tmp_path / "one", workers=1)
    synthetic.write_nifti_dataset(spec, tmp_path / "two", workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(digests(tmp_path / "one")) == 5
    image = nibabel.load(tmp_path / "one" / "sub-0002_task-rest_bold.nii.gz")
    volume, affine, _ = generate_subject(spec, 1)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.rint(volume))
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert image.header.get_zooms()[3] == pytest.approx(spec.tr)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    with open(tmp_path / "one" / "participants.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["subject", "sex", "age", "intelligence", "diagnosis"]
    assert [row["subject"] for row in rows] == [f"sub-{i:04d}" for i in range(1, 5)]
    assert [row["sex"] for row in rows] == ["FM"[subject_class(0, i)] for i in range(4)]


def test_command_overwrites_only_when_told(tmp_path, capsys):
    flags = ["--output", str(tmp_path), "--frames", "12", "--grid", "12", "12", "12"]
    assert synthetic_command.main([*flags, "--subjects", "3"]) == 0
    before = digests(tmp_path)
    assert synthetic_command.main([*flags, "--subjects", "2"]) == 2
    error = capsys.readouterr().err
    assert "error: --output" in error and "--overwrite" in error
    assert digests(tmp_path) == before
    (tmp_path / "mine.txt").write_text("not ours")
    assert synthetic_command.main([*flags, "--subjects", "2", "--overwrite"]) == 0
    assert sorted(digests(tmp_path)) == [
        "mine.txt",
        "participants.csv",
        "sub-0001_task-rest_bold.nii.gz",
        "sub-0002_task-rest_bold.nii.gz",
    ]


SMALL: dict[str, Any] = {"subjects": 4, "frames": 14, "grid": (15, 18, 12), "effect_size": 1.0}


def test_store(tmp_path):
    path = tmp_path / "output" / "dummy"
    synthetic.ensure_dummy_store(path, **SMALL, workers=1)
    assert [p.name for p in path.parent.iterdir()] == ["dummy"]  # nothing temporary is left
    runs = list_runs(path)
    assert len(runs) == 4
    labels = read_labels(DATASETS["Dummy"], path, "sex", [read_header(p).subject for p in runs])
    assert labels == {f"sub-{i + 1:04d}": subject_class(0, i) for i in range(4)}

    # The right-left axis is reversed (RAS -> LAS), the mask and the values are the generator's.
    spec = SyntheticSpec(**SMALL)
    volume = generate_subject(spec, 0)[0][::-1]
    header, run = read_header(runs[0]), RunFile(runs[0])
    assert (header.grid, header.n_frames, header.tr) == (spec.grid, 14, spec.tr)
    inside = (volume != 0).any(axis=-1)
    np.testing.assert_array_equal(run.vox, np.flatnonzero(inside))
    stored = run.read(range(14)) * header.scale + header.offset
    np.testing.assert_allclose(stored, volume[inside].T, atol=0.5 + header.scale)
    run.close()

    before = {p: p.stat().st_mtime_ns for p in runs}
    synthetic.ensure_dummy_store(path, **SMALL, workers=1)
    assert {p: p.stat().st_mtime_ns for p in runs} == before
    with pytest.raises(UserInputError, match="not the synthetic store asked for"):
        synthetic.ensure_dummy_store(path, **{**SMALL, "effect_size": 0.0})


def test_store_where_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserInputError, match="cannot be written"):
        synthetic.ensure_dummy_store(tmp_path / "file" / "dummy", **SMALL)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"frames": 3}, "--frames"),
        ({"grid": (4, 30, 30)}, "--grid"),
        ({"effect_size": -1.0}, "--effect_size"),
        ({"tsnr": 1.0}, "--tsnr"),
        ({"seed": -1}, "--seed"),
        ({"subjects": 0}, "--subjects"),
        ({"orientation": "LPS"}, "--orientation"),
        ({"effect_size": float("nan")}, "--effect_size"),
    ],
)
def test_values_out_of_range(change, flag):
    with pytest.raises(UserInputError, match=flag):
        replace(SPEC, **change)


@pytest.mark.parametrize("orientation", ["RAS", "LAS"])
def test_classes_differ_where_the_network_has_weight(orientation):
    spec = replace(SPEC, orientation=orientation, network_radius=22)
    slow, fast = (generate_subject(spec, 3, sex=sex)[0] for sex in (0, 1))
    weight = planted_weight(spec, 3)
    np.testing.assert_array_equal((slow != fast).any(axis=-1), weight > 0)
    assert 0.05 < (weight > 0).sum() / (slow != 0).any(axis=-1).sum() < 0.3
