"""Launchers: who started a process, what is refused, and where the ranks meet.

The environments are those that the programs wrote: torchrun of torch 2.13, srun, salloc and sbatch
of Slurm 22.05, mpiexec of MPICH 5.0; PALS and Open MPI from their documentation, not run. Real
launches are in ``tests/integration/test_launchers.py`` and ``test_slurm.py``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities import rank_zero_only

from neuromamba.commands.train import main
from neuromamba.common.errors import UserInputError
from neuromamba.config.flag_parser import parse_arguments
from neuromamba.fmamba import run_outputs as outputs
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run_config import RunConfig, run_config
from neuromamba.training import job, launch
from neuromamba.training.environments import PBSEnvironment, StepEnvironment
from neuromamba.training.launch import cluster_environment, find_launcher, prepare

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
PALS = {
    "PALS_RANKID": "13",
    "PALS_LOCAL_RANKID": "1",
    "PALS_LOCAL_SIZE": "12",
    "PALS_NODEID": "1",
    "PMI_RANK": "13",
    "PMI_SIZE": "384",
    "PMI_LOCAL_RANK": "1",
    "PMI_LOCAL_SIZE": "12",
    "PBS_JOBID": "4321987.aurora-pbs-0001.hostmgmt.cm.aurora.alcf.anl.gov",
    "PBS_ENVIRONMENT": "PBS_BATCH",
}
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
JOB = {
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "train.sh",
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2",
    "SLURM_NODELIST": "node[07-08]",
}
BATCH_SCRIPT = JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = JOB | {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node[07-08]",
}
SALLOC = JOB | {"SLURM_JOB_NAME": "interactive"}
PTY = STEP | {
    "SLURM_JOB_NAME": "bash",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "1",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_PTY_PORT": "39213",
}
# mpiexec in a Slurm job starts its helper, one on each node, with srun.
MPIEXEC_BY_SRUN = (
    STEP
    | MPICH
    | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
)
SRUN_MPI_PMI2 = STEP | {"PMI_RANK": "5", "PMI_SIZE": "8"}

Place = Callable[[Mapping[str, str]], None]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """Puts the test into an environment, without the variables of any other launcher."""
    prefixes = ("SLURM_", "PMI_", "PALS_", "PBS_", "MPI_", "OMPI_", "TORCHELASTIC_", "LSB_")
    single = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK"}
    single |= {"MASTER_ADDR", "MASTER_PORT"}

    def put(variables: Mapping[str, str]) -> None:
        monkeypatch.setenv(f"{launch._TOLD}RUN_NAME", "")  # so that what a test leaves is removed
        for name in list(os.environ):
            if name in single or name.startswith((*prefixes, launch._TOLD)):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(rank_zero_only, "rank", 0)
    put({})
    return put


# name: environment, launcher, rank, processes, numbers of processes of a node
LAUNCHES = {
    "nothing": ({}, "Lightning", 0, None, set()),
    "torchrun": (TORCHRUN, "torchrun", 3, 4, {2}),
    "torchrun by srun": (STEP | TORCHRUN, "torchrun", 3, 4, {2}),
    "PALS": (PALS, "mpiexec", 13, 384, {12}),
    "MPICH": (MPICH, "mpiexec", 5, 8, {4}),
    "Open MPI": (OPEN_MPI, "mpiexec", 5, 8, {4}),
    "mpiexec by srun": (MPIEXEC_BY_SRUN, "mpiexec", 5, 8, {4}),
    "srun": (STEP, "srun", 5, 8, {4}),
    "srun --mpi=pmi2": (SRUN_MPI_PMI2, "srun", 5, 8, {4}),
    "srun in salloc": (STEP | {"SLURM_JOB_NAME": "interactive"}, "srun", 5, 8, {4}),
    "uneven srun": (STEP | {"SLURM_STEP_TASKS_PER_NODE": "4,3(x2)"}, "srun", 5, 8, {3, 4}),
    "sbatch without srun": (BATCH_SCRIPT, "Lightning", 0, None, set()),
    "salloc without srun": (SALLOC, "Lightning", 0, None, set()),
    "srun --pty bash": (PTY, "Lightning", 0, None, set()),
    "a child of Lightning": ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, "Lightning", 1, None, set()),
    "a second node": ({"NODE_RANK": "1"}, "Lightning", 1, None, set()),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_launcher_is_recognised(place: Place, name: str) -> None:
    variables, launcher, rank, processes, local = LAUNCHES[name]
    place(variables)
    found = find_launcher()
    assert (found.name, found.rank, found.processes) == (launcher, rank, processes)
    assert found.local == local


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, LightningEnvironment),
        (TORCHRUN, TorchElasticEnvironment),
        (STEP, StepEnvironment),
        (MPICH, PBSEnvironment),
    ],
)
def test_trainer_takes_the_environment(place: Place, variables: dict[str, str], kind: type) -> None:
    place(variables)
    devices, nodes = {"torchrun": (2, 2)}.get(find_launcher().name, (4, 2))
    if kind is LightningEnvironment:
        devices, nodes = 1, 1
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        num_nodes=nodes,
        strategy="ddp",
        plugins=cluster_environment(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    environment = trainer._accelerator_connector.cluster_environment
    assert type(environment) is kind
    assert trainer.world_size == devices * nodes
    assert trainer.global_rank == find_launcher().rank
    assert trainer.local_rank == (0 if not variables else 1)
    assert trainer.node_rank == (0 if not variables else 1)


def test_plain_run_is_not_warned_of_an_unused_srun(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own detection warns wherever srun is installed."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="srun"):
            Trainer(accelerator="cpu", devices=1, enable_progress_bar=False, **quiet)
        plugins = cluster_environment()
        Trainer(accelerator="cpu", devices=1, plugins=plugins, enable_progress_bar=False, **quiet)


# --- numbers that do not agree --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "devices", "nodes"),
    [({}, 4, 1), (TORCHRUN, 2, 2), (PALS, 12, 32), (MPICH, 4, 2), (STEP, 4, 2), (PTY, 3, 1)],
)
def test_numbers_that_agree(
    place: Place, variables: dict[str, str], devices: int, nodes: int
) -> None:
    place(variables)
    prepare(devices, nodes)
    assert rank_zero_only.rank == find_launcher().rank  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "parts"),
    [
        (TORCHRUN, 1, 1, ("torchrun has started 4, 2 on a node", "--devices 2 --num_nodes 2")),
        (TORCHRUN, 4, 1, ("--devices 2 --num_nodes 2", "--nproc_per_node 4 --nnodes 1")),
        (PALS, 12, 48, ("asks for 576", "has started 384", "mpiexec -n 576 -ppn 12")),
        (STEP, 2, 2, ("asks for 4", "srun has started 8", "--nodes=2 --ntasks-per-node=2")),
        (STEP, 8, 1, ("srun has started 8, 4 on a node", "--devices 4 --num_nodes 2")),
        (
            STEP | {"SLURM_STEP_TASKS_PER_NODE": "5,3"},
            4,
            2,
            ("3 or 5 on a node", "Give every node the same number"),
        ),
    ],
)
def test_numbers_that_do_not_agree(
    place: Place, variables: dict[str, str], devices: int, nodes: int, parts: tuple[str, ...]
) -> None:
    place(variables)
    with pytest.raises(UserInputError, match=r"^--devices: ") as caught:
        prepare(devices, nodes)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "starter"),
    [
        ({}, "torchrun, srun or mpiexec"),
        (BATCH_SCRIPT, "srun"),
        (SALLOC, "srun"),
        ({"PBS_JOBID": "1.server"}, "mpiexec"),
    ],
)
def test_nodes_without_a_launcher_are_refused(
    place: Place, variables: dict[str, str], starter: str
) -> None:
    """Lightning would wait for the other nodes."""
    place(variables)
    prepare(2, 1)
    with pytest.raises(UserInputError, match=f"^--num_nodes: 2.* Put {starter} before python"):
        prepare(2, 2)
    place(variables | {"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "0"})
    prepare(2, 2)


def test_a_run_is_refused_before_it_writes(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    place(STEP)
    # The last rank is quieter; the tests after this one are not to be.
    monkeypatch.setattr(logging.getLogger("neuromamba"), "setLevel", lambda level: None)
    argv = "--pretraining --use_autoregressive --dataset_name Dummy --accelerator cpu --devices 2"
    assert main([*argv.split(), "--num_nodes", "2"]) == 2
    assert "error: --devices: 2 on --num_nodes 2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (MPICH | {"PMI_RANK": "first"}, "PMI_RANK: got 'first'"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "its local size; none of PALS_LOCAL_SIZE"),
        ({"PALS_RANKID": "0", "PALS_LOCAL_SIZE": "1"}, "its size; none of PMI_SIZE"),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "1"}, "RANK: not set"),
    ],
)
def test_broken_environments_are_named(
    place: Place, variables: dict[str, str], message: str
) -> None:
    place(variables)
    with pytest.raises(UserInputError) as caught:
        prepare(1, 1)
    assert message in str(caught.value)


# --- where the ranks meet -------------------------------------------------------------------------


def test_address_of_pbs(place: Place, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text("x4407c5s0b0n0.hostmgmt\nx4407c5s1b0n0.hostmgmt\n")
    place(PALS | {"PBS_NODEFILE": str(nodes)})
    assert PBSEnvironment().main_address == "x4407c5s0b0n0.hostmgmt"
    place(PALS | {"PBS_NODEFILE": str(nodes), "MASTER_ADDR": "chosen"})
    assert PBSEnvironment().main_address == "chosen"
    place(PALS | {"PMI_SIZE": "12"})
    assert PBSEnvironment().main_address == "127.0.0.1"  # one node
    place(PALS)
    with pytest.raises(UserInputError, match=r"export MASTER_ADDR=\$\(head -n 1 \$PBS_NODEFILE\)"):
        _ = PBSEnvironment().main_address


def test_address_of_slurm(place: Place) -> None:
    place(STEP)
    assert StepEnvironment().main_address == "node07"
    place(STEP | {"SLURM_STEP_NODELIST": "node08,node09"})  # a step on a part of the job
    assert StepEnvironment().main_address == "node08"
    place(STEP | {"SLURM_STEP_NUM_NODES": "1"})
    assert StepEnvironment().main_address == "127.0.0.1"
    place(STEP | {"MASTER_ADDR": "chosen", "MASTER_PORT": "4242"})
    assert (StepEnvironment().main_address, StepEnvironment().main_port) == ("chosen", 4242)


def test_ports_of_jobs_differ(place: Place) -> None:
    def port(job: str) -> int:
        place(PALS | {"PBS_JOBID": job})
        return PBSEnvironment().main_port

    jobs = [f"{1234567 + i}.server" for i in range(40)] + [f"77[{i}].server" for i in range(40)]
    ports = [port(job) for job in jobs]
    assert len(set(ports)) == len(ports)
    assert all(1024 < number < 32768 for number in ports)
    assert port("1234567.server") == port("1234567.another-name")  # the same on every node
    place(PALS | {"MASTER_PORT": "4242"})
    assert PBSEnvironment().main_port == 4242

    def step_port(job: int, step: int) -> int:
        place(STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
        return StepEnvironment().main_port

    ports = [step_port(job, step) for job in range(5000, 5020) for step in range(3)]
    assert len(set(ports)) == len(ports)


# --- the run folder -------------------------------------------------------------------------------


def parsed(extra: str = "") -> RunConfig:
    return run_config(*parse_arguments(build_parser(), f"--dataset_name Dummy {extra}".split()))


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (BATCH_SCRIPT, "sex_job1234"),
        (BATCH_SCRIPT | {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}, "sex_job9_2"),
        ({"PBS_JOBID": "4321.aurora-pbs", "PBS_ENVIRONMENT": "PBS_BATCH"}, "sex_job4321"),
        ({"PBS_JOBID": "4321[7].aurora-pbs"}, "sex_job4321_7"),
    ],
)
def test_a_requeued_job_finds_its_folder(
    place: Place,
    variables: dict[str, str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    place(variables)
    config = parsed()
    assert outputs.run_name(config) == outputs.run_name(config) == name
    folder = outputs.choose_run_dir(config, name)
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    assert outputs.run_name(config) == f"{name}-2"  # another run of the job
    assert outputs.run_name(parsed("--resume_ckpt_path last")) == name


@pytest.mark.parametrize(
    "variables",
    [{}, SALLOC, PTY, {"PBS_JOBID": "4321.server", "PBS_ENVIRONMENT": "PBS_INTERACTIVE"}],
)
def test_elsewhere_the_time_names_a_run(
    place: Place, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place(variables)
    monkeypatch.setattr(job.time, "strftime", lambda form: form)
    assert outputs.run_name(parsed()) == "sex_%Y%m%d-%H%M%S"
    assert outputs.run_name(parsed("--process_code mine")) == "mine"


def test_children_of_lightning_take_over_the_name(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["first", "second"])
    monkeypatch.setenv(f"{launch._TOLD}NAME", "of an earlier run")
    assert launch.agreed("name", lambda: next(names)) == "first"
    monkeypatch.setenv("LOCAL_RANK", "1")  # as Lightning starts the next process
    assert launch.agreed("name", lambda: next(names)) == "first"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launch.agreed("name", lambda: next(names)) == "second"


def test_rank_0_out_of_reach_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place(MPICH | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    monkeypatch.setattr(launch, "_PATIENCE", launch.timedelta(seconds=1))
    with pytest.raises(
        UserInputError, match=r"mpiexec: rank 5 cannot .* 127.0.0.1:1 .*MASTER_ADDR"
    ):
        launch.agreed("name", str)
