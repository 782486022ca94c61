"""What the environment says about this process: its batch job, and whether it is rank 0.

Nothing is imported for it, so that flags are checked before torch and Lightning are loaded.
"""

from __future__ import annotations

import os
import re
import sys
import time

from neuromamba.common.errors import UserInputError

# The variables in which Lightning looks for the rank of a process that has no Trainer yet.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
# Jobs and steps of these names are shells that a person types into; Lightning's convention.
INTERACTIVE = ("bash", "interactive")


def pbs_job() -> str:
    """``1234`` or ``1234[5]`` of ``1234[5].server``; "" outside of PBS."""
    return os.environ.get("PBS_JOBID", "").split(".")[0]


def number(*names: str, default: int | None = None) -> int:
    """The first of these variables that is set, as a number."""
    for name in names:
        if name in os.environ:
            try:
                return int(os.environ[name])
            except ValueError:
                raise UserInputError(
                    f"{name}: got '{os.environ[name]}' from the environment, expected a number."
                ) from None
    if default is None:
        raise UserInputError(f"{names[0]}: not set, though the launcher's other variables are.")
    return default


def job_name() -> str | None:
    """The batch job this process is in, the same after a requeue; None elsewhere.

    For a file name: ``1234``, or ``1234_5`` for task 5 of an array. An interactive allocation is a
    place to try things, not one run, so it has none.
    """
    if os.environ.get("PBS_ENVIRONMENT") != "PBS_INTERACTIVE" and pbs_job():
        return "_".join(re.findall(r"\d+", pbs_job()))
    if "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE:
        if "SLURM_ARRAY_TASK_ID" in os.environ:
            return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        return os.environ["SLURM_JOB_ID"]
    return None


def run_tag() -> str:
    """What distinguishes runs of one kind: the job, else the time."""
    job = job_name()
    return f"job{job}" if job else time.strftime("%Y%m%d-%H%M%S")


def is_first_rank() -> bool:
    """Whether this process is rank 0: by Lightning, once that is loaded, else by its variables."""
    lightning = sys.modules.get("pytorch_lightning.utilities.rank_zero")
    if lightning is not None:
        return bool(lightning.rank_zero_only.rank == 0)
    return number(*_RANKS, default=0) == 0
