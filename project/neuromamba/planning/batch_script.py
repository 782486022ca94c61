"""A planned run as a job for PBS or Slurm, in the manner of ``sample_scripts/``."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from neuromamba.common.errors import UserInputError

PLACEHOLDER = "FOLDER_OF_THE_STORE"  # of a job for which no store was named
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
        gpus: GPUs of a node, as schedulers count them; 0 on CPUs.
        seeds: of an array of jobs, a task for each; none or one: a single job.
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
    gpus: int
    seeds: tuple[int, ...]
    workers: int
    host_gb: int
    seconds: int
    flags: tuple[str, ...]
    image_path: tuple[str, ...]
    dataset_name: tuple[str, ...]
    run_name: str
    resume: str
    max_time: str

    @property
    def cores(self) -> int:
        """Return the cores of a rank: for its loading processes, for itself and one more."""
        return self.workers + 2

    @property
    def last_task(self) -> int:
        """Return the number of the array's last task; 0: no array."""
        return max(len(self.seeds) - 1, 0)


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


def _to_set(job: Job, quote: str) -> list[str]:
    """Settings that the submit line names: the stores, if not known yet, and the site's set-up."""
    stores = " ".join(job.image_path) or "/path/to/store"
    stores = f"{quote}{stores}{quote}" if " " in stores else stores
    return [f"IMAGE_PATH={stores}", "SITE_SETUP=/path/to/setup.sh"]


def _slurm_header(job: Job) -> str:
    array = f"\n#SBATCH --array=0-{job.last_task}" if job.last_task else ""
    gpus = f"\n#SBATCH --gres=gpu:{job.gpus}" if job.gpus else ""
    log = "%x_%A_%a" if array else "%x_%j"
    return f"""#     {" ".join(_to_set(job, '"'))} \\
#         sbatch -A ACCOUNT -p PARTITION FILE

#SBATCH --job-name={job.name}{array}
#SBATCH --nodes={job.nodes}
#SBATCH --ntasks-per-node={job.per_node}{gpus}
#SBATCH --cpus-per-task={job.cores}
#SBATCH --mem={job.per_node * job.host_gb}G
#SBATCH --time={clock(job.seconds)}
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={log}.log"""


def _pbs_header(job: Job) -> str:
    """Resources by pbs_resources(7B): ``select=N:resource=value:...``, the same for N nodes."""
    array = f"\n#PBS -J 0-{job.last_task}" if job.last_task else ""
    gpus = f":ngpus={job.gpus}" if job.gpus else ""
    # Values with spaces need quotes that qsub itself sees (qsub(1B), -v).
    variables = ",".join(_to_set(job, "'"))
    variables = f'"{variables}"' if "'" in variables else variables
    chunk = f"ncpus={job.per_node * job.cores}{gpus}:mpiprocs={job.per_node}"
    return f"""#     qsub -A PROJECT -q QUEUE -v {variables} FILE

#PBS -N {job.name}{array}
#PBS -l select={job.nodes}:{chunk}:mem={job.per_node * job.host_gb}gb
#PBS -l place=scatter
#PBS -l walltime={clock(job.seconds)}
#PBS -j oe
#PBS -r y"""


class Scheduler(NamedTuple):
    """Syntax of a scheduler's job script.

    Attributes:
        header: of the script.
        submitted_in: variable with the folder it was submitted in.
        task: variable with the number of an array's task.
        warns: sends a signal before the time is up, at which a run is requeued; without it the
            run has to look at the clock itself.
    """

    header: Callable[[Job], str]
    submitted_in: str
    task: str
    warns: bool


SCHEDULERS = {
    "slurm": Scheduler(_slurm_header, "SLURM_SUBMIT_DIR", "SLURM_ARRAY_TASK_ID", True),
    "pbs": Scheduler(_pbs_header, "PBS_O_WORKDIR", "PBS_ARRAY_INDEX", False),
}


def _seed_setting(job: Job) -> str:
    if not job.seeds:
        return ""
    seeds = " ".join(map(str, job.seeds))
    return f"\nSEEDS=${{SEEDS:-{seeds}}} # one for each task of the array; the first elsewhere"


def _seed_of_task(job: Job, task: str) -> str:
    """Choose the seed of a task, which also distinguishes the folders of named runs."""
    if not job.seeds:
        return ""
    return f"""
read -ra seeds <<<"$SEEDS"
index=${{{task}:-0}}
SEED=${{seeds[index]:-}}
[[ $SEED =~ ^[0-9]+$ ]] || refuse "SEEDS is '$SEEDS', which has no number for task $index."
RUN_NAME=${{RUN_NAME:+${{RUN_NAME}}_seed$SEED}}
"""


def batch_script(job: Job, scheduler: str) -> str:
    """The script of a job, to be submitted in the repository's folder.

    Args:
        job: what it asks for and starts.
        scheduler: a key of ``SCHEDULERS``.
    """
    header, submitted_in, task, warns = SCHEDULERS[scheduler]
    # What is left of the walltime is for the last checkpoint.
    limit = job.max_time
    if not limit and not warns:
        limit = clock(job.seconds - max(300, job.seconds // 20), days=True)
    stores, seeds = " ".join(job.image_path) or PLACEHOLDER, _seed_setting(job)
    return f"""#!/usr/bin/env bash
# {job.about}
# Planned by neuromamba plan. On a CPU: SMOKE_ACCELERATOR=cpu bash FILE
#
{header(job)}

set -euo pipefail

# --- settings (the others are at the top of sample_scripts/common.sh) -----------------------------
IMAGE_PATH=${{IMAGE_PATH:-{stores}}} # stores, separated by spaces
SITE_SETUP=${{SITE_SETUP:-}} # a file to source first: module load ..., export ...; empty: none
DATASET_NAME=${{DATASET_NAME:-{" ".join(job.dataset_name)}}} # their cohorts, in the same order
DEVICES=${{DEVICES:-{job.per_node}}} # processes on a node
ACCELERATOR=${{ACCELERATOR:-{"gpu" if job.gpus else "cpu"}}}
NUM_WORKERS=${{NUM_WORKERS:-{job.workers}}} # loading processes of each of them
MAX_TIME=${{MAX_TIME:-{limit}}} # days:hours:minutes:seconds; below the walltime
RUN_NAME=${{RUN_NAME:-{job.run_name}}} # of its folder; empty: by the number of the job
RESUME=${{RESUME-{job.resume}}} # last: its own newest checkpoint; one by name; empty: anew{seeds}
# --------------------------------------------------------------------------------------------------

cd "${{REPOSITORY:-${{{submitted_in}:-$PWD}}}}"
if [[ $IMAGE_PATH == {PLACEHOLDER} ]]; then
    if [[ -z ${{SMOKE_ACCELERATOR:-}} ]]; then
        echo "error: IMAGE_PATH is not set: name the folder of the store when you submit this," \\
            "or in the settings at the top of this script." >&2
        exit 2
    fi
    IMAGE_PATH= # a trial on synthetic data
fi
source sample_scripts/common.sh
{_seed_of_task(job, task)}
read -ra STORES <<<"$IMAGE_PATH"
read -ra COHORTS <<<"$DATASET_NAME"

train {_wrapped(job.flags)}{' --seed "$SEED"' if job.seeds else ""} \\
    --dataset_name "${{COHORTS[@]}}" ${{STORES[@]:+--image_path "${{STORES[@]}}"}} \\
    ${{MAX_TIME:+--max_time "$MAX_TIME"}} ${{RUN_NAME:+--process_code "$RUN_NAME"}} \\
    ${{RESUME:+--resume_ckpt_path "$RESUME"}}
"""
