"""What is planned for, from the flags of ``neuromamba plan``; the job, from a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from neuromamba.common.errors import UserInputError
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.planning.assumptions import CPU, USUAL_FRAMES
from neuromamba.planning.batch_script import (
    Job,
    parse_walltime,
    walltime,
    without_settings,
)
from neuromamba.planning.cluster_plan import (
    ClusterPlan,
    Request,
    default_precision,
    default_strategy,
)
from neuromamba.planning.gpus import GPUS, Gpu, find_gpu
from neuromamba.planning.memory import Setting
from neuromamba.planning.plan_flags import check_flags, ranks_per_node
from neuromamba.planning.workload import Workload, read_workload, windows_of_run

MOST_RUNS = 200  # whose masks a plan looks at
USUAL_WORKERS = 4  # of a job, as in sample_scripts/common.sh
# Flags that are not the run's, or that the plan answers.
_OWN = (
    "--gpus",
    "--gpus_per_node",
    "--gpu",
    "--gpu_memory",
    "--peak_tflops",
    "--utilisation",
    "--effective_batch",
    "--windows",
    "--subjects",
    "--frames",
    "--script",
    "--output",
    "--walltime",
    "--seeds",
    "--json",
    "--batch_size",
    "--precision",
    "--strategy",
)


def request_of(config: RunConfig) -> Request:
    """The hardware that is planned for.

    Raises:
        UserInputError: as ``check_flags``; an unknown GPU.
    """
    check_flags(config)
    flags = config.flags
    name, gpu, accelerator, memory = _gpu(flags["gpu"])
    ranks = flags["gpus"]
    per_node = ranks_per_node(ranks, flags["gpus_per_node"], gpu)
    if flags["gpu_memory"]:
        memory = flags["gpu_memory"] * 1e9
    precision = default_precision(config, accelerator != "cpu")
    peak = None
    if flags["peak_tflops"]:
        peak = flags["peak_tflops"] * 1e12
    elif gpu is not None:
        peak = gpu.bf16 if "16" in precision else gpu.fp32
    setting = Setting(
        accelerator=accelerator,
        strategy=default_strategy(config, ranks),
        precision=precision,
        ranks=ranks,
        autocast=flags["deepspeed_autocast"],
    )
    return Request(
        ranks=ranks,
        per_node=per_node,
        gpu=gpu,
        gpu_name=name,
        memory=memory,
        effective_batch=flags["effective_batch"],
        batch_size=flags["asked_batch_size"],
        utilisation=flags["utilisation"],
        peak=peak,
        setting=setting,
    )


def _gpu(name: str | None) -> tuple[str, Gpu | None, str, float | None]:
    """Name, numbers, accelerator and memory of the GPU planned for; by default this machine's."""
    if name is not None and name.upper() == CPU:
        return CPU, None, "cpu", None
    if name is not None:
        gpu = find_gpu(name)
        return name, gpu, gpu.accelerator, gpu.memory
    for kind in ("cuda", "xpu"):
        backend = getattr(torch, kind)
        if backend.is_available():
            card = backend.get_device_properties(0)
            known = [key for key in GPUS if key.split("-")[0].lower() in card.name.lower()]
            return card.name, GPUS[known[0]] if known else None, kind, float(card.total_memory)
    raise UserInputError(
        f"--gpu: torch sees no GPU here; name the one to plan for: {', '.join(GPUS)} or {CPU}."
    )


def workload_of(config: RunConfig) -> Workload:
    """Tokens of a window, windows of an epoch.

    Raises:
        UserInputError: a store is there and does not fit the flags; runs shorter than a window.
    """
    flags, windows, flag = config.flags, config.flags["windows"], "--windows"
    if flags["subjects"] is not None:
        frames = USUAL_FRAMES if flags["frames"] is None else flags["frames"]
        each = windows_of_run(frames, config.data)
        if not each:
            raise UserInputError(
                f"--frames: {frames:,} are less than a window, which spans "
                f"{config.data.window_span:,}; give longer runs, or shorter windows "
                f"(--sequence_length)."
            )
        windows = flags["subjects"] * each
        flag = f"--subjects: {flags['subjects']:,} of {frames:,} frames, {each} each"
    return read_workload(config.model, config.data, windows, flag, MOST_RUNS)


def job_of(
    argv: Sequence[str], config: RunConfig, request: Request, plan: ClusterPlan, about: str
) -> Job:
    """The planned run as a job."""
    flags = config.flags
    seeds = tuple(flags["seeds"] or ())
    own = list(without_settings(argv, (*_OWN, *(("--seed",) if seeds else ()))))
    if "--pretraining" not in own and config.pretrain is not None:
        own += ["--pretraining"]
        if config.pretrain.objective == "autoregressive":
            own += ["--use_autoregressive"]
    own += [
        *("--batch_size", str(plan.chosen.micro)),
        *("--gradient_accumulation_steps", str(plan.chosen.accumulation)),
        *("--precision", request.setting.precision),
        *("--strategy", request.setting.strategy),
    ]
    if plan.checkpointing_needed:
        own.append("--activation_checkpointing")
    seconds = walltime(plan.hours)
    if flags["walltime"] is not None:
        seconds = parse_walltime(flags["walltime"])
    host = sum(plan.memory.host.values()) or plan.memory.total
    workers = flags["num_workers"] or USUAL_WORKERS
    counted = 0
    if request.setting.accelerator != "cpu":
        counted = math.ceil(
            request.per_node / (request.gpu.ranks if request.gpu is not None else 1)
        )
    return Job(
        name="neuromamba",
        about=about,
        nodes=request.ranks // request.per_node,
        per_node=request.per_node,
        gpus=counted,
        seeds=seeds,
        workers=workers,
        host_gb=math.ceil(host / 1e9 + 0.7 * workers) + 4,
        seconds=seconds,
        flags=tuple(own),
        image_path=tuple(flags["image_path"] or ()),
        dataset_name=config.data.dataset_name,
        run_name=flags["process_code"] or "",
        resume=flags["resume_ckpt_path"] or "last",
        max_time=str(config.trainer.get("max_time", "")),
    )
