"""What a number of trainings cost, each described by its flags."""

from __future__ import annotations

from collections.abc import Sequence

from neuromamba.config.flag_parser import parse_arguments
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.flop_formula import window_flops
from neuromamba.fmamba.run_config import run_config
from neuromamba.planning.assumptions import ASSUMED_UTILISATION
from neuromamba.planning.gpus import find_gpu
from neuromamba.planning.workload import read_workload


def job_costs(jobs: Sequence[tuple[str, Sequence[str]]], gpu: str) -> str:
    """A line for each training: its windows, epochs, FLOPs and hours; and their sum.

    Args:
        jobs: name and flags of each.
        gpu: whose rate the hours are of, a key of ``GPUS``.

    Raises:
        UserInputError: an unknown GPU, flags that contradict each other.
    """
    device, total, lines = find_gpu(gpu), 0.0, []
    unknown = False
    for number, (name, flags_of_job) in enumerate(jobs):
        config = run_config(*parse_arguments(build_parser(), flags_of_job))
        work = read_workload(config.model, config.data)
        frozen = config.downstream is not None and config.downstream.freeze_feature_extractor
        tokens = round(work.tokens_brain)
        if config.model.keep_background:
            tokens = config.model.num_tokens
        cost = "unknown: the number of windows needs the data"
        if work.windows is not None:
            epochs = config.trainer.get("max_epochs", 1)
            each = window_flops(config.model, tokens, head=config.head, frozen=frozen)
            flops = float(each) * work.windows * epochs
            total += flops
            hours = flops / (device.bf16 * ASSUMED_UTILISATION) / 3600
            cost = f"{work.windows:,} windows x {epochs} epochs, {flops:.2e} FLOPs, {hours:.2f} h"
        else:
            unknown = True
        lines.append(f"{number:>3}  {name:<42} {cost}")
    hours = total / (device.bf16 * ASSUMED_UTILISATION) / 3600
    lines.append(f"{len(jobs)} jobs" + ("" if unknown else f", {total:.2e} FLOPs, {hours:.1f} h"))
    lines.append(
        f"hours: of one {gpu} at {ASSUMED_UTILISATION:.0%} of its bf16 rate, which is assumed, not "
        f"measured; evaluation not counted. neuromamba plan has memory and batches."
    )
    return "\n".join(lines)
