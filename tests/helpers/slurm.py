"""A real Slurm on this machine: one node, ports and folders of its own, gone after the tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.launched import environment

_CONFIGURATION = """
ClusterName=neuromamba
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,requeue_delay=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:a5000:1
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "scontrol")


class NotStarted(Exception):
    """Slurm cannot be had here; the message says why."""


class Slurm:
    """The running cluster: ``finished`` runs a command that talks to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def logs(self) -> str:
        """What the daemons wrote, for a failed test."""
        return "\n".join(
            f"{path}:\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


def missing_tool() -> str | None:
    """A program of Slurm or munge that is not here."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return next((tool for tool in _TOOLS if shutil.which(tool, path=path) is None), None)


@contextlib.contextmanager
def running_slurm() -> Iterator[Slurm]:
    """Start munged, slurmctld and slurmd, and end them.

    Raises:
        NotStarted: not installed, not root, or one of them does not come up.
    """
    tool = missing_tool()
    if tool:
        raise NotStarted(f"{tool} is not installed (apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        raise NotStarted("the daemons of Slurm need root")
    # Not pytest's folder: munge runs as a user of its own, and a socket's path is short.
    with tempfile.TemporaryDirectory(prefix="slurm_", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        slurm = Slurm(folder)
        started: list[subprocess.Popen[bytes]] = []
        try:
            _start(slurm, started)
            yield slurm
        finally:
            for process in reversed(started):
                process.terminate()
            for process in reversed(started):
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _start(slurm: Slurm, started: list[subprocess.Popen[bytes]]) -> None:
    folder, host = slurm.folder, socket.gethostname().split(".")[0]
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    user = "munge"
    try:
        pwd.getpwnam(user)
    except KeyError:
        raise NotStarted("there is no user 'munge' (apt-get install munge makes it)") from None
    for path in (folder / "munge.key", folder / "munge"):
        shutil.chown(path, user)
    controller_port, node_port = _free_ports(2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(
            folder=folder,
            host=host,
            controller_port=controller_port,
            node_port=node_port,
            cpus=os.cpu_count(),
            memory=int(0.9 * memory),
        )
    )
    gpu = f"NodeName={host} Name=gpu Type=a5000 File=/dev/null\n"  # pretended
    (folder / "gres.conf").write_text(gpu)

    def start(*words: str, **settings: str) -> None:
        with open(folder / f"{words[0]}.out.log", "wb") as log:
            started.append(
                subprocess.Popen(
                    words,
                    env=environment(slurm.variables),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    **settings,  # type: ignore[call-overload]
                )
            )

    munge = folder / "munge"
    start(
        "munged",
        "--foreground",
        f"--key-file={folder}/munge.key",
        f"--socket={munge}/socket",
        f"--pid-file={munge}/pid",
        f"--log-file={munge}/log",
        f"--seed-file={munge}/seed",
        user=user,
    )
    _until(lambda: (munge / "socket").exists(), started, slurm)
    start("slurmctld", "-D")
    start("slurmd", "-D")
    _until(lambda: _state(slurm) == "idle", started, slurm)


def _state(slurm: Slurm) -> str:
    try:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"],
            env=environment(slurm.variables),
            capture_output=True,
            text=True,
            timeout=5,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip()


def _until(ready, started: list[subprocess.Popen[bytes]], slurm: Slurm) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 30
    while not ready():
        dead = [str(process.args[0]) for process in started if process.poll() is not None]  # type: ignore[index]
        if dead or time.monotonic() > end:
            what = f"{dead[0]} ended" if dead else "the node is not idle after 30 s"
            raise NotStarted(f"{what}: {slurm.logs()}")
        time.sleep(0.2)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
