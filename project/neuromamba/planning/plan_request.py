"""What is planned for, from the flags of ``neuromamba plan``; the job, from a plan."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.planning.assumptions import CPU, USUAL_FRAMES
from neuromamba.planning.batch_script import (
    SCHEDULERS,
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
from neuromamba.planning.workload import Workload, read_workload, windows_of_run

MOST_RUNS = 200  # whose masks a plan looks at
USUAL_WORKERS = 4  # of a job, as in sample_scripts/common.sh
# Flags that say something about another one, without which they would do nothing.
_NEEDED = {
    "frames": ("subjects", "are those of --subjects; give their number too, or --windows"),
    "output": ("script", "is where the job goes; give --script slurm or pbs too"),
    "walltime": ("script", "is the job's; give --script slurm or pbs too"),
}
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
    "--json",
    "--batch_size",
    "--precision",
    "--strategy",
)


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


def request_of(config: RunConfig) -> Request:
    """The hardware that is planned for.

    Raises:
        UserInputError: as ``check_flags``; an unknown GPU.
    """
    check_flags(config)
    flags = config.flags
    name, gpu, accelerator, memory = _gpu(flags["gpu"])
    ranks = flags["gpus"]
    usual = gpu.per_node if gpu is not None else ranks
    per_node = flags["gpus_per_node"] or _per_node(ranks, usual)
    if ranks % per_node:
        raise UserInputError(
            f"--gpus_per_node: {ranks} GPUs do not fill nodes of {per_node}; give a divisor."
        )
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
        utilisation=flags["utilisation"],
        peak=peak,
        setting=setting,
    )


def _per_node(ranks: int, usual: int) -> int:
    """The largest divisor of the ranks that a usual node has."""
    return max(n for n in range(1, min(ranks, usual) + 1) if ranks % n == 0)


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
    own = list(without_settings(argv, _OWN))
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
    return Job(
        name="neuromamba",
        about=about,
        nodes=request.ranks // request.per_node,
        per_node=request.per_node,
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
