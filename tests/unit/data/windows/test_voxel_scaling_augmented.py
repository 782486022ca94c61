"""Augmented windows of voxel-wise scalings: no level comes back, and no voxel grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from neuromamba.common.seeds import stream
from neuromamba.config.data import AugmentConfig, DataConfig
from neuromamba.config.names import VOXEL_SCALINGS
from neuromamba.data.windows.augment import augment_window, plan_augmentation
from neuromamba.data.windows.dataset import WindowDataset
from tests.helpers.store_files import write_store_file

GRID = (16, 16, 16)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ball of 800 with smooth signals, whose rim is faint and hardly changes."""
    x, y, z = np.indices(GRID) - 7.5
    radius = np.sqrt(x**2 + y**2 + z**2)
    vox = np.flatnonzero(radius < 6.5)
    inside = np.clip(6.5 - radius.ravel()[vox], 0, 1)
    time = np.arange(24)[:, None]
    rng = np.random.default_rng(0)
    wave = 20 * np.sin(0.5 * time + 0.3 * x.ravel()[vox]) + rng.normal(0, 5, (24, len(vox)))
    faint = np.where(inside > 0.3, 1, 0.001)
    bold = (800 * inside + faint * wave).astype(np.float32)
    path = tmp_path_factory.mktemp("store") / "hdf5" / "a.h5"
    path.parent.mkdir()
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    write_store_file(path, bold, vox, subject="a", grid=GRID, affine=affine, tr=2.0)
    return path


@pytest.mark.parametrize("statistics", ["run", "window"])
@pytest.mark.parametrize("method", VOXEL_SCALINGS)
@pytest.mark.parametrize("kind", [{}, {"intensity": False}, {"affine": False}])
def test_augmented(run: Path, method: str, statistics: str, kind: dict[str, bool]) -> None:
    config = DataConfig(
        dataset_name=("Own",),
        image_path=(str(run.parent.parent),),
        grid=GRID,
        sequence_length=12,
        input_scaling_method=method,
        scaling_statistics=statistics,
    )
    for item in range(2):
        window = WindowDataset([run], config)[item]
        before = window["bold"].double() * window["gain"]
        plan = plan_augmentation(
            window["vox"], GRID, AugmentConfig(strength=2.0, **kind), stream(1, item)
        )
        after = augment_window(window["bold"], plan, GRID) * window["gain"] + window["shift"]
        assert torch.isfinite(after).all()
        # Averages of neighbours: nothing exceeds what was there, but for the noise.
        level = before.mean(0).std() * 0.2 * 5
        assert after.abs().max() <= before.abs().max() + level + 1e-3
        if statistics == "window":
            assert after.mean(0).abs().max() < 2 * window["gain"]
        assert after.std(0).median() > 0.3 * before.std(0).median()
