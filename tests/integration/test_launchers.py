"""Two ranks by each launcher: they find each other, train, and write one run folder."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.launched import finished, only_run, tiny_command

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def mpiexec() -> str:
    """An mpiexec: the one of this environment (package mpich), else another MPICH."""
    ours = Path(sys.executable).with_name("mpiexec")
    found = str(ours) if ours.is_file() else shutil.which("mpiexec.hydra")
    if found is None:
        pytest.skip("no mpiexec: pip install mpich (requirements-dev.txt has it)")
    return found


def test_torchrun(own_store: Path, tmp_path: Path) -> None:
    command = tiny_command(own_store, "--devices 2 --strategy ddp --project_name p")
    done = finished([*TORCHRUN, *command[1:]], tmp_path, 100)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"sex_\d{8}-\d{6}", only_run(tmp_path, "p").name)
    assert done.stdout.count("memory allocator") + done.stderr.count("memory allocator") == 1


def test_mpiexec(own_store: Path, tmp_path: Path, mpiexec: str) -> None:
    """As in a PBS job; the address comes from its file of nodes."""
    (tmp_path / "nodes").write_text("127.0.0.1\n")
    command = tiny_command(own_store, "--devices 2 --strategy ddp --project_name p")
    job = {"PBS_JOBID": "4321[7].server", "PBS_NODEFILE": str(tmp_path / "nodes")}
    done = finished([mpiexec, "-n", "2", *command], tmp_path, 100, **job)
    assert done.returncode == 0, done.stderr
    assert only_run(tmp_path, "p").name == "sex_job4321_7"
    assert done.stdout.count("results in") == 1
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in done.stderr


@pytest.mark.slow
def test_lightning(own_store: Path, tmp_path: Path) -> None:
    command = tiny_command(own_store, "--devices 2 --strategy ddp --project_name p")
    done = finished(command, tmp_path, 100)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"sex_\d{8}-\d{6}", only_run(tmp_path, "p").name)


@pytest.mark.slow
def test_wrong_numbers_end_at_once(own_store: Path, tmp_path: Path, mpiexec: str) -> None:
    command = tiny_command(own_store, "--devices 1 --project_name p")
    for launch in ([*TORCHRUN, *command[1:]], [mpiexec, "-n", "2", *command]):
        done = finished(launch, tmp_path, 60)
        assert done.returncode != 0
        assert "started 2, 2 on a node. Give --devices 2 --num_nodes 1" in done.stderr
        assert list(tmp_path.iterdir()) == []
