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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from project.module.command_line import ended
from project.module.config import UserInputError
from project.module.planning.batch_script import SCHEDULERS, batch_script
from project.module.planning.cluster_plan import (
    ASSUMED_UTILISATION,
    EFFECTIVE_BATCH,
    as_dict,
    make_plan,
)
from project.module.planning.data_path import check_data_path
from project.module.planning.gpus import GPUS
from project.module.planning.machine import Check, check_machine
from project.module.planning.plan_request import CPU, USUAL_FRAMES, job_of, request_of, workload_of
from project.module.planning.plan_text import no_fit, plan_text
from project.module.training.run_config import RunConfig, run_config
from project.module.utils.data_preprocess_and_load.whole_files import write_text_whole
from project.module.utils.parser import Parser, build_parser, parse_arguments

# Flags that say what is trained; without them a plan is for pre-training.
_OBJECTIVE = ("pretraining", "downstream_task", "clf_head_version", "label_csv", "events")
# Flags of main.py that the plan answers, or that ask for something it does not do.
_ANSWERED = ("accelerator", "devices", "num_nodes", "accumulate_grad_batches")
_REFUSED = (
    *_ANSWERED,
    "gradient_accumulation_steps",
    "test_only",
    "dry_run",
    "barebones",
    "fast_dev_run",
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
    add(
        "--frames",
        type=int,
        metavar="N",
        help=f"frames of each of --subjects; {USUAL_FRAMES:,} if not given",
    )
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


def plan(argv: Sequence[str]) -> int:
    """Plan a run and print it; 1 if nothing fits.

    Raises:
        UserInputError: anything the user can mend.
    """
    config = planned_run(argv)
    request = request_of(config)
    setting = request.setting
    fitted = {"strategy": setting.strategy, "precision": setting.precision}
    config = dataclasses.replace(config, trainer={**config.trainer, **fitted})
    work = workload_of(config)
    made = make_plan(config, request, work)
    if config.flags["json"] != "-":
        print(plan_text(config, request, work, made))
    record = {"request": dataclasses.asdict(request), "work": work._asdict(), **as_dict(made)}
    _write_json(record, config.flags["json"])
    if not made.fits:
        sys.stdout.flush()
        print(f"error: {no_fit(request, made)}", file=sys.stderr)
        return 1
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
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0, 1 if something is missing or does not fit, 2 for a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("project").setLevel(logging.ERROR)
    planning = words[:1] == ["plan"]
    return ended(lambda: plan(words[1:]) if planning else check(words), "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
