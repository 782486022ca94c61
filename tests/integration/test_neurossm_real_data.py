"""NeuroSSM's protocol on 240 children (cni_roi), whose figures stand in docs/neurossm.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuromamba.commands.regions_train import main

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("target", ["SEX", "DIAGNOSIS"])
def test_protocol(shared_data: Path, tmp_path: Path, target: str) -> None:
    """All folds and the holdout; connectivity is as good as others found it to be.

    Published FC baselines reach AUROCs of 0.56 to 0.64 here (SOURCES.md); what NeuroSSM reaches is
    reported, and no gate.
    """
    folder = shared_data / "cni_roi"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    results = tmp_path / "Results"
    flags = f"--dataset CNI_{target} --data_dir {folder} --results_dir {results} --device cpu"
    assert main([*flags.split(), "--baselines", "FC", "--epochs", "2"]) == 0
    for model in ("NeuroSSM", "FC"):
        place = results / f"CNI_{target}" / model
        assert len(pd.read_csv(place / "results.csv")) == 6
        tested = {
            split: set(pd.read_csv(place / "seed_0" / split / "predictions.csv")["subject"])
            for split in (*(f"fold_{i}" for i in range(1, 6)), "holdout")
        }
        assert sum(map(len, tested.values())) == 240
        assert len(set().union(*tested.values())) == 240  # nobody is tested twice
        assert len(tested["holdout"]) == 48
        summary = json.loads((place / "summary.json").read_text())
        assert all(np.isfinite(one["mean"]) for one in summary["holdout"].values())
    assert 0.5 <= summary["cross_validation"]["auroc"]["mean"] <= 0.75
