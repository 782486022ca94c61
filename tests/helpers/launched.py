"""Runs of ``project/main.py`` as processes of their own, on a tiny store."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers.paths import ROOT

MAIN = str(ROOT / "project" / "main.py")
# Two ranks of this train on batches of 2, a step each.
TINY = (
    "--dataset_name Dummy --img_size 12 12 12 4 --patch_size 6 6 6 2 --embed_dim 16 --depth 1 "
    "--train_split 0.6 --val_split 0.2 --batch_size 2 --max_steps 2 --max_epochs -1 "
    "--limit_val_batches 1 --limit_test_batches 1 --accelerator cpu"
)
# What a launcher sets, this process may have been started by one.
_LAUNCHERS = ("SLURM_", "PMI_", "PALS_", "PBS_", "MPI_", "OMPI_", "TORCHELASTIC_", "MASTER_")


def tiny_command(store: Path, extra: str) -> list[str]:
    """Words of ``project/main.py`` with flags for seconds of training."""
    return [sys.executable, MAIN, *TINY.split(), "--image_path", str(store), *shlex.split(extra)]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without what a launcher left in it, and with one thread a process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHERS)}
    return kept | {"OMP_NUM_THREADS": "1"} | dict(changes or {})


def finished(
    command: Sequence[str], folder: Path, seconds: float, **changes: str
) -> subprocess.CompletedProcess[str]:
    """The command's end; it is killed with all it started after so many seconds."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        raise AssertionError(
            f"{shlex.join(command)}: no end in {seconds} s\n{out}\n{err}"
        ) from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def only_run(folder: Path, project: str) -> Path:
    """The run folder below ``output/project``: all ranks must have chosen the same."""
    (run,) = (folder / "output" / project).iterdir()
    assert (run / "metrics.json").is_file()
    assert (run / "checkpoints" / "last.ckpt").exists()
    return run
