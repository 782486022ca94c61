"""What a training takes on a number of GPUs: memory, batches, FLOPs, hours."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from project.module.analysis import flops
from project.module.planning.gpus import Gpu
from project.module.planning.memory import MemoryPlan, Setting, model_weights, plan_memory
from project.module.planning.workload import Workload
from project.module.training.run_config import RunConfig
from project.module.training.scalability import flops_of
from project.module.training.strategies import PRECISIONS
from project.module.training.trainer import epochs

EFFECTIVE_BATCH = 1152  # paper, Appendix B
# Left of a GPU's memory for its context, collectives and what torch's allocator cannot use.
RESERVE = 0.1
# Of the matrix units' rate. Not measured: nothing of this project has run on a GPU yet. Layers this
# narrow are bound by memory traffic (docs/performance.md has the shares on a CPU).
ASSUMED_UTILISATION = 0.1
COMPARED = ("ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3")
OFFLOADED = ("deepspeed_stage_2_offload", "deepspeed_stage_3_offload")
MOST_SHOWN = 12  # micro batches


@dataclass(frozen=True)
class Request:
    """What is planned for.

    Attributes:
        ranks, per_node: of the run, of a node.
        gpu: one rank's device; None on CPUs.
        gpu_name: for the report.
        memory: bytes of it; None: not known.
        effective_batch: windows of an optimiser step.
        utilisation: share of the peak rate.
        peak: FLOP/s of a rank; None: not known.
        setting: where and how.
    """

    ranks: int
    per_node: int
    gpu: Gpu | None
    gpu_name: str
    memory: float | None
    effective_batch: int
    utilisation: float
    peak: float | None
    setting: Setting

    @property
    def usable(self) -> float | None:
        """Bytes that a training may fill."""
        return None if self.memory is None else (1 - RESERVE) * self.memory


@dataclass(frozen=True)
class Batches:
    """A way to reach the effective batch.

    Attributes:
        micro: windows of a batch on a rank.
        accumulation: batches of an optimiser step.
        memory: bytes of a rank.
        fits: into the GPU; None: its memory is not known.
    """

    micro: int
    accumulation: int
    memory: int
    fits: bool | None


@dataclass(frozen=True)
class ClusterPlan:
    """The plan.

    Attributes:
        parameters, trained: of the model.
        options: micro batches that reach the effective batch, in order.
        chosen: the one to take.
        effective: windows of a step with it.
        memory: of a rank with it.
        by_strategy: strategy -> bytes of a rank on its device, and on its host.
        flops_window, flops_step, flops_run: of training, the last one over all epochs.
        steps: optimiser steps of the run.
        hours: of the run.
        checkpointing_needed: nothing fits without --activation_checkpointing.
    """

    parameters: int
    trained: int
    options: list[Batches]
    chosen: Batches
    effective: int
    memory: MemoryPlan
    by_strategy: dict[str, tuple[int, int]]
    flops_window: int
    flops_step: int
    flops_run: int | None
    steps: int | None
    hours: float | None
    checkpointing_needed: bool


def default_strategy(config: RunConfig, ranks: int) -> str:
    """``--strategy``, else the paper's for several ranks: ZeRO-1, or ZeRO-3 for Large."""
    chosen = str(config.trainer.get("strategy", "auto"))
    if chosen != "auto" or ranks == 1:
        return chosen
    return "deepspeed_stage_3" if config.model.embed_dim >= 384 else "deepspeed_stage_1"


def default_precision(config: RunConfig, on_gpu: bool) -> str:
    """``--precision``, else the paper's on GPUs."""
    chosen = config.trainer.get("precision")
    if chosen is None:
        return "bf16-mixed" if on_gpu else "32-true"
    return PRECISIONS[str(chosen)]


def make_plan(config: RunConfig, request: Request, work: Workload) -> ClusterPlan:
    """Work it out.

    Raises:
        UserInputError: as ``plan_memory``.
    """
    weights = model_weights(config)

    def memory(micro: int, setting: Setting = request.setting, again: bool = False) -> MemoryPlan:
        own = config
        if again:
            flags = {**config.flags, "activation_checkpointing": True}
            own = dataclasses.replace(config, flags=flags)
        return plan_memory(own, setting, weights, work.most_tokens, work.most_voxels, micro)

    def option(micro: int, accumulation: int) -> Batches:
        total = memory(micro).total
        fits = None if request.usable is None else total <= request.usable
        return Batches(micro, accumulation, total, fits)

    options = [option(*pair) for pair in reaching(request.effective_batch, request.ranks)]
    chosen = _choose(options, config, request, option)
    needed = chosen.fits is False and not config.flags["activation_checkpointing"]
    strategies = ("auto",) if request.ranks == 1 else COMPARED
    by_strategy = {}
    for name in (*strategies, *OFFLOADED):
        plan = memory(chosen.micro, dataclasses.replace(request.setting, strategy=name))
        by_strategy[name] = plan.total, sum(plan.host.values())
    per_window = flops_of(config)(round(work.tokens_brain))
    effective = chosen.micro * chosen.accumulation * request.ranks
    run, steps, hours = None, None, None
    if work.windows is not None:
        times = max(1, epochs(config))
        run = per_window * work.windows * times
        batches = math.ceil(math.ceil(work.windows / request.ranks) / chosen.micro)
        steps = math.ceil(batches / chosen.accumulation) * times
        if request.peak is not None:
            done = run
            if config.flags["activation_checkpointing"]:
                forward = flops.forward_terms(config.model, round(work.tokens_brain))
                done += flops.total(forward) * work.windows * times  # computed once more
            hours = done / (request.ranks * request.peak * request.utilisation) / 3600
    return ClusterPlan(
        parameters=weights.trained + weights.frozen,
        trained=weights.trained,
        options=options,
        chosen=chosen,
        effective=effective,
        memory=memory(chosen.micro),
        by_strategy=by_strategy,
        flops_window=per_window,
        flops_step=per_window * effective,
        flops_run=run,
        steps=steps,
        hours=hours,
        checkpointing_needed=needed
        and request.usable is not None
        and memory(chosen.micro, again=True).total <= request.usable,
    )


def reaching(effective: int, ranks: int) -> list[tuple[int, int]]:
    """Micro batches and accumulations whose product with the ranks is the effective batch."""
    if effective % ranks:
        return []
    each = effective // ranks
    pairs = [(micro, each // micro) for micro in range(1, each + 1) if each % micro == 0]
    return pairs[:MOST_SHOWN]


def _choose(options: list[Batches], config: RunConfig, request: Request, option: Any) -> Batches:
    """The run's own micro batch where that reaches the effective batch and fits, else the next."""
    wanted = config.data.batch_size
    if not options:  # the ranks do not divide the effective batch: as near as can be
        micro = wanted
        while micro > 1 and option(micro, 1).fits is False:
            micro -= 1
        nearest: Batches = option(
            micro, max(1, round(request.effective_batch / request.ranks / micro))
        )
        return nearest
    fitting = [one for one in options if one.fits is not False]
    below = [one for one in fitting if one.micro <= wanted]
    if below:
        return below[-1]
    return fitting[0] if fitting else options[0]


def as_dict(plan: ClusterPlan) -> dict[str, Any]:
    """In plain containers."""
    return dataclasses.asdict(plan)
