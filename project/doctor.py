"""What this machine has for a training, and what a training will need.

    python project/doctor.py [--image_path /path/to/store] [--json [FILE]]
    python project/doctor.py plan --config configs/neuromamba_base.yaml --gpus 8 --gpu A100-80GB

The first ends with 0 if a training can run here and with 1 if something that it needs is missing.
``plan`` takes the flags of ``project/main.py``; it predicts memory, batches for the paper's
effective batch, FLOPs and hours, and writes the job for PBS or Slurm (``--script``). It ends with 1
if nothing fits.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from project.module.config import UserInputError, look_up
from project.module.planning.batch_script import (
    SCHEDULERS,
    Job,
    batch_script,
    parse_walltime,
    walltime,
    without_settings,
)
from project.module.planning.cluster_plan import (
    ASSUMED_UTILISATION,
    EFFECTIVE_BATCH,
    ClusterPlan,
    Request,
    as_dict,
    default_precision,
    default_strategy,
    make_plan,
)
from project.module.planning.data_path import check_data_path
from project.module.planning.gpus import GPUS, Gpu, find_gpu
from project.module.planning.machine import Check, check_machine
from project.module.planning.memory import Setting
from project.module.planning.plan_text import plan_text
from project.module.planning.workload import Workload, read_workload
from project.module.training.run_config import RunConfig, run_config
from project.module.utils.data_preprocess_and_load.datasets_hdf5 import windows_of
from project.module.utils.data_preprocess_and_load.whole_files import write_text_whole
from project.module.utils.parser import Parser, build_parser, parse_arguments

CPU = "CPU"
MOST_RUNS = 200  # whose masks a plan looks at
# Flags that say what is trained; without them a plan is for pre-training.
_OBJECTIVE = ("pretraining", "downstream_task", "clf_head_version", "label_csv", "events")
# Flags of main.py that the plan answers, or that ask for something it does not do.
_ANSWERED = ("accelerator", "devices", "num_nodes", "accumulate_grad_batches")
_REFUSED = (*_ANSWERED, "gradient_accumulation_steps", "test_only", "dry_run", "barebones")
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


def doctor_parser() -> Parser:
    """Flags of the check."""
    parser = Parser(
        prog="project/doctor.py",
        description="What this machine has for a training. See also: project/doctor.py plan --help",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--image_path", nargs="+", default=[], metavar="DIR", help="stores to look at"
    )
    _add_json(parser)
    return parser


def _add_json(parser: Any) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="JSON in place of the text, or beside it into a file",
    )


def plan_parser() -> Parser:
    """Flags of ``project/main.py`` and of the plan."""
    parser = build_parser()
    parser.prog = "project/doctor.py plan"
    parser.description = "What a training needs: memory, batches, FLOPs, hours, and its job."
    group = parser.add_argument_group("plan")
    add = group.add_argument
    add("--gpus", type=int, metavar="N", help="ranks, one for each GPU (on Aurora: tile)")
    add("--gpus_per_node", type=int, metavar="N", help="default: as usual for the GPU")
    add("--gpu", metavar="NAME", help=f"{', '.join(GPUS)}, {CPU}; default: that of this machine")
    add(
        "--gpu_memory", type=float, metavar="GB", help="of a rank, instead of the GPU's (1e9 bytes)"
    )
    add("--peak_tflops", type=float, metavar="N", help="peak rate of a rank, instead of the GPU's")
    add(
        "--utilisation",
        type=float,
        default=ASSUMED_UTILISATION,
        metavar="SHARE",
        help="of the peak rate that the model's FLOPs reach; the default is an assumption",
    )
    add("--effective_batch", type=int, default=EFFECTIVE_BATCH, help="windows of a step")
    add("--windows", type=int, metavar="N", help="training windows of an epoch")
    add("--subjects", type=int, metavar="N", help="training subjects, instead of --windows")
    add("--frames", type=int, default=1200, metavar="N", help="frames of each of them")
    add("--script", metavar="NAME", help=f"write the job: {', '.join(SCHEDULERS)}")
    add("--output", metavar="FILE", help="where to; default: printed")
    add("--walltime", metavar="HH:MM:SS", help="of the job; default: by the hours, at most a day")
    _add_json(group)
    return parser


# ---------------------------------------------------------------------------------- the check


def check(argv: Sequence[str]) -> int:
    """Look at the machine; 1 if something that every training needs is missing.

    Raises:
        UserInputError: a flag is wrong.
    """
    args, _ = parse_arguments(doctor_parser(), argv)
    found = check_machine()
    for path in args.image_path:
        found += check_data_path(path)
    can_train = all(line.state != "missing" for line in found)
    record = {"can_train": can_train, "checks": [line._asdict() for line in found]}
    if args.json != "-":
        print(check_text(found, can_train))
    _write_json(record, args.json)
    return 0 if can_train else 1


def check_text(found: Sequence[Check], can_train: bool) -> str:
    """A line for each check, with the remedy below it where there is one."""
    width = max(len(line.name) for line in found)
    lines = []
    for line in found:
        lines.append(f"{line.state:<8} {line.name:<{width}}  {line.found}")
        if line.remedy:
            lines.append(f"{'':<8} {'':<{width}}  -> {line.remedy}")
    lines.append("")
    lines.append("a training can run here" if can_train else "a training cannot run here")
    return "\n".join(lines)


def _write_json(record: Any, path: str | None) -> None:
    """To a file, or with "-" to the terminal."""
    if path is None:
        return
    text = json.dumps(record, indent=1)
    if path == "-":
        print(text)
        return
    _write(path, f"{text}\n", "--json")


def _write(path: str, text: str, flag: str) -> None:
    try:
        write_text_whole(Path(path), text)
    except OSError as error:
        raise UserInputError(f"{flag}: cannot write '{path}' ({error.strerror}).") from None


# ----------------------------------------------------------------------------------- the plan


def planned_run(argv: Sequence[str]) -> RunConfig:
    """The run to plan for; pre-training by the next token, where the flags do not say.

    Raises:
        UserInputError: as ``project/main.py``; flags that the plan answers itself.
    """
    args, given = parse_arguments(plan_parser(), argv)
    for name in _REFUSED:
        if name in given and getattr(args, name, None) not in (None, False):
            raise UserInputError(
                f"--{name}: is what the plan is to say, or not for a plan; give --gpus, "
                f"--gpus_per_node, --gpu and --effective_batch instead."
            )
    if not any(name in given for name in _OBJECTIVE):
        args.pretraining = args.use_autoregressive = not args.use_mim
        args.pretraining = True
    return run_config(args, given)


def request_of(config: RunConfig) -> Request:
    """The hardware that is planned for.

    Raises:
        UserInputError: a number that makes no sense, or an unknown GPU.
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
    name, gpu, accelerator = _gpu(flags["gpu"])
    ranks = flags["gpus"]
    usual = gpu.per_node if gpu is not None else ranks
    per_node = flags["gpus_per_node"] or _per_node(ranks, usual)
    if ranks % per_node:
        raise UserInputError(
            f"--gpus_per_node: {ranks} GPUs do not fill nodes of {per_node}; give a divisor."
        )
    memory = flags["gpu_memory"] * 1e9 if flags["gpu_memory"] else gpu and gpu.memory
    precision = default_precision(config, accelerator != "cpu")
    peak = None
    if flags["peak_tflops"]:
        peak = flags["peak_tflops"] * 1e12
    elif gpu is not None:
        peak = gpu.bf16 if "16" in precision else gpu.fp32
    setting = Setting(
        accelerator,
        default_strategy(config, ranks),
        precision,
        ranks,
        flags["deepspeed_autocast"],
    )
    return Request(
        ranks,
        per_node,
        gpu,
        name,
        memory,
        flags["effective_batch"],
        flags["utilisation"],
        peak,
        setting,
    )


