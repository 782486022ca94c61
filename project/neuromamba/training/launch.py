"""What started the processes of a run, and what they must agree on before they can talk.

Four launchers are known: torchrun, Slurm's srun, an mpiexec (PALS on PBS machines such as Aurora,
MPICH, Intel MPI, Open MPI), and Lightning itself, which starts the processes of a machine. Each
tells a process its place through environment variables; nothing here talks to a scheduler.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.utilities import rank_zero_only

from neuromamba.common.errors import UserInputError
from neuromamba.training.environments import PBSEnvironment, StepEnvironment
from neuromamba.training.job import number
from neuromamba.training.stopping import EndedElsewhereError, SaidHereError

# Rank 0 tells the processes that Lightning starts for it; they inherit its environment.
_TOLD = "NEUROMAMBA_AGREED_"
_REFUSED = "refused: "
_OTHERS = 10.0  # seconds in which the other ranks ask what the first has found
_STORES: list[object] = []  # kept open: others may come later
_PATIENCE = timedelta(minutes=30)  # as the process group has


@dataclass(frozen=True)
class Launcher:
    """What started this process.

    Attributes:
        name: for messages.
        environment: for the Trainer; None where Lightning's own detection knows it.
        rank: of this process in the run; of Lightning's own launcher, of the processes so far.
        processes: of the run; None where the launcher does not settle it.
        local: numbers of processes that nodes have.
        remedy: how to start other numbers, with {devices}, {nodes} and {processes}.
    """

    name: str
    environment: ClusterEnvironment | None
    rank: int = 0
    processes: int | None = None
    local: frozenset[int] = frozenset()
    remedy: str = ""


def find_launcher() -> Launcher:
    """Who started this process, by its environment.

    Raises:
        UserInputError: variables of a launcher that make no sense.
    """
    if TorchElasticEnvironment.detect():
        remedy = "torchrun --nproc_per_node {devices} --nnodes {nodes}"
        local = frozenset([number("LOCAL_WORLD_SIZE", "WORLD_SIZE")])
        environment: ClusterEnvironment = TorchElasticEnvironment()
        ranks = (number("RANK"), number("WORLD_SIZE"))
        return Launcher("torchrun", environment, *ranks, local, remedy)
    # An mpiexec in a Slurm job starts its helpers with srun: its variables are the inner ones,
    # unless srun itself wrote them (--mpi=pmi2).
    if PBSEnvironment.detect() and not _srun_wrote_pmi():
        pbs = PBSEnvironment()
        remedy = "mpiexec -n {processes} -ppn {devices}"
        local = frozenset([pbs.local_size()])
        return Launcher("mpiexec", pbs, pbs.global_rank(), pbs.world_size(), local, remedy)
    if StepEnvironment.detect():
        step = StepEnvironment()
        remedy = "srun --nodes={nodes} --ntasks-per-node={devices}"
        local = frozenset(step.local_sizes())
        return Launcher("srun", step, step.global_rank(), step.world_size(), local, remedy)
    if LSFEnvironment.detect():
        return Launcher("jsrun", None)
    # Given by hand, since Lightning warns wherever an unused srun is installed.
    node, local_rank = number("NODE_RANK", default=0), number("LOCAL_RANK", default=0)
    return Launcher("Lightning", LightningEnvironment(), max(node, local_rank))


def _srun_wrote_pmi() -> bool:
    if "PALS_RANKID" in os.environ or "SLURM_STEP_ID" not in os.environ:
        return False
    pairs = (("PMI_RANK", "SLURM_PROCID"), ("PMI_SIZE", "SLURM_STEP_NUM_TASKS"))
    return all(os.environ.get(pmi) == os.environ.get(slurm) for pmi, slurm in pairs)


def cluster_environment() -> list[ClusterEnvironment]:
    """Return the Trainer's ``plugins``; empty where Lightning finds its environment itself."""
    found = find_launcher().environment
    return [] if found is None else [found]


