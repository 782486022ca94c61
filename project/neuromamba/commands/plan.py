"""Predict what a training needs: memory, batches, FLOPs, hours, and write its job script.

    neuromamba plan --embed_dim 256 --depth 12 --gpus 8 --gpu A100-80GB

It takes the flags of "neuromamba train". It predicts the memory of a rank, batches that give the
paper's effective batch, FLOPs and hours, and with --script it writes the job for PBS or Slurm.

Exit status: 0; 1 if nothing fits; 2 for a wrong flag.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.cli import run_command
from neuromamba.common.json_flag import add_json, write_file, write_json
from neuromamba.config.flag_parser import Parser, parse_arguments
from neuromamba.config.training import EFFECTIVE_BATCH
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run_config import RunConfig, run_config
from neuromamba.planning.assumptions import ASSUMED_UTILISATION, CPU, USUAL_FRAMES
from neuromamba.planning.batch_script import SCHEDULERS, batch_script
from neuromamba.planning.gpus import GPUS
from neuromamba.planning.plan_flags import check_flags, refuse_of_training

# Flags that say what is trained; without them a plan is for pre-training.
_OBJECTIVE = ("pretraining", "downstream_task", "clf_head_version", "label_csv", "events")


def plan_parser() -> Parser:
    """Build the parser: the flags of the plan, and those of ``neuromamba train``."""
    return build_parser("neuromamba plan", __doc__, _add_own)


def _add_own(parser: Parser) -> None:
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
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="the job is an array with a task for each seed",
    )
    add_json(group)


def planned_run(argv: Sequence[str]) -> RunConfig:
    """The run to plan for.

    Where the flags do not say what is trained, FMamba is pre-trained by the next token, and SwiFT,
    which predicts no tokens, is trained on the default task of a training.

    Raises:
        UserInputError: as ``neuromamba train``; flags that the plan answers itself.
    """
    args, given = parse_arguments(plan_parser(), argv)
    refuse_of_training({name: getattr(args, name, None) for name in given})
    # A configuration file's is that of its paper's machine; the plan looks for a better one.
    typed = any(word.split("=")[0] == "--batch_size" for word in argv)
    args.asked_batch_size = args.batch_size if typed else None
    if args.model == "fmamba" and not any(name in given for name in _OBJECTIVE):
        args.pretraining = args.use_autoregressive = not args.use_mim
        args.pretraining = True
    config = run_config(args, given)
    check_flags(config)
    return config


def plan(argv: Sequence[str]) -> int:
    """Plan a run and print it; 1 if nothing fits.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    config = planned_run(argv)
    # Imported here: torch takes seconds, and a wrong flag need not wait for it.
    from neuromamba.planning.cluster_plan import as_dict, make_plan
    from neuromamba.planning.plan_request import job_of, request_of, workload_of
    from neuromamba.planning.plan_text import no_fit, plan_text

    request = request_of(config)
    setting = request.setting
    fitted = {"strategy": setting.strategy, "precision": setting.precision}
    config = dataclasses.replace(config, trainer={**config.trainer, **fitted})
    work = workload_of(config)
    made = make_plan(config, request, work)
    if config.flags["json"] != "-":
        print(plan_text(config, request, work, made))
    record = {"request": dataclasses.asdict(request), "work": work._asdict(), **as_dict(made)}
    write_json(record, config.flags["json"])
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
            write_file(config.flags["output"], script, "--output")
            Path(config.flags["output"]).chmod(0o755)
            print(f"job written: {config.flags['output']}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0, 1 if nothing fits, 2 if a flag or a file is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("neuromamba").setLevel(logging.ERROR)
    return run_command(lambda: plan(words), "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
