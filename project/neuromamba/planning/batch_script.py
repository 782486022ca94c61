"""A planned run as a job for PBS or Slurm, in the manner of ``sample_scripts/``."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from neuromamba.common.errors import UserInputError

LONGEST_HOURS = 24.0  # of a job, unless --walltime says otherwise
# Flags that common.sh adds, from its settings, or that the script sets itself.
_SETTINGS = {
    "--accelerator",
    "--devices",
    "--num_nodes",
    "--num_workers",
    "--image_path",
    "--dataset_name",
    "--resume_ckpt_path",
    "--max_time",
    "--process_code",
}


class Job(NamedTuple):
    """What a job asks for and starts.

    Attributes:
        name: of the job.
        about: what it does, a line.
        nodes, per_node: ranks are on so many nodes, so many on each.
        workers: loading processes of each rank.
        host_gb: memory of each rank's host side.
        seconds: the walltime.
        flags: of ``neuromamba train``, without those in ``_SETTINGS``.
        image_path, dataset_name: defaults of the settings; words without white space.
        run_name, resume, max_time: defaults of the settings; the last by ``seconds`` if empty.
    """

    name: str
    about: str
    nodes: int
    per_node: int
    workers: int
    host_gb: int
    seconds: int
    flags: tuple[str, ...]
    image_path: tuple[str, ...]
    dataset_name: tuple[str, ...]
    run_name: str
    resume: str
    max_time: str


def parse_walltime(text: str) -> int:
    """Seconds of HH:MM:SS.

    Raises:
        UserInputError: something else.
    """
    found = re.fullmatch(r"(\d+):([0-5]\d):([0-5]\d)", text)
    seconds = 0
    if found:
        hours, minutes, rest = map(int, found.groups())
        seconds = 3600 * hours + 60 * minutes + rest
    if seconds < 600:
        raise UserInputError(f"--walltime: got '{text}', expected HH:MM:SS of ten minutes or more.")
    return seconds


def walltime(hours: float | None) -> int:
    """Seconds to ask for: a quarter more than estimated, at most a day, in whole minutes."""
    wanted = LONGEST_HOURS if hours is None else min(LONGEST_HOURS, 1.25 * hours + 0.25)
    return math.ceil(wanted * 60) * 60


def clock(seconds: int, days: bool = False) -> str:
    """HH:MM:SS, or DD:HH:MM:SS."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    if not days:
        return f"{hours:02d}:{minute:02d}:{second:02d}"
    return f"{hours // 24:02d}:{hours % 24:02d}:{minute:02d}:{second:02d}"


def without_settings(words: Sequence[str], also: Sequence[str] = ()) -> tuple[str, ...]:
    """A command line without the flags that the script has settings for, and ``also``."""
    dropped, kept, skipping = _SETTINGS | set(also), [], False
    for word in words:
        if word.startswith("--"):
            skipping = word.split("=")[0] in dropped
        if not skipping:
            kept.append(word)
    return tuple(kept)


def _wrapped(words: Sequence[str]) -> str:
    """Words quoted for the shell, in lines that break before a flag."""
    groups: list[str] = []
    for word in map(shlex.quote, words):
        if word.startswith("--") or not groups:
            groups.append(word)
        else:
            groups[-1] += f" {word}"
    lines = [""]
    for group in groups:
        if lines[-1] and len(lines[-1]) + len(group) > 88:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{group}"
    return " \\\n    ".join(lines)


def _slurm_header(job: Job) -> str:
    return f"""#     sbatch -A ACCOUNT -p PARTITION FILE

#SBATCH --job-name={job.name}
#SBATCH --nodes={job.nodes}
#SBATCH --ntasks-per-node={job.per_node}
#SBATCH --gres=gpu:{job.per_node}
#SBATCH --cpus-per-task={job.workers + 2}
#SBATCH --mem={job.per_node * job.host_gb}G
#SBATCH --time={clock(job.seconds)}
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log"""


def _pbs_header(job: Job) -> str:
    return f"""#     qsub -A PROJECT -q QUEUE FILE

#PBS -N {job.name}
#PBS -l select={job.nodes}
#PBS -l place=scatter
#PBS -l walltime={clock(job.seconds)}
#PBS -j oe
#PBS -r y"""


class Scheduler(NamedTuple):
    """Syntax of a scheduler's job script.

    Attributes:
        header: of the script.
        submitted_in: variable with the folder it was submitted in.
        warns: sends a signal before the time is up, at which a run is requeued; without it the
            run has to look at the clock itself.
    """

    header: Callable[[Job], str]
    submitted_in: str
    warns: bool


SCHEDULERS = {
    "slurm": Scheduler(_slurm_header, "SLURM_SUBMIT_DIR", True),
    "pbs": Scheduler(_pbs_header, "PBS_O_WORKDIR", False),
}


def batch_script(job: Job, scheduler: str) -> str:
    """The script of a job, to be submitted in the repository's folder.

    Args:
        job: what it asks for and starts.
        scheduler: a key of ``SCHEDULERS``.
    """
    header, submitted_in, warns = SCHEDULERS[scheduler]
    # What is left of the walltime is for the last checkpoint.
    limit = job.max_time
    if not limit and not warns:
        limit = clock(job.seconds - max(300, job.seconds // 20), days=True)
    stores = " ".join(job.image_path)
    return f"""#!/usr/bin/env bash
# {job.about}
# Planned by neuromamba plan. On a CPU: SMOKE_ACCELERATOR=cpu bash FILE
#
{header(job)}

set -euo pipefail

# --- settings (the others are at the top of sample_scripts/common.sh) -----------------------------
IMAGE_PATH=${{IMAGE_PATH:-{stores}}} # stores, separated by spaces
DATASET_NAME=${{DATASET_NAME:-{" ".join(job.dataset_name)}}} # their cohorts, in the same order
DEVICES=${{DEVICES:-{job.per_node}}} # processes on a node
NUM_WORKERS=${{NUM_WORKERS:-{job.workers}}} # loading processes of each of them
MAX_TIME=${{MAX_TIME:-{limit}}} # days:hours:minutes:seconds; below the walltime
RUN_NAME=${{RUN_NAME:-{job.run_name}}} # of its folder; empty: by the number of the job
RESUME=${{RESUME-{job.resume}}} # last: its own newest checkpoint; one by name; empty: anew
# --------------------------------------------------------------------------------------------------

cd "${{REPOSITORY:-${{{submitted_in}:-$PWD}}}}"
source sample_scripts/common.sh

read -ra STORES <<<"$IMAGE_PATH"
read -ra COHORTS <<<"$DATASET_NAME"

train {_wrapped(job.flags)} \\
    --dataset_name "${{COHORTS[@]}}" ${{STORES[@]:+--image_path "${{STORES[@]}}"}} \\
    ${{MAX_TIME:+--max_time "$MAX_TIME"}} ${{RUN_NAME:+--process_code "$RUN_NAME"}} \\
    ${{RESUME:+--resume_ckpt_path "$RESUME"}}
"""
