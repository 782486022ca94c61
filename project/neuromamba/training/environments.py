"""Lightning's cluster environments for the launchers that it lacks or reads too narrowly.

They say where a process stands in its run, from the variables that its launcher has set.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

from pytorch_lightning.plugins.environments import ClusterEnvironment, SLURMEnvironment

from neuromamba.common.errors import UserInputError
from neuromamba.training.job import INTERACTIVE, number, pbs_job

# Below the ports that Linux hands out by itself (from 32768 on).
_FIRST_PORT, _PORTS = 15000, 15000


class PBSEnvironment(ClusterEnvironment):
    """Processes of an mpiexec, most often in a PBS job: PALS (Aurora, Polaris), MPICH, Open MPI.

    ``MASTER_ADDR`` and ``MASTER_PORT`` are taken as they are, where set. Else the address is the
    first node of ``PBS_NODEFILE``, and the port follows from ``PBS_JOBID``, so that jobs that share
    a node do not meet.
    """

    # The first of these that is set; Intel MPI uses MPICH's names.
    _NAMES: Mapping[str, tuple[str, ...]] = {
        "rank": ("PALS_RANKID", "PMI_RANK", "OMPI_COMM_WORLD_RANK"),
        "size": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"),
        "local rank": (
            "PALS_LOCAL_RANKID",
            "PMI_LOCAL_RANK",
            "MPI_LOCALRANKID",
            "OMPI_COMM_WORLD_LOCAL_RANK",
        ),
        "local size": (
            "PALS_LOCAL_SIZE",
            "PMI_LOCAL_SIZE",
            "MPI_LOCALNRANKS",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
        "node": ("PALS_NODEID",),
    }

    @classmethod
    def _read(cls, what: str) -> int | None:
        for name in cls._NAMES[what]:
            if name in os.environ:
                return number(name)
        return None

    @classmethod
    def _need(cls, what: str) -> int:
        value = cls._read(what)
        if value is None:
            raise UserInputError(
                f"mpiexec: it does not tell this process its {what}; none of "
                f"{', '.join(cls._NAMES[what])} is set. Set one of them for each process, or use "
                f"torchrun."
            )
        return value

    @staticmethod
    def detect() -> bool:
        """Whether an mpiexec started this process."""
        read = PBSEnvironment._read
        return read("rank") is not None and (
            read("size") is not None or "PALS_RANKID" in os.environ
        )

    @property
    def creates_processes_externally(self) -> bool:
        """mpiexec has started them all."""
        return True

    @property
    def main_address(self) -> str:
        """Host of rank 0.

        Raises:
            UserInputError: several nodes, and nothing says which is the first.
        """
        if "MASTER_ADDR" in os.environ:
            return os.environ["MASTER_ADDR"]
        if self.local_size() == self.world_size():
            return "127.0.0.1"
        path = os.environ.get("PBS_NODEFILE", "")
        try:
            return Path(path).read_text(encoding="utf-8").split()[0]
        except (OSError, IndexError):
            raise UserInputError(
                f"mpiexec: MASTER_ADDR is not set and PBS_NODEFILE '{path}' names no node here. In "
                f"the job script, before mpiexec: export MASTER_ADDR=$(head -n 1 $PBS_NODEFILE)"
            ) from None

    @property
    def main_port(self) -> int:
        """Port of rank 0, the same for all ranks of a job."""
        return port(*map(int, re.findall(r"\d+", pbs_job())))

    def world_size(self) -> int:
        """Processes of the run."""
        return self._need("size")

    def set_world_size(self, size: int) -> None:
        """Settled by mpiexec."""

    def global_rank(self) -> int:
        """Number of this process."""
        return self._need("rank")

    def set_global_rank(self, rank: int) -> None:
        """Settled by mpiexec."""

    def local_rank(self) -> int:
        """Its number on its node."""
        return self._need("local rank")

    def local_size(self) -> int:
        """Processes of its node."""
        return self._need("local size")

    def node_rank(self) -> int:
        """Number of its node; by order of the ranks where mpiexec does not say it."""
        node = self._read("node")
        return self.global_rank() // self.local_size() if node is None else node


class StepEnvironment(SLURMEnvironment):
    """Tasks of an srun.

    Lightning's class takes the job's numbers for the step's, wants ``--ntasks-per-node`` where
    ``--ntasks`` will do, and takes srun in an interactive allocation for no srun at all.
    """

    def __init__(self) -> None:
        self.auto_requeue = False  # the run's own signal handling does it, on all ranks
        self.requeue_signal = signal.SIGUSR1

    @staticmethod
    def detect() -> bool:
        """Whether srun started this process as a task of a parallel program.

        A shell of ``srun --pty`` is one task, from which a person starts programs as elsewhere.
        """
        if "SLURM_STEP_ID" not in os.environ or "SLURM_PROCID" not in os.environ:
            return False  # a batch script, salloc's shell
        return StepEnvironment._tasks() > 1 or not (
            "SLURM_PTY_PORT" in os.environ or SLURMEnvironment.job_name() in INTERACTIVE
        )

    @staticmethod
    def _tasks() -> int:
        return number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")

    def world_size(self) -> int:
        """Tasks of the step."""
        return self._tasks()

    @staticmethod
    def nodes() -> int:
        """Nodes of the step."""
        return number("SLURM_STEP_NUM_NODES", "SLURM_NNODES")

    def local_sizes(self) -> set[int]:
        """Numbers of tasks that nodes of the step have, from the likes of ``4(x2),3``."""
        text = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
        return {int(n) for n in re.findall(r"(?:^|,)(\d+)", text)} or {
            self.world_size() // self.nodes()
        }

    @property
    def main_address(self) -> str:
        """First node of the step."""
        if "MASTER_ADDR" in os.environ:
            return os.environ["MASTER_ADDR"]
        if self.nodes() == 1:
            return "127.0.0.1"
        names = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", ""))
        return self.resolve_root_node_address(names)

    @property
    def main_port(self) -> int:
        """Another one for each step that runs at the same time."""
        return port(number("SLURM_JOB_ID"), number("SLURM_STEP_ID"))

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """``check_processes`` has done it."""


def port(*numbers: int) -> int:
    """``MASTER_PORT``, or a port that follows from a job's numbers: neighbours differ."""
    if "MASTER_PORT" in os.environ:
        return number("MASTER_PORT")
    job, *parts = numbers or (0,)
    return _FIRST_PORT + (job + 101 * sum(parts)) % _PORTS
