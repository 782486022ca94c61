"""Scalings that differ from voxel to voxel, against numpy; and where their statistics are."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from neuromamba.config.names import VOXEL_SCALINGS
from neuromamba.data.store import voxel_statistics
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.normalisation import scaling_of
from neuromamba.data.store.reader import RunFile
from neuromamba.data.store.voxel_scaling import (
    ANATOMY_LIMIT,
    ANATOMY_STEP,
    WindowVoxelScaling,
    anatomy_of,
    voxel_scaling_of,
)
from neuromamba.data.store.voxel_statistics import FOLDER, kept_at, voxel_statistics_of
from tests.helpers.store_files import write_store_file

FRAMES, VOXELS = 30, 60
CONSTANT, FAINT, EDGE = 3, 7, 11  # voxels: never changes, almost never, jumps once


def frames() -> np.ndarray:
    """float32 [T, N]: levels around 800, and deviations from 5 to 25."""
    rng = np.random.default_rng(0)
    time = rng.normal(size=(FRAMES, VOXELS)) * rng.uniform(5, 25, VOXELS)
    found = rng.normal(800, 100, VOXELS) + time
    found[:, CONSTANT] = 500.0
    found[:, FAINT] = 300.0 + 0.02 * rng.normal(size=FRAMES)
    found[:, EDGE] = np.where(np.arange(FRAMES) == 9, 900.0, 0.0)
    return found.astype(np.float32)


def write(path: Path, **changes: object) -> RunHeader:
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"grid": (8, 8, 8), "affine": np.diag([-2.0, 2.0, 2.0, 1.0]), "tr": 2.0} | changes
    return write_store_file(path, frames(), np.arange(VOXELS) * 5, subject="a", **fields)


@pytest.fixture
def run(tmp_path: Path) -> RunFile:
    write(tmp_path / "hdf5" / "a.h5")
    return RunFile(tmp_path / "hdf5" / "a.h5")


def expected(window: np.ndarray, mean: np.ndarray, std: np.ndarray, method: str) -> np.ndarray:
    """The formulas, in float64."""
    if method == "demean_zeroback":
        return (window - mean) / np.sqrt(np.mean(std**2))
    changing = std > 1e-9
    floor = 0.05 * np.median(std[changing])
    return np.where(changing, (window - mean) / np.maximum(std, floor), 0)


@pytest.mark.parametrize("statistics", ["run", "window"])
@pytest.mark.parametrize("method", VOXEL_SCALINGS)
def test_against_numpy(run: RunFile, method: str, statistics: str) -> None:
    header, chosen = run.header, np.arange(4, 16)
    stored = run.read(range(FRAMES)).astype(float) * header.scale + header.offset
    over = stored if statistics == "run" else stored[chosen]
    wanted = expected(stored[chosen], over.mean(0), over.std(0), method)
    window = run.read(chosen)
    if statistics == "run":
        voxel_scaling_of(header, method, *voxel_statistics_of(run.path)).apply(window)
    else:
        WindowVoxelScaling(header, method).apply(window)
    scaling = scaling_of(header, method)
    assert scaling.shift == scaling.background == 0
    found = window * scaling.gain
    np.testing.assert_allclose(found, wanted, atol=0.51 * scaling.gain + 1e-3)
    assert np.abs(wanted).max() > 1 and (window[:, CONSTANT] == 0).all()
    if statistics == "window":
        others = np.delete(found, [CONSTANT], axis=1)
        assert np.abs(others.mean(0)).max() < scaling.gain
        if method == "voxelnorm_zeroback":
            changing = np.delete(found, [CONSTANT, FAINT], axis=1)
            np.testing.assert_allclose(changing.std(0), 1, atol=2e-3)
        else:
            assert np.mean(found**2) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("statistics", ["run", "window"])
def test_voxels_that_hardly_change_stay_small(run: RunFile, statistics: str) -> None:
    """Their quantisation noise is not blown up to variance 1; a single jump stays bounded."""
    window = run.read(range(FRAMES))
    if statistics == "run":
        scaling = voxel_scaling_of(run.header, "voxelnorm_zeroback", *voxel_statistics_of(run.path))
        scaling.apply(window)
    else:
        WindowVoxelScaling(run.header, "voxelnorm_zeroback").apply(window)
    z = window * scaling_of(run.header, "voxelnorm_zeroback").gain
    assert z[:, FAINT].std() < 0.1 and np.isfinite(z).all()
    assert z[:, EDGE].max() == pytest.approx(np.sqrt(FRAMES - 1), rel=1e-3)
    assert np.abs(z).max() <= np.sqrt(FRAMES)


def test_a_run_without_change_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "still.h5"
    still = np.repeat(frames()[:1], 6, axis=0)
    given = {"grid": (8, 8, 8), "affine": np.diag([-2.0, 2.0, 2.0, 1.0]), "tr": 2.0}
    write_store_file(path, still, np.arange(VOXELS), subject="a", **given)
    run = RunFile(path)
    for method in VOXEL_SCALINGS:
        for scaling in (
            voxel_scaling_of(run.header, method, *voxel_statistics_of(path)),
            WindowVoxelScaling(run.header, method),
        ):
            window = run.read(range(6))
            scaling.apply(window)
            assert (window == 0).all()


def test_demeaned_values_are_limited(run: RunFile) -> None:
    """One voxel in a million may vary a thousand times more than the others."""
    std = np.full(VOXELS, 0.01, np.float32)
    window = run.read(range(FRAMES))
    mean = np.full(VOXELS, 500, np.float32)
    voxel_scaling_of(run.header, "demean_zeroback", mean, std).apply(window)
    z = window * scaling_of(run.header, "demean_zeroback").gain
    assert np.abs(z).max() == pytest.approx(128)


# ------------------------------------------------------------------------------ statistics


def test_stored_and_computed_statistics_agree(run: RunFile, tmp_path: Path) -> None:
    header = write(tmp_path / "with" / "hdf5" / "a.h5", voxel_statistics=True)
    stored = voxel_statistics_of(tmp_path / "with" / "hdf5" / "a.h5")
    assert not (tmp_path / "with" / FOLDER).exists()
    computed = voxel_statistics_of(run.path)
    double = frames().astype(np.float64)
    for found in (stored, computed):
        assert all(values.dtype == np.float32 for values in found)
        np.testing.assert_allclose(found[0], double.mean(0), atol=header.scale)
        np.testing.assert_allclose(found[1], double.std(0), atol=header.scale)
    assert computed[1][CONSTANT] == 0


def test_computed_statistics_are_kept(run: RunFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed again for other content, or if what is kept is damaged."""
    first = voxel_statistics_of(run.path)
    kept = kept_at(run.path)
    assert kept == run.path.parent.parent / FOLDER / "a.npz" and kept.is_file()
    calls = []
    real = voxel_statistics.computed_statistics

    def counted(file: RunFile) -> voxel_statistics.Statistics:
        calls.append(file.path)
        return real(file)

    monkeypatch.setattr(voxel_statistics, "computed_statistics", counted)
    again = voxel_statistics_of(run.path)
    assert not calls and all(map(np.array_equal, first, again))
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(voxel_statistics_of(run.path)[0], first[0]) and len(calls) == 1
    write(run.path, tr=3.0)  # the same content: nothing to compute
    voxel_statistics_of(run.path)
    assert len(calls) == 1
    other = frames() + 7 * np.sin(np.arange(FRAMES))[:, None].astype(np.float32)
    given = {"grid": (8, 8, 8), "affine": np.diag([-2.0, 2.0, 2.0, 1.0]), "tr": 2.0}
    write_store_file(run.path, other, np.arange(VOXELS) * 5, subject="a", **given)
    assert not np.allclose(voxel_statistics_of(run.path)[1], first[1]) and len(calls) == 2