def prepare(devices: int, num_nodes: int) -> None:
    """Check that the processes started are those asked for, and let each know its rank.

    Call it before anything is done by one rank only: until there is a Trainer, Lightning takes
    every process of an mpiexec for rank 0.

    Args:
        devices: processes on a node, by ``--devices``.
        num_nodes: ``--num_nodes``.

    Raises:
        UserInputError: the numbers differ, which would hang or train several runs at once.
    """
    launcher = find_launcher()
    if launcher.environment is not None:
        rank_zero_only.rank = launcher.rank  # type: ignore[attr-defined]
    if launcher.processes is not None:
        wanted = {"devices": devices, "nodes": num_nodes, "processes": devices * num_nodes}
        if launcher.processes == devices * num_nodes and launcher.local == {devices}:
            return
        local = sorted(launcher.local)
        hint = "Give every node the same number"
        if len(local) == 1 and launcher.processes % local[0] == 0:
            hint = f"Give --devices {local[0]} --num_nodes {launcher.processes // local[0]}"
        raise UserInputError(
            f"--devices: {devices} on --num_nodes {num_nodes} asks for {devices * num_nodes} "
            f"process(es), but {launcher.name} has started {launcher.processes}, "
            f"{' or '.join(map(str, local))} on a node. {hint}, or start it with "
            f"{launcher.remedy.format(**wanted)}."
        )
    if launcher.environment is not None and num_nodes > 1 and not _by_hand():
        starter = "mpiexec" if "PBS_JOBID" in os.environ else "srun"
        if not {"PBS_JOBID", "SLURM_JOB_ID"} & os.environ.keys():
            starter = "torchrun, srun or mpiexec"
        raise UserInputError(
            f"--num_nodes: {num_nodes} were asked for, but this process was started by itself and "
            f"would wait for the others indefinitely. Put {starter} before python "
            f"(docs/clusters.md)."
        )


def agreed(what: str, choose: Callable[[], str]) -> str:
    """A choice of rank 0, known to all ranks before there is a process group.

    Args:
        what: its name; a word.
        choose: called by rank 0, or by a process that is alone.

    Raises:
        UserInputError: rank 0 does not answer.
    """
    launcher = find_launcher()
    key = _TOLD + what.upper()
    if launcher.processes is None:
        if number("LOCAL_RANK", default=0) > 0 and key in os.environ:
            return os.environ[key]  # started by the first process of its node
        several = _by_hand()
    else:
        several = launcher.processes > 1
    chosen = _through_store(launcher, key, choose) if several else choose()
    os.environ[key] = chosen
    return chosen


def agreed_or_refused(what: str, choose: Callable[[], str]) -> str:
    """Like ``agreed``, where ``choose`` may raise a ``UserInputError``: all ranks end then.

    Raises:
        UserInputError: the one of ``choose``, on rank 0.
        EndedElsewhereError: on the others.
    """

    def attempt() -> str:
        try:
            return choose()
        except UserInputError as error:
            return _REFUSED + str(error)

    found = agreed(what, attempt)
    if not found.startswith(_REFUSED):
        return found
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        raise EndedElsewhereError
    if find_launcher().processes not in (None, 1):
        time.sleep(_OTHERS)
    raise SaidHereError(found.removeprefix(_REFUSED))


def _by_hand() -> bool:
    """Whether somebody starts Lightning on several nodes, or each process, with its variables."""
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return False
    return "NODE_RANK" in os.environ or number("WORLD_SIZE", default=1) > 1


def _through_store(launcher: Launcher, key: str, choose: Callable[[], str]) -> str:
    """Over the address at which the process group will meet; torchrun keeps a store there."""
    from torch.distributed import DistStoreError, TCPStore

    assert launcher.environment is not None
    address, port = launcher.environment.main_address, launcher.environment.main_port
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    key += f"_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    first = launcher.rank == 0
    mine = choose() if first else ""
    try:
        store = TCPStore(
            address,
            port,
            is_master=first and not agent,
            timeout=_PATIENCE,
            wait_for_workers=False,
            multi_tenant=True,  # the process group will open it once more
        )
        _STORES.append(store)
        if first:
            store.set(key, mine)
        answer: bytes = store.get(key)
    except (DistStoreError, RuntimeError, OSError) as error:
        raise UserInputError(
            f"{launcher.name}: rank {launcher.rank} cannot agree with rank 0 at {address}:{port} "
            f"({str(error).splitlines()[0]}). Set MASTER_ADDR to a name of rank 0's node that the "
            f"others can reach and MASTER_PORT to a free port, or see what rank 0 reports."
        ) from None
    return answer.decode()
