"""Windows of a run in epochs and steps, and what fills up those that are not full."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.steps import batches_of_epoch, total_steps


class Schedule(NamedTuple):
    """Windows and optimiser steps of a run, over all ranks.

    Attributes:
        epoch: windows computed in an epoch.
        repeated: of them, those that come again so that all ranks have as many.
        step: windows of an optimiser step, unless it is the last of its epoch.
        last_step: windows of that.
        steps_epoch: of an epoch.
        steps: of the run.
        windows: computed in the run.
    """

    epoch: int
    repeated: int
    step: int
    last_step: int
    steps_epoch: int
    steps: int
    windows: int


def windows_each(windows: int, ranks: int) -> int:
    """Windows of an epoch on each rank; the data repeat some where they do not divide evenly."""
    return math.ceil(windows / ranks)


def schedule(
    config: RunConfig, windows: int, ranks: int, micro: int, accumulation: int
) -> Schedule:
    """Count as training does (``EpochSampler``, ``total_steps``).

    Args:
        config: the run; how many epochs or steps, and limits of an epoch.
        windows: training windows of an epoch.
        ranks: of the run.
        micro: windows of a batch on a rank.
        accumulation: batches of an optimiser step.
    """
    flags = {**config.flags, "gradient_accumulation_steps": accumulation}
    config = dataclasses.replace(config, flags=flags)
    each = windows_each(windows, ranks)
    batches = math.ceil(each / micro)
    n_batches = max(1, batches_of_epoch(config, batches))
    epoch = ranks * min(each, n_batches * micro)
    step = min(ranks * micro * accumulation, epoch)
    steps_epoch = math.ceil(n_batches / accumulation)
    steps = total_steps(config, batches)
    whole, rest = divmod(steps, steps_epoch)
    return Schedule(
        epoch=epoch,
        repeated=max(0, epoch - windows),
        step=step,
        last_step=epoch - (steps_epoch - 1) * step,
        steps_epoch=steps_epoch,
        steps=steps,
        windows=whole * epoch + rest * step,
    )
