"""Baselines: what they see, on whom they are fitted, and what they can and cannot learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.store.header import RunSource
from neuromamba.data.store.writer import write_run
from neuromamba.data.windows.run_data import RunData
from neuromamba.fmamba.baselines import FC, MEAN_VOLUME, Baseline, baselines_of_data, fit_baselines
from neuromamba.fmamba.subject_features import (
    atlas_parcellation,
    grid_parcellation,
    subject_features,
    union_of_masks,
)

GRID = (6, 6, 6)
AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])
FRAMES = 24
MakeData = Callable[..., RunData]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """A store of 40 subjects.

    Class 1 has a brighter voxel (``bright``), or a common signal with one sign in both halves of
    the brain, where class 0 has opposite signs (``coupled``): mean and variance stay the same.
    """

    def make(
        bright: float = 0.0,
        coupled: float = 0.0,
        target: str = "sex",
        task: DownstreamConfig | None = None,
        **config: Any,
    ) -> Any:
        rng = np.random.default_rng(0)
        (tmp_path / "hdf5").mkdir(parents=True)
        (tmp_path / "metadata").mkdir()
        rows = ["subject,sex,age"]
        for i in range(40):
            # Masks differ: the first voxel is missing in every third subject.
            vox = np.arange(1 if i % 3 == 0 else 0, 216, dtype=np.int32)
            frames = rng.normal(1000, 50, (FRAMES, vox.size)).astype(np.float32)
            frames[:, 50 - vox[0]] += bright * (i % 2)
            sign = np.where(vox < 108, 1.0, 1.0 if i % 2 else -1.0)
            frames += coupled * rng.normal(0, 50, (FRAMES, 1)) * sign
            name = f"sub-{i:02d}"
            write_run(
                tmp_path / "hdf5" / f"{name}.h5",
                frames,
                vox,
                grid=GRID,
                affine=AFFINE,
                source=RunSource(subject=name, tr=2.0),
            )
            rows.append(f"{name},{'FM'[i % 2]},{20 + 10 * (i % 2) + rng.normal():.3f}")
        (tmp_path / "metadata" / "participants.csv").write_text("\n".join(rows) + "\n")
        settings = DataConfig(
            dataset_name=("Dummy",),
            image_path=(str(tmp_path),),
            grid=GRID,
            sequence_length=4,
            train_split=0.5,
            val_split=0.1,
            **config,
        )
        return RunData(settings, task or DownstreamConfig(task=target))

    return make


def aurocs(found: list[Baseline]) -> dict[str, float]:
    return {one.name: one.scores.metrics()["auroc"] for one in found}


def test_a_difference_in_the_mean(make_data: MakeData) -> None:
    """The mean volume has it; correlations do not."""
    data = make_data(bright=1000.0)
    found = fit_baselines(data)
    areas = aurocs(found)
    assert areas[MEAN_VOLUME] > 0.9 and areas[FC] < 0.85
    assert areas["majority"] == 0.5
    for one in found:
        assert one.scores.subjects == data.subjects["test"][0]
        np.testing.assert_allclose(one.scores.score.sum(axis=1), 1)
    assert "fitted on 24 training and validation subjects" in found[0].text


def test_a_difference_in_the_correlations(make_data: MakeData) -> None:
    """FC has it; the mean volume does not."""
    areas = aurocs(fit_baselines(make_data(coupled=1.0)))
    assert areas[FC] > 0.95 and areas[MEAN_VOLUME] < 0.85


def test_a_regression(make_data: MakeData) -> None:
    by_name = {one.name: one.scores for one in fit_baselines(make_data(coupled=1.0, target="age"))}
    assert by_name[FC].metrics()["pearson_r"] > 0.8
    mean = by_name["mean"]
    assert np.unique(mean.score).size == 1 and mean.metrics()["r2"] <= 0


def test_shuffled_labels_are_scored_as_such(make_data: MakeData) -> None:
    data = make_data(bright=1000.0, task=DownstreamConfig(shuffle_labels=3))
    labels = data.stores[0].labels
    assert labels is not None
    found = fit_baselines(data)
    for one in found:
        assert one.scores.target.tolist() == [labels[s] for s in one.scores.subjects]
    assert aurocs(found)[MEAN_VOLUME] < 0.95


def test_features_are_of_what_the_model_sees(make_data: MakeData) -> None:
    """Mean volumes in the model's units; correlations over a run's windows put together."""
    data = make_data()
    voxels = union_of_masks(data, ("train",))
    np.testing.assert_array_equal(voxels, np.arange(216))
    regions = grid_parcellation(GRID, voxels, most=8)
    assert regions.count == 8 and np.bincount(regions.region).tolist() == [27] * 8
    features = subject_features(data, ("test",), voxels, regions)
    windows = data.parts["test"]
    assert windows is not None
    for row, subject in enumerate(features.subjects):
        items = [w for w in (windows[i] for i in range(len(windows))) if w["subject"] == subject]
        assert len(items) == FRAMES // 4
        bold = np.concatenate([w["bold"].numpy() for w in items]).astype(float)
        vox = items[0]["vox"].numpy()
        expected = np.full(216, items[0]["background"])
        expected[vox] = (bold * items[0]["gain"] + items[0]["shift"]).mean(0)
        np.testing.assert_allclose(features.volume[row], expected, atol=1e-4)
        of_voxel = regions.region[vox]
        means = [bold[:, of_voxel == k].mean(1) for k in range(8)]
        wanted = np.arctanh(np.corrcoef(means)[np.triu_indices(8, k=1)])
        np.testing.assert_allclose(features.connectivity[row], wanted, atol=1e-4)


def test_voxels_of_test_subjects_alone_are_no_features(make_data: MakeData) -> None:
    data = make_data()
    voxels = union_of_masks(data, ("train", "val"))[:30]
    regions = grid_parcellation(GRID, voxels)
    assert subject_features(data, ("test",), voxels, regions).volume.shape == (16, 30)


@pytest.mark.parametrize("most", [1, 8, 30, 100, 1000])
def test_cubes_are_as_many_as_allowed_and_cover_the_brain(most: int) -> None:
    grid = (11, 9, 7)
    brain = np.flatnonzero(np.random.default_rng(0).random(np.prod(grid)) < 0.7)
    regions = grid_parcellation(grid, brain, most)
    assert 1 <= regions.count <= most
    assert set(np.flatnonzero(regions.region >= 0)) <= set(brain)
    sizes = np.bincount(regions.region[regions.region >= 0])
    assert len(sizes) == regions.count and sizes.min() > 0
    assert sizes.sum() > 0.5 * len(brain)


def test_kept_baselines_are_those_of_the_same_data(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data(bright=1000.0)
    folder = tmp_path / "baselines"
    found = baselines_of_data(data, folder)
    record = folder / "baselines.json"
    before = record.stat().st_mtime_ns
    again = baselines_of_data(data, folder)
    assert record.stat().st_mtime_ns == before
    for one, other in zip(found, again, strict=True):
        assert (one.name, one.text) == (other.name, other.text)
        np.testing.assert_array_equal(one.scores.score, other.scores.score)
    other_targets = RunData(data.config, DownstreamConfig(shuffle_labels=3))
    shuffled = baselines_of_data(other_targets, folder)
    assert not np.array_equal(shuffled[0].scores.target, found[0].scores.target)
    (folder / json.loads(record.read_text())["baselines"][0]["file"]).write_text("torn")
    assert aurocs(baselines_of_data(other_targets, folder)) == aurocs(shuffled)


def test_no_labels_is_an_error(make_data: MakeData) -> None:
    with pytest.raises(UserInputError, match="downstream task"):
        fit_baselines(RunData(make_data().config, None))


@pytest.mark.parametrize("damage", ["none", "truncated", "not whole", "one region"])
def test_an_atlas_gives_the_regions_of_fc(make_data: MakeData, tmp_path: Path, damage: str) -> None:
    data = make_data()
    labels = np.arange(216).reshape(GRID) // 54 + (0.5 if damage == "not whole" else 0)
    if damage == "one region":
        labels = labels > 0
    path = tmp_path / "atlas.nii.gz"
    nibabel.Nifti1Image(labels.astype(np.float32), AFFINE).to_filename(path)
    if damage == "none":
        regions = atlas_parcellation(data, path)
        assert regions.count == 3 and regions.region.tolist() == (np.arange(216) // 54 - 1).tolist()
        return
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserInputError, match=r"^--fc_atlas: "):
        atlas_parcellation(data, path)
