"""A training sees other crops, in another order, in each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from neuromamba.data.regions.scan import Scan
from neuromamba.neurossm.config import FitConfig
from neuromamba.neurossm.evaluate import hardware_of
from neuromamba.neurossm.gru import GRUClassifier
from neuromamba.neurossm.module import ROIModule
from neuromamba.neurossm.train import train

SCANS, FRAMES, CROP = 12, 60, 20


def build() -> nn.Module:
    return GRUClassifier(4, 2, 8)


def test_every_epoch_has_its_own_order_and_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lightning runs it: it tells the epoch to a loader's sampler only."""
    rng = np.random.default_rng(0)
    scans = [
        Scan(f"s{i}", f"s{i}", i % 2, rng.normal(size=(4, FRAMES)).astype(np.float32), f"s{i}")
        for i in range(SCANS)
    ]
    seen: dict[int, list[tuple[str, bytes]]] = {}
    step = ROIModule.training_step

    def noted(self: ROIModule, batch: dict[str, Any], batch_idx: int) -> Any:
        crops = batch["frames"].split(batch["lengths"])
        seen.setdefault(self.current_epoch, []).extend(
            (name, crop.numpy().tobytes())
            for name, crop in zip(batch["subject"], crops, strict=True)
        )
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ROIModule, "training_step", noted)
    fit = FitConfig(crop=CROP, epochs=3, batch_size=5)
    train(
        build=build,
        scans=scans,
        fit=fit,
        hardware=hardware_of("cpu"),
        seed=0,
        folder=tmp_path,
    )
    names = [[name for name, _ in seen[epoch]] for epoch in range(3)]
    assert all(sorted(one) == sorted(scan.scan for scan in scans) for one in names)
    assert names[0] != names[1] != names[2] != names[0]
    crops = [dict(seen[epoch]) for epoch in range(3)]
    moved = sum(crops[0][scan.scan] != crops[1][scan.scan] for scan in scans)
    assert moved >= SCANS - 2  # of 41 places, a scan seldom has the same twice
