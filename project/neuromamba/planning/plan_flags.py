"""Flags of a plan that make no sense; without torch, so that a mistake is told at once."""

from __future__ import annotations

import re

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.planning.assumptions import CPU
from neuromamba.planning.batch_script import SCHEDULERS, parse_walltime
from neuromamba.planning.gpus import Gpu, find_gpu

# Flags that say something about another one, without which they would do nothing.
_NEEDED = {
    "frames": ("subjects", "are those of --subjects; give their number too, or --windows"),
    "output": ("script", "is where the job goes; give --script slurm or pbs too"),
    "walltime": ("script", "is the job's; give --script slurm or pbs too"),
    "seeds": ("script", "are those of an array of jobs; give --script slurm or pbs too"),
}
# Flags of a training that a plan does not take -> what to give instead.
REFUSED = {
    "accelerator": "--gpu says what is planned for (CPU for none)",
    "devices": "--gpus is the number of all ranks, --gpus_per_node that of a node",
    "num_nodes": "--gpus is the number of all ranks, --gpus_per_node that of a node",
    "accumulate_grad_batches": "the plan finds it for --effective_batch",
    "gradient_accumulation_steps": "the plan finds it for --effective_batch",
    "test_only": "a test needs no plan; leave the flag out",
    "dry_run": "a plan trains nothing; leave the flag out",
    "barebones": "it times batches; use neuromamba profile, or leave the flag out",
    "fast_dev_run": "it is a trial; SMOKE_ACCELERATOR=cpu tries the job that --script writes",
}


def refuse_of_training(given: dict[str, object]) -> None:
    """Refuse flags of ``neuromamba train`` that a plan answers itself, or cannot follow.

    Args:
        given: flag -> value, of those that were given.

    Raises:
        UserInputError: names the flag and what to give instead.
    """
    for name, instead in REFUSED.items():
        if given.get(name) not in (None, False):
            raise UserInputError(
                f"--{name}: a flag of neuromamba train that neuromamba plan does not take: "
                f"{instead}."
            )


def ranks_per_node(ranks: int, asked: int | None, gpu: Gpu | None) -> int:
    """Ranks of a node: as asked for, else the largest divisor of the ranks that a usual node has.

    Args:
        ranks: of the run.
        asked: ``--gpus_per_node``.
        gpu: planned for; None: not known, or none.

    Raises:
        UserInputError: the ranks do not fill such nodes.
    """
    if asked is not None:
        if ranks % asked:
            raise UserInputError(
                f"--gpus_per_node: {ranks} GPUs do not fill nodes of {asked}; give a divisor."
            )
        return asked
    usual = ranks if gpu is None else gpu.per_node
    return max(n for n in range(1, min(ranks, usual) + 1) if ranks % n == 0)


def check_flags(config: RunConfig) -> None:
    """Refuse flags of the plan that make no sense, by themselves or with each other.

    Raises:
        UserInputError: names the flag.
    """
    flags = config.flags
    if flags["gpus"] is None:
        raise UserInputError("--gpus: how many GPUs is the plan for? For example --gpus 8.")
    for name in ("gpus", "gpus_per_node", "effective_batch", "windows", "subjects", "frames"):
        if flags[name] is not None and flags[name] < 1:
            raise UserInputError(f"--{name}: got {flags[name]}, expected 1 or more.")
    for name in ("gpu_memory", "peak_tflops"):
        if flags[name] is not None and not flags[name] > 0:
            raise UserInputError(f"--{name}: got {flags[name]}, expected a number above 0.")
    if not 0 < flags["utilisation"] <= 1:
        raise UserInputError(
            f"--utilisation: got {flags['utilisation']}, expected a share above 0, at most 1."
        )
    for name, (other, why) in _NEEDED.items():
        if flags[name] is not None and flags[other] is None:
            raise UserInputError(f"--{name}: {why}.")
    if flags["windows"] is not None and flags["subjects"] is not None:
        raise UserInputError("--windows and --subjects say the same; give one of them.")
    if flags["gpus"] > flags["effective_batch"]:
        raise UserInputError(
            f"--gpus: each of {flags['gpus']:,} GPUs trains on a window of a step at least, and "
            f"--effective_batch is {flags['effective_batch']:,}; give fewer GPUs or a larger one."
        )
    name = flags["gpu"]
    known = name is not None and name.upper() != CPU
    ranks_per_node(flags["gpus"], flags["gpus_per_node"], find_gpu(name) if known else None)
    if flags["script"] is not None:
        _check_job(config)


def _check_job(config: RunConfig) -> None:
    flags = config.flags
    look_up(flags["script"], SCHEDULERS, "--script")
    for path in flags["image_path"] or ():
        if not re.fullmatch(r"[\w./~+:@%=,-]+", path):
            raise UserInputError(
                f"--image_path: '{path}' has characters that a list in the shell cannot hold; "
                f"rename it or give a link to it."
            )
    if flags["json"] == "-" and flags["output"] is None:
        raise UserInputError("--json: with --script give one of them a file (--output).")
    if flags["walltime"] is not None:
        parse_walltime(flags["walltime"])
    seeds = flags["seeds"] or ()
    if len(set(seeds)) < len(seeds) or any(not 0 <= seed < 2**32 for seed in seeds):
        raise UserInputError(
            f"--seeds: got {' '.join(map(str, seeds))}, expected different numbers of 0 or more."
        )
