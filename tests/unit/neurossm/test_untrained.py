"""The baseline of random weights: NeuroSSM's own features, and nothing that was learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from neuromamba.common.seeds import seed_run
from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.linear_models import fit_logistic
from neuromamba.layers.packing import Packed
from neuromamba.neurossm.classifiers import UNTRAINED, classifier
from neuromamba.neurossm.config import FitConfig, NeuroSSMConfig
from neuromamba.neurossm.evaluate import hardware_of
from neuromamba.neurossm.model import NeuroSSM

REGIONS, FRAMES, TRAINED = 12, 60, 24
CONFIG = NeuroSSMConfig(rois=REGIONS, classes=2, embed_dim=32, depth=1, scales=(1, 2))


def scans() -> list[Scan]:
    """Scans of two classes, which differ in how slowly the signals change."""
    rng = np.random.default_rng(3)
    found = []
    for number in range(36):
        label = number % 2
        noise = rng.normal(size=(REGIONS, FRAMES + 4))
        slow = np.stack(
            [np.convolve(row, np.ones(1 + 4 * label), "valid")[:FRAMES] for row in noise]
        )
        name = f"s{number}"
        found.append(Scan(name, name, label, slow.astype(np.float32), name))
    return found


def scored(seed: int, folder: Path) -> np.ndarray:
    one = classifier(UNTRAINED, CONFIG, FitConfig(crop=40), hardware_of("cpu"))
    everybody = scans()
    return one.fit(everybody[:TRAINED], seed, folder)(everybody[TRAINED:])


def test_it_is_a_linear_model_of_z_under_the_weights_that_a_training_starts_from(
    tmp_path: Path,
) -> None:
    found = scored(5, tmp_path)
    seed_run(5)
    model, everybody = NeuroSSM(CONFIG).eval(), scans()
    z = []
    for scan in everybody:  # one by one, not in batches
        series = scan.series
        scaled = (series - series.mean(1, keepdims=True)) / series.std(1, keepdims=True)
        frames = torch.from_numpy(np.ascontiguousarray(scaled.T))
        with torch.no_grad():
            z.append(model.encode(model.inputs(Packed(frames, (FRAMES,)))).flatten().numpy())
    labels = np.array([scan.label for scan in everybody])
    groups = np.array([scan.group for scan in everybody])
    fitted, _ = fit_logistic(np.stack(z[:TRAINED]), labels[:TRAINED], 5, groups[:TRAINED])
    expected = fitted.predict_proba(np.stack(z[TRAINED:]))
    # The strongest penalty is chosen, so that all are near 0.5.
    np.testing.assert_allclose(found - 0.5, expected - 0.5, rtol=1e-3, atol=1e-8)
    assert np.ptp(expected) > 1e-4
    assert list(tmp_path.iterdir()) == []  # nothing was trained, so there are no weights


def test_the_seed_draws_the_weights(tmp_path: Path) -> None:
    np.testing.assert_array_equal(scored(1, tmp_path), scored(1, tmp_path))
    assert np.abs(scored(1, tmp_path) - scored(2, tmp_path)).max() > 1e-4
