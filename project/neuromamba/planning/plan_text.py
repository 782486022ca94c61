"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator

from neuromamba.config.model import ModelConfig
from neuromamba.config.training import MODE_NAMES
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.layers import bf16
from neuromamba.planning.assumptions import ASSUMED_UTILISATION
from neuromamba.planning.cluster_plan import (
    RESERVE,
    Batches,
    ClusterPlan,
    Request,
)
from neuromamba.planning.schedule import Schedule
from neuromamba.planning.workload import Workload


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"


def _number(value: float) -> str:
    """Three digits at least, however small."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _what(config: RunConfig) -> str:
    if config.pretrain is not None:
        return f"pre-training, {config.pretrain.description}"
    assert config.downstream is not None and config.head is not None
    frozen = f", {MODE_NAMES['frozen']}" if config.downstream.freeze_feature_extractor else ""
    return f"{config.downstream.task}, {config.head.name} head{frozen}"


def _sizes(model: ModelConfig) -> str:
    if model.model == "fmamba":
        return f"D {model.embed_dim}, {model.depth} blocks"
    return model.description


def _device(request: Request) -> str:
    nodes = request.ranks // request.per_node
    memory = "" if request.memory is None else f" of {_gb(request.memory)}"
    place = f"{nodes} node{'s' if nodes > 1 else ''} of {request.per_node}"
    return f"{request.ranks} x {request.gpu_name}{memory} ({place})"


def plan_text(config: RunConfig, request: Request, work: Workload, plan: ClusterPlan) -> str:
    """The plan for the terminal."""
    model, setting = config.model, request.setting
    lines = [
        f"{_what(config)}: {_sizes(model)}, {plan.parameters:,} parameters, {plan.trained:,} "
        f"trained",
        f"on {_device(request)}, {setting.strategy}, {setting.precision}"
        + (", activation checkpointing" if plan.checkpointing else ""),
        f"window of {'x'.join(map(str, model.img_size))}: {work.tokens_brain:,.0f} of "
        f"{model.num_tokens:,} tokens, at most {work.most_tokens:,}; {work.tokens_source}",
        *([bf16.advice()] if setting.accelerator == "cpu" else []),
        "",
        *_batches(request, plan),
        "",
        *_memory(request, plan),
        "",
        *_compute(request, work, plan),
    ]
    return "\n".join(lines)


def _verdict(option: Batches, request: Request) -> str:
    if option.fits is None or request.memory is None:
        return ""
    share = f"{option.memory / request.memory:.0%} of the GPU"
    return share if option.fits else f"{share}: does not fit"


def _batches(request: Request, plan: ClusterPlan) -> list[str]:
    if plan.options:
        lines = [
            f"batches that make {request.effective_batch:,} windows a step on {request.ranks} ranks"
        ]
    else:
        lines = [
            f"no batches make {request.effective_batch:,} windows a step on {request.ranks} ranks, "
            f"which do not divide it; the nearest make {plan.effective:,}"
        ]
    if plan.checkpointing_needed:
        lines[0] += "; none fits without --activation_checkpointing, so with it"
    for option in plan.options or [plan.chosen]:
        mark = "*" if plan.fits and option == plan.chosen else " "
        lines.append(
            f" {mark}--batch_size {option.micro:<4} --gradient_accumulation_steps "
            f"{option.accumulation:<5} {_gb(option.memory):>10} a rank  {_verdict(option, request)}"
        )
    return lines


def no_fit(request: Request, plan: ClusterPlan) -> str:
    """Explain why there is no plan to follow."""
    assert request.usable is not None
    return (
        f"--gpu: not even one window fits into {request.gpu_name}: {_gb(plan.chosen.memory)} "
        f"are needed and {_gb(request.usable)} can be used; take larger GPUs, another strategy, "
        f"fewer frames (--sequence_length) or a smaller model. No job is written."
    )


def _memory(request: Request, plan: ClusterPlan) -> list[str]:
    on_cpu = request.setting.accelerator == "cpu"
    where = "process (with --allocator compact)" if on_cpu else "GPU"
    lines = [f"memory of a rank, {where}, at its peak ({plan.memory.moment})"]
    lines += [f"  {name:<34} {_gb(size):>10}" for name, size in plan.memory.device.items()]
    lines.append(f"  {'sum':<34} {_gb(plan.memory.total):>10}")
    if plan.memory.host:
        beside = ", ".join(f"{name} {_gb(size)}" for name, size in plan.memory.host.items())
        lines.append(f"  beside it on the host: {beside}")
    if on_cpu:
        lines.append(
            "  --allocator auto and retain keep freed memory, with holes: up to half as much "
            "again was measured (benchmarks/results/memory_plan.md)"
        )
    else:
        lines.append(
            f"  {RESERVE:.0%} of the GPU are left for its context, for collectives and for what "
            f"torch's allocator cannot use"
        )
    lines += ["", "the same with other strategies, a rank (device, host)"]
    for name, (device, host) in plan.by_strategy.items():
        lines.append(f"  {name:<34} {_gb(device):>10} {_gb(host):>10}")
    return lines


def _compute(request: Request, work: Workload, plan: ClusterPlan) -> list[str]:
    lines = [
        f"model FLOPs of training: {plan.flops_window:.3e} a window, {plan.flops_step:.3e} a step "
        f"of {plan.schedule.step if plan.schedule else plan.effective:,} windows"
    ]
    if plan.schedule is None:
        return [*lines, f"epochs: {work.windows_source}"]
    lines += _epochs(plan.schedule, request, work, plan)
    if request.peak is None:
        return [
            *lines,
            f"hours: give --peak_tflops, the peak rate of one {request.gpu_name}",
        ]
    assert plan.hours is not None
    source = request.gpu.source if request.gpu is not None else "--peak_tflops"
    lines.append(
        f"hours: {_number(plan.hours)} at {100 * request.utilisation:.3g}% of "
        f"{request.peak / 1e12:.4g} TFLOP/s a rank ({source}); "
        f"GPU hours: {_number(plan.hours * request.ranks)}"
    )
    if request.utilisation == ASSUMED_UTILISATION:
        lines.append(
            "  the share is an assumption: measure it (neuromamba profile, TFLOP/s) and give "
            "--utilisation"
        )
    if plan.checkpointing:
        lines.append("  with one more forward pass, for the checkpointing")
    return lines


def _epochs(times: Schedule, request: Request, work: Workload, plan: ClusterPlan) -> Iterator[str]:
    """Windows and steps of an epoch and of the run; what of it is filled up."""
    yield f"{work.windows:,} windows an epoch ({work.windows_source})"
    if times.repeated:
        yield (
            f"  {times.epoch:,} are computed: {times.repeated:,} are repeated, so that all ranks "
            f"have as many"
        )
    elif times.epoch != work.windows:
        yield f"  of which {times.epoch:,} are taken, by the Trainer's limit"
    last = "" if times.last_step == times.step else f", the last of {times.last_step:,} windows"
    yield (
        f"  {times.steps_epoch:,} step{'s' if times.steps_epoch > 1 else ''} an epoch{last}; "
        f"{times.steps:,} steps and {plan.flops_run:.3e} FLOPs in all"
    )
    if plan.effective > times.epoch:
        yield (
            f"  warning: an epoch has fewer windows than the {plan.effective:,} of the effective "
            f"batch, and a step ends with its epoch: all steps are of {times.step:,}"
        )
