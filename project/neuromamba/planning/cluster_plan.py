"""What a training takes on a number of GPUs: memory, batches, FLOPs, hours."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from neuromamba.fmamba.flop_formula import flops_of
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.planning import flops
from neuromamba.planning.gpus import Gpu
from neuromamba.planning.memory import MemoryPlan, Setting, model_weights, plan_memory
from neuromamba.planning.schedule import Schedule, schedule, windows_each
from neuromamba.planning.workload import Workload
from neuromamba.training.hardware_flags import PRECISIONS

# Left of a GPU's memory for its context, collectives and what torch's allocator cannot use.
RESERVE = 0.1
COMPARED = ("ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3")
OFFLOADED = ("deepspeed_stage_2_offload", "deepspeed_stage_3_offload")
MOST_TOO_LARGE, MOST_UNKNOWN = 2, 12  # micro batches shown that do not fit, or may not


@dataclass(frozen=True, kw_only=True)
class Request:
    """The hardware and batch that are planned for.

    Attributes:
        ranks, per_node: of the run, of a node.
        gpu: one rank's device; None on CPUs.
        gpu_name: for the report.
        memory: bytes of it; None: not known.
        effective_batch: windows of an optimiser step.
        batch_size: windows of a rank's batch that were asked for; None: as many as fit.
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
    batch_size: int | None
    utilisation: float
    peak: float | None
    setting: Setting

    @property
    def usable(self) -> float | None:
        """Bytes that a training may fill."""
        return None if self.memory is None else (1 - RESERVE) * self.memory


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """Memory, batches, FLOPs and hours of a training.

    Attributes:
        parameters, trained: of the model.
        options: micro batches that reach the effective batch, in order.
        chosen: the one to take; where nothing fits, the smallest.
        effective: windows of a step with it.
        checkpointing: of the activations, which all numbers are with.
        checkpointing_needed: nothing fits without it, and the flags do not ask for it.
        memory: of a rank with ``chosen``.
        by_strategy: strategy -> bytes of a rank on its device, and on its host.
        schedule: epochs and steps; None: the windows of an epoch are not known.
        flops_window, flops_step, flops_run: of training; of the windows that a step really has,
            and of all that the run computes.
        hours: of the run.
    """

    parameters: int
    trained: int
    options: list[Batches]
    chosen: Batches
    effective: int
    checkpointing: bool
    checkpointing_needed: bool
    memory: MemoryPlan
    by_strategy: dict[str, tuple[int, int]]
    schedule: Schedule | None
    flops_window: int
    flops_step: int
    flops_run: int | None
    hours: float | None

    @property
    def fits(self) -> bool:
        """Whether it can run, as far as the memory is known."""
        return self.chosen.fits is not False


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
    """Work it out; with ``--activation_checkpointing`` where nothing fits without.

    Raises:
        UserInputError: as ``plan_memory``.
    """
    plan = _plan(config, request, work)
    if plan.fits or plan.checkpointing:
        return plan
    flags = {**config.flags, "activation_checkpointing": True}
    lighter = _plan(dataclasses.replace(config, flags=flags), request, work)
    return dataclasses.replace(lighter, checkpointing_needed=True) if lighter.fits else plan


def _plan(config: RunConfig, request: Request, work: Workload) -> ClusterPlan:
    """The plan of the run as its flags are."""
    weights = model_weights(config)
    checkpointing: bool = config.flags["activation_checkpointing"]

    def memory(micro: int, setting: Setting = request.setting) -> MemoryPlan:
        return plan_memory(config, setting, weights, work.most_tokens, work.most_voxels, micro)

    def option(micro: int, accumulation: int) -> Batches:
        total = memory(micro).total
        fits = None if request.usable is None else total <= request.usable
        return Batches(micro=micro, accumulation=accumulation, memory=total, fits=fits)

    # No batch of a rank has more windows than the rank has in an epoch.
    most = math.inf if work.windows is None else windows_each(work.windows, request.ranks)
    pairs = reaching(request.effective_batch, request.ranks)
    options = _shown(option(*pair) for pair in pairs if pair[0] <= most)
    wanted = config.data.batch_size
    if request.batch_size is None and request.usable is not None:
        wanted = request.effective_batch // request.ranks  # whatever fits
    chosen = _choose(options, int(min(wanted, most)), request, option)
    strategies = ("auto",) if request.ranks == 1 else COMPARED
    by_strategy = {}
    for name in (*strategies, *OFFLOADED):
        held = memory(chosen.micro, dataclasses.replace(request.setting, strategy=name))
        by_strategy[name] = held.total, sum(held.host.values())
    per_window = flops_of(config)(round(work.tokens_brain))
    effective = chosen.micro * chosen.accumulation * request.ranks
    times, run, hours = None, None, None
    if work.windows is not None:
        times = schedule(config, work.windows, request.ranks, chosen.micro, chosen.accumulation)
        run = per_window * times.windows
        if request.peak is not None:
            done = run
            if checkpointing:
                forward = flops.forward_terms(config.model, round(work.tokens_brain))
                done += flops.total(forward) * times.windows  # computed once more
            hours = done / (request.ranks * request.peak * request.utilisation) / 3600
    return ClusterPlan(
        parameters=weights.trained + weights.frozen,
        trained=weights.trained,
        options=options,
        chosen=chosen,
        effective=effective,
        checkpointing=checkpointing,
        checkpointing_needed=False,
        memory=memory(chosen.micro),
        by_strategy=by_strategy,
        schedule=times,
        flops_window=per_window,
        flops_step=per_window * (effective if times is None else times.step),
        flops_run=run,
        hours=hours,
    )


def reaching(effective: int, ranks: int) -> list[tuple[int, int]]:
    """Micro batches and accumulations whose product with the ranks is the effective batch."""
    if effective % ranks:
        return []
    each = effective // ranks
    return [(micro, each // micro) for micro in range(1, each + 1) if each % micro == 0]


def _shown(options: Iterable[Batches]) -> list[Batches]:
    """All that fit and the first that do not; of an unknown memory the first."""
    shown: list[Batches] = []
    for one in options:
        too_large = sum(o.fits is False for o in shown)
        unknown = sum(o.fits is None for o in shown)
        if too_large == MOST_TOO_LARGE or unknown == MOST_UNKNOWN:
            break
        shown.append(one)
    return shown


def _choose(
    options: list[Batches], wanted: int, request: Request, option: Callable[[int, int], Batches]
) -> Batches:
    """The largest micro batch up to the wanted one that reaches the effective batch and fits."""
    if not options:  # the ranks do not divide the effective batch: as near as can be
        largest = bisect.bisect_left(
            range(2, wanted + 1), True, key=lambda micro: option(micro, 1).fits is False
        )
        each = request.effective_batch / request.ranks
        sizes = range(1, largest + 2) if request.batch_size is None else [largest + 1]
        micro = min(sizes, key=lambda m: (abs(m * max(1, round(each / m)) - each), -m))
        return option(micro, max(1, round(each / micro)))
    fitting = [one for one in options if one.fits is not False]
    below = [one for one in fitting if one.micro <= wanted]
    if below:
        return below[-1]
    return fitting[0] if fitting else options[0]


def as_dict(plan: ClusterPlan) -> dict[str, Any]:
    """Convert a plan to plain containers."""
    plain = dataclasses.asdict(plan)
    return plain | {"schedule": plan.schedule and plan.schedule._asdict()}
