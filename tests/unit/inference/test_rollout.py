"""Scaling, errors and refusals of rollouts of a run; the generated values: tests/numerics."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.model import ModelConfig
from neuromamba.config.names import SCALING_METHODS, VOXEL_SCALINGS
from neuromamba.config.training import PretrainConfig
from neuromamba.data.store.reader import RunFile
from neuromamba.data.windows.dataset import WindowDataset
from neuromamba.fmamba.backbone import FMamba
from neuromamba.inference.frame_scaling import frame_scaling
from neuromamba.inference.rollout import Rollout, rollout_run
from tests.helpers.tiny import FRAMES, GRID, write_tiny_run

NEXT = PretrainConfig()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "hdf5" / "sub-01.h5"
    path.parent.mkdir()
    write_tiny_run(path, "sub-01", 1)
    return path


def data(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "dataset_name": ("Dummy",),
        "image_path": ("",),
        "grid": GRID,
        "sequence_length": 6,
    }
    return DataConfig(**values | changes)


def model(**changes: Any) -> FMamba:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "img_size": (*GRID, 6),
        "patch_size": (6, 6, 6, 1),
        "embed_dim": 16,
        "depth": 1,
    }
    return FMamba(ModelConfig(**values | changes)).eval()


def rolled(run: Path, **options: Any) -> Rollout:
    options = {"frames": 4, "prompt": 3} | options
    config = options.pop("data", data())
    return rollout_run(options.pop("model", model()), NEXT, config, run, **options)


def intensities(run: Path) -> np.ndarray:
    file = RunFile(run)
    return file.read(range(FRAMES)) * file.header.scale + file.header.offset


@pytest.mark.parametrize("method", SCALING_METHODS)
def test_run_statistics_are_those_of_training(run: Path, method: str) -> None:
    """But for the rounding of voxel-wise values to integers in training."""
    config = data(input_scaling_method=method, sequence_length=FRAMES)
    window = WindowDataset([run], config)[0]
    trained = window["bold"].numpy() * window["gain"] + window["shift"]
    file = RunFile(run)
    stored = file.read(range(FRAMES))
    scaling = frame_scaling(run, file.header, stored[:4], method, "run")
    bound = window["gain"] if method in VOXEL_SCALINGS else 1e-5
    np.testing.assert_allclose(scaling.apply(stored), trained, atol=bound)
    assert scaling.background == pytest.approx(window["background"])
    restored = scaling.restore(scaling.apply(stored))
    np.testing.assert_allclose(restored, intensities(run), rtol=1e-4)


@pytest.mark.parametrize("method", SCALING_METHODS)
def test_statistics_of_the_prompt_know_nothing_of_later_frames(run: Path, method: str) -> None:
    """Other statistics of the run leave the scaled prompt, all that the model reads, unchanged."""
    file = RunFile(run)
    stored = file.read(range(FRAMES))
    scaling = frame_scaling(run, file.header, stored[:4], method)
    scaled = scaling.apply(stored[:4])
    if method == "voxelnorm_zeroback":
        np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(np.median(scaled.std(0)), 1, atol=1e-2)
    elif method.startswith("znorm"):
        assert abs(scaled.mean()) < 1e-4 and abs(scaled.std() - 1) < 1e-4
    elif method.startswith("minmax"):
        assert scaled.max() == pytest.approx(1)
    config = data(input_scaling_method=method)
    found = {name: rolled(run, data=config, statistics=name) for name in ("prompt", "run")}
    changed = file.header.mean * 1.5
    other = dataclasses.replace(file.header, mean=changed, std=1.0, min=-5.0, max=9e3)
    again = frame_scaling(run, other, stored[:3], method)
    np.testing.assert_array_equal(again.apply(stored[:3]), found["prompt"].prompt)
    assert np.abs(found["prompt"].predicted - found["run"].predicted).max() > 1e-4


def test_errors_beside_persistence_and_mean(run: Path) -> None:
    found = rolled(run)
    scaled = found.scaling.apply(RunFile(run).read(range(FRAMES)))
    np.testing.assert_array_equal(found.prompt, scaled[:3])
    np.testing.assert_array_equal(found.true, scaled[3:7])
    for frame in range(4):
        true = scaled[3 + frame].astype(np.float64)
        expected = {
            "model": np.mean((found.predicted[frame] - true) ** 2),
            "persistence": np.mean((scaled[2] - true) ** 2),
            "mean": np.mean((scaled[:3].mean(0) - true) ** 2),
        }
        for name, value in expected.items():
            assert found.errors[name][frame] == pytest.approx(value, rel=1e-5)
        control = min(expected["persistence"], expected["mean"])
        assert found.skill[frame] == pytest.approx(1 - expected["model"] / control, rel=1e-5)
    summary = found.summary()
    assert summary["frames"] == 4
    assert summary["model"] == pytest.approx(found.errors["model"].mean())
    first = found.record()["first_window"]
    assert first["frames"] == 3 and first["model"] == pytest.approx(
        found.errors["model"][:3].mean()
    )
    rows = list(found.rows())
    assert [row["seconds"] for row in rows] == [2.0, 4.0, 6.0, 8.0]
    assert [row["first_window"] for row in rows] == [1, 1, 1, 0]


def test_nothing_is_claimed_beyond_the_end_of_the_scan(run: Path) -> None:
    found = rolled(run, frames=12)
    assert found.predicted.shape == (12, len(found.voxels)) and len(found.true) == FRAMES - 3
    assert np.isnan(found.skill[9:]).all() and np.isfinite(found.skill[:9]).all()
    assert found.summary()["frames"] == 9
    assert list(found.rows())[-1]["model"] is None
    none = rolled(run, frames=3, available=3)
    assert none.summary() == {
        "frames": 0, "model": None, "persistence": None, "mean": None, "run_mean": None,
        "skill": None,
    }  # fmt: skip
    np.testing.assert_array_equal(none.predicted, rolled(run, frames=3).predicted)


@pytest.mark.parametrize("method", ["znorm_minback", "voxelnorm_zeroback", "demean_zeroback"])
def test_the_mean_that_a_scaling_gives_away_is_a_baseline(run: Path, method: str) -> None:
    """Otherwise predicting it, which is 0 voxel by voxel, would look like a skill."""
    config = data(input_scaling_method=method)
    assert np.isnan(rolled(run, data=config).errors["run_mean"]).all()
    found = rolled(run, data=config, statistics="run", frames=FRAMES - 3)
    mean = np.concatenate([found.prompt, found.true]).mean(0)
    if method in VOXEL_SCALINGS:
        np.testing.assert_allclose(mean, 0, atol=1e-3)
    expected = np.mean((found.true - mean) ** 2, axis=1)
    np.testing.assert_allclose(found.errors["run_mean"], expected, rtol=1e-3)
    guess = dataclasses.replace(found, predicted=np.repeat(mean[None], len(found.true), axis=0))
    assert guess.summary()["skill"] == pytest.approx(0, abs=1e-3)


def test_skill_is_not_defined_where_a_baseline_is_exact(run: Path) -> None:
    found = rolled(run)
    still = dataclasses.replace(found, true=np.repeat(found.prompt[-1:], 4, axis=0))
    assert np.isnan(still.skill).all()
    assert still.summary()["skill"] is None and still.summary()["persistence"] == 0.0


def test_every_second_frame(run: Path) -> None:
    config = data(stride_within_seq=2)
    found = rolled(run, data=config, frames=5)
    assert found.seconds == 4.0 and len(found.true) == 3
    expected = found.scaling.apply(RunFile(run).read(np.arange(0, FRAMES, 2)))
    np.testing.assert_array_equal(np.concatenate([found.prompt, found.true]), expected)


def test_anatomy_is_that_of_the_prompt(run: Path) -> None:
    config = data(channels=("anatomy", "dynamics"), input_scaling_method="voxelnorm_zeroback")
    built = model(anatomy=True, background="zero")
    found = rolled(run, data=config, model=built)
    window = WindowDataset([run], dataclasses.replace(config, scaling_statistics="window"))[0]
    six = frame_scaling(run, RunFile(run).header, RunFile(run).read(range(6)), "voxelnorm_zeroback")
    np.testing.assert_allclose(six.anatomy, window["anatomy"].numpy() * (32 / 32767), atol=2e-3)
    three = frame_scaling(
        run, RunFile(run).header, RunFile(run).read(range(3)), "voxelnorm_zeroback"
    )
    np.testing.assert_array_equal(found.scaling.anatomy, three.anatomy)
    assert not np.array_equal(three.anatomy, six.anatomy)


def test_refusals(run: Path) -> None:
    for options, message in (
        ({"frames": 0}, "--frames: got 0"),
        ({"prompt": 6}, "--prompt: got 6 .* from 1 to 5"),
        ({"available": 2}, "--prompt: .* has 2 frames .* needs 3"),
        ({"data": data(shuffle_time_sequence=True)}, "random order"),
        ({"statistics": "window"}, "--statistics"),
        (
            {"model": model(img_size=(12, 12, 6, 6)), "data": data(grid=(12, 12, 6))},
            "12 x 12 x 12 voxels, .* expects 12 x 12 x 6",
        ),
        (
            {"prompt": 1, "data": data(input_scaling_method="demean_zeroback")},
            "--statistics run",
        ),
    ):
        with pytest.raises(UserInputError, match=message):
            rolled(run, **options)
    with pytest.raises(UserInputError, match="no next-token layer"):
        rollout_run(model(), None, data(), run, frames=1)


def test_rows_are_plain(run: Path, tmp_path: Path) -> None:
    rows = list(rolled(run, frames=12).rows())
    with open(tmp_path / "rows.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writerows(rows)
    assert all(isinstance(v, int | float | None) for row in rows for v in row.values())
