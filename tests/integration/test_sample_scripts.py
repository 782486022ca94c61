"""Scripts of ``sample_scripts/`` by plain ``bash`` on a CPU, on data that they make themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.launched import finished
from tests.helpers.preloaded import preloaded_python
from tests.helpers.sample_scripts import repository, run_script

SMALL = {
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
    environment = {"PYTHON": preloaded_python(), "SMOKE_ACCELERATOR": "cpu"} | settings
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


# --- settings that cannot be ----------------------------------------------------------------------

ONE_GPU, ARRAY, TL = (
    f"downstream/{name}.sh" for name in ("5M_fmamba_sex", "HCP/E128_sex_scratch", "HCP/E128_sex_TL")
)
PRETRAIN, FINETUNE = "pretraining/small_32nodes.sh", f"{LAB}_dummy_finetune.sh"


@pytest.mark.parametrize(
    ("script", "settings", "message"),
    [
        (ONE_GPU, "MODE=tl", "MODE is 'tl', expected one of: full TL scratch."),
        (ONE_GPU, "SIZE=small", "SIZE is 'small', and this script is for medium alone;"),
        (ONE_GPU, "SMOKE_ACCELERATOR=cpux", "SMOKE_ACCELERATOR is 'cpux', expected one of: cpu"),
        (ONE_GPU, "ACCELERATOR=tpu", "ACCELERATOR is 'tpu', expected one of: auto cpu gpu"),
        (ONE_GPU, "IMAGE_PATH=", "IMAGE_PATH is empty; set it"),
        (ONE_GPU, "IMAGE_PATH=\t", "IMAGE_PATH is empty; set it"),
        (ONE_GPU, "BATCH_SIZE=0", "BATCH_SIZE is '0', expected a whole number of 1 or more."),
        (ONE_GPU, "EPOCHS=ten", "EPOCHS is 'ten', expected a whole number"),
        (ONE_GPU, "ACCUMULATION=1.5", "ACCUMULATION is '1.5', expected a whole number"),
        (ONE_GPU, "DEVICES=08", "DEVICES is '08', expected a whole number"),
        (ONE_GPU, "NUM_WORKERS=-1", "NUM_WORKERS is '-1', expected a whole number"),
        (ONE_GPU, "IMG_SIZE=96,96,96,20", "IMG_SIZE is '96,96,96,20', expected four numbers"),
        (ONE_GPU, "SITE_SETUP=/no/file", "SITE_SETUP is '/no/file', and there is no such file."),
        (ONE_GPU, "PYTHON=/no/python", "PYTHON is '/no/python', and there is no such program."),
        (ONE_GPU, "SEEDS=a", "SEEDS is 'a', which has no number for task 0 of the array"),
        (ARRAY, "PBS_ARRAY_INDEX=9", "SEEDS is '1234 1235 1236', which has no number for task 9"),
        (ARRAY, "PBS_ARRAY_INDEX=x", "SEEDS is '1234 1235 1236', which has no number for task x"),
        (TL, "MODE=scratch", "MODE is 'scratch', and this script is for TL alone; take another"),
        (TL, "TASK=age", "TASK is 'age', and this script is for sex alone;"),
        (PRETRAIN, "MICRO_BATCH=0", "MICRO_BATCH is '0', expected a whole number"),
        (PRETRAIN, "EFFECTIVE_BATCH=x", "EFFECTIVE_BATCH is 'x', expected a whole number"),
        (PRETRAIN, "EFFECTIVE_BATCH=5", "1 nodes of 12 processes with micro batch 3 give 36"),
        (PRETRAIN, "ZERO_STAGE=4", "ZERO_STAGE is '4', expected one of: 1 2 3"),
        (PRETRAIN, "NODES=two", "NODES is 'two', and the job has 1;"),
        (PRETRAIN, "NODES=4", "NODES is '4', and the job has 1;"),
        (PRETRAIN, "PBS_NODEFILE=/no/file", "PBS_NODEFILE is '/no/file', and there is no such"),
        (FINETUNE, "FREEZE=yes", "FREEZE is 'yes', expected one or more of: 0 1."),
        (FINETUNE, "HEADS=linear mlp", "HEADS is 'linear mlp', expected one or more of: linear"),
        (FINETUNE, "HEADS= ", "HEADS is ' ', expected one or more of: linear mamba."),
        (FINETUNE, "SIZE=huge", "SIZE is 'huge', expected one of: small base medium large."),
        (FINETUNE, "SMOKE_BATCHES=0", "SMOKE_BATCHES is '0', expected a whole number"),
    ],
)
def test_settings_that_cannot_be(script: str, settings: str, message: str, tmp_path: Path) -> None:
    """One line that names the setting, status 2, and nothing is started."""
    name, value = settings.split("=", 1)
    done, started = run_script(script, tmp_path, **{"IMAGE_PATH": "/path/to/store", name: value})
    assert done.returncode == 2 and started == []
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_fixed_settings_may_be_repeated(tmp_path: Path) -> None:
    """What a job's environment says of its own script is no contradiction."""
    settings = {"IMAGE_PATH": "/path/to/store", "SIZE": "small", "TASK": "sex", "MODE": "TL"}
    done, (words,) = run_script(TL, tmp_path, **settings, NODES="1")
    assert done.returncode == 0 and "--freeze_feature_extractor" in words
