"""Under a real Slurm, where it is installed and the tests are root: srun, sbatch, the scripts."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.launched import finished, only_run, tiny_command
from tests.helpers.sample_scripts import repository
from tests.helpers.slurm import NotStarted, Slurm, running_slurm

SMOKE = "sample_scripts/lab_server_smoke_test/slurm_a5000_"
# The scripts ask for a server's cores and memory; any CPU will do for a model of this size.
SMALL_MODEL = "--embed_dim 32 --depth 1"
SETTINGS = {
    "PYTHON": sys.executable,
    "SMOKE_ACCELERATOR": "cpu",
    "PRECISION": "32",
    "SMOKE_BATCHES": "1",
    "SMOKE_SUBJECTS": "6",
    "EXTRA_FLAGS": SMALL_MODEL,
    "IMG_SIZE": "18 18 18 20",
}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    try:
        with running_slurm() as cluster:
            yield cluster
    except NotStarted as reason:
        pytest.skip(f"no Slurm: {reason}")


def submitted(slurm: Slurm, script: str, folder: Path, seconds: float, **changes: str) -> str:
    """Submit a script with its own directives, wait for its end, and return what it printed."""
    words = shlex.split("sbatch --wait --cpus-per-task=1 --mem=2G --output=job.log")
    settings = slurm.variables | SETTINGS | changes
    done = finished([*words, script], folder, seconds, **settings)
    log = folder / "job.log"
    text = log.read_text() if log.exists() else ""
    assert done.returncode == 0, f"{done.stderr}\n{text}\n{slurm.logs()}"
    return text


def test_srun(slurm: Slurm, own_store: Path, tmp_path: Path) -> None:
    """Without ``--ntasks-per-node``, which Lightning's own class demands."""
    command = tiny_command(own_store, "--devices 2 --strategy ddp --project_name p")
    done = finished(["srun", "--ntasks=2", *command], tmp_path, 120, **slurm.variables)
    assert done.returncode == 0, done.stderr + slurm.logs()
    assert only_run(tmp_path, "p").name.startswith("sex_job")
    assert done.stdout.count("results in") == 1


@pytest.mark.slow
def test_srun_with_other_numbers_ends_at_once(
    slurm: Slurm, own_store: Path, tmp_path: Path
) -> None:
    command = tiny_command(own_store, "--devices 2 --strategy ddp")
    done = finished(["srun", "--ntasks=1", *command], tmp_path, 60, **slurm.variables)
    assert done.returncode == 2
    assert "srun has started 1, 1 on a node. Give --devices 1 --num_nodes 1" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_python_in_a_batch_script_starts_its_own_ranks(
    slurm: Slurm, own_store: Path, tmp_path: Path
) -> None:
    """Lightning would wait for the job's other task, which nobody starts."""
    command = shlex.join(tiny_command(own_store, "--devices 2 --strategy ddp"))
    (tmp_path / "job.sh").write_text(f"#!/bin/bash\n#SBATCH --ntasks-per-node=2\n{command}\n")
    submitted(slurm, "job.sh", tmp_path, 150)
    assert only_run(tmp_path, "default").name.startswith("sex_job")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dummy_smoke_script(slurm: Slurm, tmp_path: Path) -> None:
    folder = repository(tmp_path / "repository")
    text = submitted(slurm, f"{SMOKE}dummy_smoke.sh", folder, 400)
    assert "smoke test passed" in text
    (run,) = (folder / "output/smoke_test").iterdir()
    for part in ("pretrain", "finetune", "test"):
        assert (run / part / "metrics.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dummy_finetune_script(slurm: Slurm, tmp_path: Path) -> None:
    folder = repository(tmp_path / "repository")
    text = submitted(slurm, f"{SMOKE}dummy_finetune.sh", folder, 400)
    assert "smoke test passed" in text
    (run,) = (folder / "output/smoke_test").iterdir()
    names = {path.name for path in run.iterdir() if (path / "metrics.json").is_file()}
    assert names == {f"{head}_freeze{on}" for head in ("linear", "mamba") for on in (0, 1)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hcp_script(slurm: Slurm, own_store: Path, tmp_path: Path) -> None:
    """On a store of tiny runs: five epochs, no limit on the batches."""
    folder = repository(tmp_path / "repository")
    settings = {
        "IMAGE_PATH": str(own_store),
        "DATASET_NAME": "Dummy",
        "IMG_SIZE": "12 12 12 4",
    }
    settings["EXTRA_FLAGS"] = "--embed_dim 32 --depth 1 --train_split 0.6 --val_split 0.2"
    text = submitted(slurm, f"{SMOKE}hcp_finetune_smoke.sh", folder, 400, **settings)
    assert "smoke test passed" in text
    assert "epoch 5 of 5" in text


@pytest.mark.slow
def test_a_job_requeues_itself(slurm: Slurm, own_store: Path, tmp_path: Path) -> None:
    """On SIGUSR1, which reaches both ranks; started again, it goes on where it was."""
    flags = "--devices 2 --strategy ddp --max_steps -1 --max_epochs 5000 --no-use_scheduler"
    command = shlex.join(tiny_command(own_store, f"{flags} --resume_ckpt_path last"))
    (tmp_path / "job.sh").write_text(
        "#!/bin/bash\n#SBATCH --requeue --open-mode=append --output=job.log\n"
        f"srun --ntasks=2 {command} ${{SLURM_RESTART_COUNT:+--max_time 00:00:00:00}}\n"
        "echo status $?\n"
    )

    def ask(command: str) -> str:
        done = finished(shlex.split(command), tmp_path, 60, **slurm.variables)
        assert done.returncode == 0, done.stderr + slurm.logs()
        return done.stdout.strip()

    job = ask("sbatch --parsable --ntasks=2 --mem=2G job.sh")
    run, log = tmp_path / "output" / "default" / f"sex_job{job}", tmp_path / "job.log"
    until = time.monotonic() + 120

    def wait_for(what: Callable[[], bool]) -> None:
        while not what():
            assert time.monotonic() < until, log.read_text() + slurm.logs()
            time.sleep(0.2)

    wait_for((run / "checkpoints" / "last.ckpt").exists)
    ask(f"scancel --signal=USR1 {job}")
    wait_for(lambda: "queue again" in log.read_text() and "PENDING" in ask(f"squeue -ho%T -j{job}"))
    ask(f"scontrol update JobId={job} StartTime=now")  # it would wait for two minutes
    wait_for(lambda: "status 0" in log.read_text())
    said = log.read_text()
    assert said.count("The job was put into the queue again.") == 1
    (stopped,) = re.findall(r"stopped in step (\d+) \(SIGUSR1", said)
    assert f"continuing after step {int(stopped):,}, from " in said
    assert said.count("no checkpoint is there yet") == 1 and "(--max_time is over)" in said
