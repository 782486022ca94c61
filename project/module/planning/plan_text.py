"""A plan as text."""

from __future__ import annotations

from project.module.planning.cluster_plan import (
    ASSUMED_UTILISATION,
    RESERVE,
    Batches,
    ClusterPlan,
    Request,
)
from project.module.planning.workload import Workload
from project.module.training.run_config import RunConfig


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.1f} MB"


def _what(config: RunConfig) -> str:
    if config.pretrain is not None:
        masked = config.pretrain.objective == "mim"
        return "pre-training, " + ("masked tokens" if masked else "next token")
    assert config.downstream is not None and config.head is not None
    frozen = ", frozen backbone" if config.downstream.freeze_feature_extractor else ""
    return f"{config.downstream.task}, {config.head.name} head{frozen}"


def _device(request: Request) -> str:
    nodes = request.ranks // request.per_node
    memory = "" if request.memory is None else f" of {_gb(request.memory)}"
    place = f"{nodes} node{'s' if nodes > 1 else ''} of {request.per_node}"
    return f"{request.ranks} x {request.gpu_name}{memory} ({place})"


def plan_text(config: RunConfig, request: Request, work: Workload, plan: ClusterPlan) -> str:
    """The plan for the terminal."""
    model, setting = config.model, request.setting
    lines = [
        f"{_what(config)}: D {model.embed_dim}, {model.depth} blocks, {plan.parameters:,} "
        f"parameters, {plan.trained:,} trained",
        f"on {_device(request)}, {setting.strategy}, {setting.precision}"
        + (", activation checkpointing" if config.flags["activation_checkpointing"] else ""),
        f"window of {'x'.join(map(str, model.img_size))}: {work.tokens_brain:,.0f} of "
        f"{model.num_tokens:,} tokens, at most {work.most_tokens:,}; {work.tokens_source}",
        "",
        *_batches(request, plan),
        "",
        *_memory(request, plan),
        "",
        *_compute(config, request, work, plan),
    ]
    return "\n".join(lines)


def _verdict(option: Batches, request: Request) -> str:
    if option.fits is None or request.memory is None:
        return ""
    share = f"{option.memory / request.memory:.0%} of the GPU"
    return share if option.fits else f"{share}: does not fit"


def _batches(request: Request, plan: ClusterPlan) -> list[str]:
    lines = [
        f"batches that make {request.effective_batch:,} windows a step on {request.ranks} ranks"
    ]
    if not plan.options:
        lines.append(
            f"  none: {request.ranks} does not divide {request.effective_batch:,}; nearest:"
        )
    for option in plan.options or [plan.chosen]:
        mark = "*" if option == plan.chosen else " "
        lines.append(
            f" {mark}--batch_size {option.micro:<4} --gradient_accumulation_steps "
            f"{option.accumulation:<5} {_gb(option.memory):>10} a rank  {_verdict(option, request)}"
        )
    if plan.effective != request.effective_batch:
        lines.append(f"  effective batch with it: {plan.effective:,}")
    if plan.chosen.fits is False:
        lines.append(
            "  it does not fit, whatever the batch size; "
            + (
                "add --activation_checkpointing, with which it does"
                if plan.checkpointing_needed
                else "take larger GPUs, fewer frames (--sequence_length) or a smaller model"
            )
        )
    return lines


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


def _compute(config: RunConfig, request: Request, work: Workload, plan: ClusterPlan) -> list[str]:
    lines = [
        f"model FLOPs of training: {plan.flops_window:.3e} a window, {plan.flops_step:.3e} a step "
        f"of {plan.effective:,} windows"
    ]
    if plan.flops_run is None or plan.steps is None:
        return [*lines, f"epochs: {work.windows_source}"]
    lines.append(
        f"{work.windows:,} windows an epoch ({work.windows_source}); {plan.steps:,} steps, "
        f"{plan.flops_run:.3e} FLOPs in all"
    )
    if request.peak is None:
        return [
            *lines,
            f"hours: give --peak_tflops, the peak rate of one {request.gpu_name}",
        ]
    assert plan.hours is not None
    source = request.gpu.source if request.gpu is not None else "--peak_tflops"
    lines.append(
        f"hours: {plan.hours:,.1f} at {request.utilisation:.0%} of {request.peak / 1e12:.4g} "
        f"TFLOP/s a rank ({source}); GPU hours: {plan.hours * request.ranks:,.0f}"
    )
    if request.utilisation == ASSUMED_UTILISATION:
        lines.append(
            "  the share is an assumption: measure it (deepspeed_profile.py, TFLOP/s) and give "
            "--utilisation"
        )
    if config.flags["activation_checkpointing"]:
        lines.append("  with one more forward pass, for the checkpointing")
    return lines
