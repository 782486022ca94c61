"""Scripts of ``sample_scripts/`` by plain ``bash`` on a CPU, on data that they make themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.integration.launched import finished
from tests.sample_scripts import repository

SMALL = {
    "PYTHON": sys.executable,
    "SMOKE_ACCELERATOR": "cpu",
    "SMOKE_BATCHES": "1",
    "SMOKE_SUBJECTS": "6",
    "IMG_SIZE": "18 18 18 20",
    "EXTRA_FLAGS": "--embed_dim 32 --depth 1",
}
LAB = "lab_server_smoke_test/slurm_a5000"


def ran(script: str, folder: Path, **settings: str) -> set[str]:
    """Run a script; returns its run folders below ``output/smoke_test``, by their last names."""
    command = ["bash", f"sample_scripts/{script}"]
    environment = {"PYTHON": sys.executable, "SMOKE_ACCELERATOR": "cpu"} | settings
    done = finished(command, repository(folder), 400, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.parent.name for path in folder.glob("output/smoke_test/**/metrics.json")}


def test_dummy_finetune(tmp_path: Path) -> None:
    script = f"{LAB}_dummy_finetune.sh"
    names = ran(script, tmp_path / "r", **SMALL, HEADS="linear", FREEZE="1")
    assert names == {"linear_freeze1"}


@pytest.mark.slow
def test_dummy_finetune_with_all_toggles(tmp_path: Path) -> None:
    """The published size, as the script stands."""
    names = ran(f"{LAB}_dummy_finetune.sh", tmp_path / "r")
    assert names == {"linear_freeze0", "linear_freeze1", "mamba_freeze0", "mamba_freeze1"}


@pytest.mark.slow
def test_dummy_smoke(tmp_path: Path) -> None:
    assert ran(f"{LAB}_dummy_smoke.sh", tmp_path / "r") == {"pretrain", "finetune", "test"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        "pretraining/large_48nodes.sh",
        "downstream/HCP/E128_sex_TL.sh",
        "downstream/HCP/E192_intelligence_scratch.sh",
        "downstream/5M_fmamba_age.sh",
    ],
)
def test_trial_of_a_cluster_script(script: str, tmp_path: Path) -> None:
    """The published size on synthetic data and one device."""
    (name,) = ran(script, tmp_path / "r")
    assert name.startswith(Path(script).stem)