def _per_node(ranks: int, usual: int) -> int:
    """The largest divisor of the ranks that a usual node has."""
    return max(n for n in range(1, min(ranks, usual) + 1) if ranks % n == 0)


def _gpu(name: str | None) -> tuple[str, Gpu | None, str]:
    """Name, numbers and accelerator of the GPU planned for; that of this machine by default."""
    import torch

    if name is not None and name.upper() == CPU:
        return CPU, None, "cpu"
    if name is not None:
        return name, (gpu := find_gpu(name)), gpu.accelerator
    for kind in ("cuda", "xpu"):
        backend = getattr(torch, kind)
        if backend.is_available():
            card = backend.get_device_properties(0)
            known = [key for key in GPUS if key.split("-")[0].lower() in card.name.lower()]
            gpu = GPUS[known[0]] if known else Gpu(0, math.nan, math.nan, 8, "unknown", kind)
            gpu = gpu._replace(memory=card.total_memory, accelerator=kind)
            return card.name, gpu, kind
    raise UserInputError(
        f"--gpu: torch sees no GPU here; name the one to plan for: {', '.join(GPUS)} or {CPU}."
    )


def workload_of(config: RunConfig) -> Workload:
    """Tokens of a window, windows of an epoch.

    Raises:
        UserInputError: a store is there and does not fit the flags; windows given twice.
    """
    flags, windows, flag = config.flags, config.flags["windows"], "--windows"
    if flags["subjects"] is not None:
        if windows is not None:
            raise UserInputError("--windows and --subjects say the same; give one of them.")
        each = len(windows_of(flags["frames"], config.data))
        windows = flags["subjects"] * each
        flag = f"--subjects: {flags['subjects']:,} of {flags['frames']:,} frames, {each} each"
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
    workers = max(1, flags["num_workers"])
    return Job(
        name="neuromamba",
        about=about,
        nodes=request.ranks // request.per_node,
        per_node=request.per_node,
        cores=workers + 2,
        host_gb=math.ceil(host / 1e9 + 0.7 * workers) + 4,
        seconds=seconds,
        flags=tuple(own),
        image_path=tuple(flags["image_path"] or ()),
        dataset_name=config.data.dataset_name,
        run_name=flags["process_code"] or "",
        resume=flags["resume_ckpt_path"] or "last",
    )


