"""NeuroSSM on a CUDA GPU: what it gives on the CPU, and one whole call of tester.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


def test_logits_and_attributions_are_those_of_the_cpu() -> None:
    """Scans of several lengths, one shorter than a kernel's chunk."""
    pytest.importorskip("pandas", reason="not among the packages that gpu_check.sh carries")
    from neuromamba.data.regions.scan import Scan
    from neuromamba.neurossm.attribution import attribute, mean_features
    from neuromamba.neurossm.config import CPAConfig, NeuroSSMConfig
    from neuromamba.neurossm.model import NeuroSSM

    rng = np.random.default_rng(0)
    frames = (150, 37, 300, 90)
    scans = [
        Scan(str(i), str(i), i % 2, rng.standard_normal((100, t)).astype(np.float32), str(i))
        for i, t in enumerate(frames)
    ]
    torch.manual_seed(0)
    model = NeuroSSM(NeuroSSMConfig(rois=100, classes=2)).eval()
    wanted = attribute(model, scans, mean_features(model, scans), CPAConfig())
    model = model.to("cuda")
    found = attribute(model, scans, mean_features(model, scans), CPAConfig())
    np.testing.assert_array_equal(found.target, wanted.target)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.path_maps, wanted.path_maps, rtol=2e-2, atol=1e-4)
    np.testing.assert_allclose(found.cpa, wanted.cpa, rtol=2e-2, atol=1e-4)


def test_tester_on_the_first_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nilearn", reason="not among the packages that gpu_check.sh carries")
    from neuromamba.commands.regions_synthetic import run as make_data
    from neuromamba.commands.regions_train import main

    monkeypatch.chdir(tmp_path)
    make_data(["--dataset", "PPMI", "--output", "data", "--subjects", "40", "--frames", "60"])
    flags = "--dataset PPMI --data_dir data --dynamic_length 40 --epochs 2 --folds 2 --analysis"
    assert main([*flags.split(), "--device", "0", "--baselines"]) == 0
    assert len(list(Path("Results/PPMI/NeuroSSM").glob("seed_0/*/metrics.json"))) == 3
    assert len(list(Path("Analysis/Explainability/PPMI/seed_0").glob("subj_*.npz"))) == 8
