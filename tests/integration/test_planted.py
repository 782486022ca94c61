"""CPA finds planted signals, and with random weights it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from neuromamba.common.seeds import seed_run
from neuromamba.data.regions.scan import Scan
from neuromamba.data.synthetic.regions import Recipe, scan
from neuromamba.neurossm.attribution import Attribution, attribute, mean_features
from neuromamba.neurossm.config import CPAConfig, FitConfig, NeuroSSMConfig
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.neurossm.train import train
from neuromamba.training.strategies import resolve_hardware

ROIS, FRAMES, CROP, FITTED, TESTED = 100, 210, 100, 270, 60
# A third class has neither signal: with two, the absence of one would tell the other.
KINDS = ("slow", "fast", "none")
CONFIG = NeuroSSMConfig(rois=ROIS, classes=len(KINDS))
# Where a signal shows best: oscillations in averages of four frames, transients in differences.
RIGHT = {"slow": {"raw_4"}, "fast": {"diff_1"}}


def region_aucs(found: Attribution, scans: list[Scan], recipe: Recipe, label: int) -> np.ndarray:
    """AUC of CPA for the planted regions, in each of a class's scans."""
    truth = np.zeros(ROIS)
    truth[recipe.planted_regions()[label]] = 1
    own = [i for i, one in enumerate(scans) if one.label == label]
    return np.array([roc_auc_score(truth, found.cpa[i]) for i in own])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_planted_regions_and_pathways_are_found(seed: int, tmp_path: Path) -> None:
    recipe = Recipe(ROIS, FRAMES, KINDS, seed=seed)
    scans = [
        Scan(str(i), str(i), i % 3, scan(recipe, i % 3, i), str(i)) for i in range(FITTED + TESTED)
    ]
    fitted, tested = scans[:FITTED], scans[FITTED:]
    cpu = resolve_hardware({"accelerator": "cpu", "devices": 1})
    torch.set_num_threads(1)  # the tests share out the cores
    model = train(
        build=lambda: NeuroSSM(CONFIG),
        scans=fitted,
        fit=FitConfig(crop=CROP),
        hardware=cpu,
        seed=seed,
        folder=tmp_path,
    )
    assert isinstance(model, NeuroSSM)
    seed_run(1000 + seed)
    untrained = NeuroSSM(CONFIG)
    found, chance = (
        attribute(m.eval(), tested, mean_features(m, fitted), CPAConfig())
        for m in (model, untrained)
    )
    labels = np.array([one.label for one in tested])
    right = found.target == labels
    assert right.mean() >= 0.9
    for label, kind in enumerate(KINDS[:2]):
        own = right & (labels == label)
        aucs = region_aucs(found, tested, recipe, label)
        assert aucs[own[labels == label]].min() >= 0.95, kind
        numbers = [i + 1 for i, name in enumerate(CONFIG.pathways) if name in RIGHT[kind]]
        dominant = found.dominant[own][:, recipe.planted_regions()[label]]
        assert np.isin(dominant, numbers).mean() >= 0.9, kind
        assert region_aucs(chance, tested, recipe, label).mean() <= 0.65, kind
        by_chance = chance.dominant[labels == label][:, recipe.planted_regions()[label]]
        assert np.isin(by_chance, numbers).mean() <= len(numbers) / 6 + 0.3, kind