def test_a_store_that_cannot_be_written(run: RunFile, caplog: pytest.LogCaptureFixture) -> None:
    """The numbers are the same, and one warning names what to do."""
    kept_at(run.path).parent.write_text("a file in the way")
    with caplog.at_level(logging.WARNING, "neuromamba"):
        found = voxel_statistics_of(run.path)
        voxel_statistics_of(run.path)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "--voxel_norm" in caplog.text and "--scaling_statistics window" in caplog.text
    assert all(map(np.array_equal, found, voxel_statistics.computed_statistics(run)))


def test_anatomy_is_standardised_over_the_brain() -> None:
    """In any unit; a lone outlier is limited; a uniform image is 0."""
    mean = np.random.default_rng(1).normal(800, 100, 500)
    wanted = (mean - mean.mean()) / mean.std()
    for unit in (1.0, 1e-3, 1e4):
        found = anatomy_of((unit * mean + 5).astype(np.float32))
        assert found.dtype == np.int16
        np.testing.assert_allclose(found * ANATOMY_STEP, wanted, atol=ANATOMY_STEP)
    lone = np.zeros(5000)
    lone[7] = 1.0  # a z-score of sqrt(4999)
    assert anatomy_of(lone)[7] * ANATOMY_STEP == pytest.approx(ANATOMY_LIMIT)
    assert not anatomy_of(np.full(10, 3.0)).any()
