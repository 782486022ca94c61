"""Why a run ends before its time, and with which exit status; signals; requeueing under Slurm."""

from __future__ import annotations

import enum
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from neuromamba.common.cli import FAILED, INTERRUPTED, of_machine, print_error, visible_output
from neuromamba.common.errors import UserInputError
from neuromamba.training.job import is_first_rank

STOPPED = 75  # exit status of a run; EX_TEMPFAIL of sysexits.h: nothing is wrong, try again

_REPEATED = 5.0  # seconds; launchers pass one signal on by more than one way


class Reason(enum.IntEnum):
    """Why a run stops; of several the largest counts."""

    NONE = 0
    TIME_LIMIT = 1
    TERMINATED = 2
    REQUEUE = 3

    @property
    def words(self) -> str:
        """Describe it for a message."""
        return {
            Reason.TIME_LIMIT: "--max_time is over",
            Reason.TERMINATED: "SIGTERM",
            Reason.REQUEUE: "SIGUSR1 or SIGUSR2",
        }.get(self, "nothing")


# SIGTERM comes from `scancel`, `qdel`, a preemption or the end of the time limit: the scheduler
# decides what becomes of the job. SIGUSR1 (`sbatch --signal=USR1@300`) is asked for by the user.
SIGNALS = {
    signal.SIGTERM: Reason.TERMINATED,
    signal.SIGUSR1: Reason.REQUEUE,
    signal.SIGUSR2: Reason.REQUEUE,
}


class StoppedRun(Exception):
    """A run that all ranks have ended together before its time.

    Args:
        message: for the user; empty on all ranks but the first.
        status: exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message, self.status = message, status


class EndedElsewhereError(Exception):
    """Another rank has failed and says why; this one ends without a word."""


class SaidHereError(UserInputError):
    """A mistake that this rank is to print; the others know of it and are silent."""


def exit_status(error: BaseException, patience: float = 5.0) -> int | None:
    """Say on stderr why a run has ended; its exit status, or None if that is a bug.

    Args:
        error: what ``Run.execute`` raised.
        patience: how long a rank waits to speak before the ranks know of each other. A mistake is
            then found by all of them: the first speaks, and the launcher ends the others.
    """
    first = is_first_rank()
    if isinstance(error, KeyboardInterrupt):
        if first:
            print(
                f"error: interrupted; what was written stays. {error or 'Start it again'}.",
                file=sys.stderr,
                flush=True,
            )
        return INTERRUPTED
    if isinstance(error, StoppedRun):
        if error.message:
            print(error.message, file=sys.stderr, flush=True)
        return error.status
    if isinstance(error, EndedElsewhereError):
        return FAILED
    machine = of_machine(error)
    if not isinstance(error, UserInputError) and machine is None:
        return None
    if not first and not isinstance(error, SaidHereError):
        time.sleep(patience)
    print_error(machine or error)
    return FAILED


def run_training(command: Callable[[], object]) -> int:
    """Run a command that trains; its exit status, ``docs/fault_tolerance.md`` lists them all.

    Raises:
        Exception: a bug, with its traceback.
    """
    try:
        with visible_output():
            command()
    except (Exception, KeyboardInterrupt) as error:
        status = exit_status(error)
        if status is None:
            raise
        return status
    return 0


class Signals:
    """Notes the signals that ask a run to stop, from ``install`` to ``restore``.

    Before and after, a signal ends the process at once, as if nobody listened: there is nothing to
    save then, and a process that waits for others at its start could not listen.
    """

    def __init__(self) -> None:
        self.received = Reason.NONE
        self._first: dict[int, float] = {}
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Listen; once is enough."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for signum in SIGNALS:
            self._before[signum] = signal.signal(signum, self._receive)

    def restore(self) -> None:
        """Have signals do what they did before ``install``."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _receive(self, signum: int, frame: Any) -> None:
        """Note a signal; the same one once more, later, ends the process at once."""
        now = time.monotonic()
        if now - self._first.setdefault(signum, now) > _REPEATED:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.received = max(self.received, SIGNALS[signal.Signals(signum)])


def seconds_of(duration: str) -> float:
    """``DD:HH:MM:SS`` in seconds."""
    days, hours, minutes, seconds = map(int, duration.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def under_slurm() -> bool:
    """Whether this is a job of Slurm's."""
    return "SLURM_JOB_ID" in os.environ


def requeue() -> str:
    """Put this Slurm job into the queue again; returns why not, "" if it was done.

    Slurm ends the processes of the job when it does so: everything must have been written.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return f"there is no job '{job}'"
    program = shutil.which("scontrol")
    if program is None:
        return "scontrol is not on this node"
    try:
        done = subprocess.run(
            [program, "requeue", job], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol failed ({type(error).__name__})"
    if done.returncode:
        return " ".join((done.stderr or done.stdout or f"status {done.returncode}").split())
    return ""