def plan(argv: Sequence[str]) -> int:
    """Plan a run and print it; 1 if nothing fits.

    Raises:
        UserInputError: anything the user can mend.
    """
    config = planned_run(argv)
    request = request_of(config)
    if config.flags["script"] is not None:
        look_up(config.flags["script"], SCHEDULERS, "--script")
        for path in config.flags["image_path"] or ():
            if not re.fullmatch(r"[\w./~+:@%=,-]+", path):
                raise UserInputError(
                    f"--image_path: '{path}' has characters that a list in the shell cannot hold; "
                    f"rename it or give a link to it."
                )
    if config.flags["output"] is not None and config.flags["script"] is None:
        raise UserInputError("--output: is where the job goes; give --script slurm or pbs too.")
    setting = request.setting
    fitted = {"strategy": setting.strategy, "precision": setting.precision}
    config = dataclasses.replace(config, trainer={**config.trainer, **fitted})
    work = workload_of(config)
    made = make_plan(config, request, work)
    if config.flags["json"] != "-":
        print(plan_text(config, request, work, made))
    record = {"request": dataclasses.asdict(request), "work": work._asdict(), **as_dict(made)}
    _write_json(record, config.flags["json"])
    fits = made.chosen.fits is not False or made.checkpointing_needed
    if config.flags["script"] is not None:
        about = (
            f"{'Pre-trains' if config.pretrain else 'Trains'} on {request.ranks} x "
            f"{request.gpu_name}: {made.chosen.micro} windows a rank, effective batch "
            f"{made.effective:,}."
        )
        script = batch_script(job_of(argv, config, request, made, about), config.flags["script"])
        if config.flags["output"] is None:
            print(f"\n{script}", end="")
        else:
            _write(config.flags["output"], script, "--output")
            Path(config.flags["output"]).chmod(0o755)
            print(f"job written: {config.flags['output']}")
    return 0 if fits else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0, 1 if something is missing or does not fit, 2 for a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("project").setLevel(logging.ERROR)
    try:
        return plan(words[1:]) if words[:1] == ["plan"] else check(words)
    except UserInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
