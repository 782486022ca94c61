"""Fine-tune a pre-trained backbone and train from scratch on few labelled subjects.

    neuromamba label-efficiency --load_model_path RUN --output_dir output/few_labels \\
        --image_path /path/to/store --downstream_task sex --labels 4 8 16 --draws 10

For each number of labelled subjects a class, subjects are drawn from the training part of the
split; both models are trained on them and tested on the same test subjects. Prints means over the
draws with intervals and writes label_efficiency.json and trainings.csv. Called again, it does the
trainings that are missing.

Exit status: 0; 2 if a flag or a file is wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.flag_parser import Parser, default_of
from neuromamba.fmamba.data_flags import add_data_flags
from neuromamba.fmamba.flags import add_model_flags, add_objective_flags, add_optim_flags

# Flags of a training that these cannot follow -> why.
_NOT_HERE = {
    "pretraining": "it trains for a downstream task",
    "events": "it draws subjects, not events",
    "confounds": "it makes no report of the scores",
    "adjust_thresh": "there are no validation subjects",
    "limit_validation_samples": "there are no validation subjects",
}


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="neuromamba label-efficiency",
        usage="neuromamba label-efficiency --load_model_path FILE --output_dir DIR [--flag VALUE "
        "...]",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=ExampleFormatter,
    )
    group = parser.add_argument_group("few labels")
    add = group.add_argument
    add("--config", metavar="FILE", help="YAML file of 'flag: value' lines; flags override it")
    add("--load_model_path", metavar="FILE", help="pre-trained backbone, or its run folder")
    add("--output_dir", metavar="DIR", help="of the results")
    add(
        "--labels",
        nargs="+",
        type=int,
        default=[4, 8, 16, 32],
        metavar="N",
        help="labelled subjects of each class",
    )
    add("--draws", type=int, default=10, help="draws of labelled subjects for each number")
    add("--steps", type=int, default=30, help="optimiser steps of a training")
    add("--scratch_steps", type=int, help="of one from scratch; default: as --steps")
    add(
        "--at_once",
        type=int,
        default=1,
        metavar="N",
        help="trainings at the same time, in processes with an equal share of the processor each",
    )
    add("--seed", type=int, default=default_of(DataConfig, "seed"), help="of draws and trainings")
    for name in ("accelerator", "precision"):  # those not given are not passed on
        add(f"--{name}", default=argparse.SUPPRESS, metavar="NAME", help="as of neuromamba train")
    add_data_flags(parser)
    add_model_flags(parser)
    add_objective_flags(parser)
    add_optim_flags(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Do what the flags say.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    from neuromamba.fmamba.command_line import configured_run

    args, config = configured_run(build_parser(), argv)
    check(args, config.given)
    assert config.downstream is not None
    if config.downstream.task_type != "classification":
        raise UserInputError(
            f"--downstream_task: {config.downstream.task} is a regression; subjects are drawn by "
            f"class. Give a classification."
        )
    # Torch and Lightning take seconds: flags have been checked by now.
    from neuromamba.training.lightning import load_lightning

    load_lightning()
    from neuromamba.fmamba.label_efficiency import Study, lines_of, main_metric, run_study
    from neuromamba.layers.ssd_native.build import build_for_run
    from neuromamba.training.strategies import resolve_hardware

    hardware = resolve_hardware(config.trainer, False)
    build_for_run(hardware.accelerator, config.flags["ssd_backend"])
    study = Study(
        config=config,
        labels=tuple(sorted(set(args.labels))),
        draws=args.draws,
        steps=args.steps,
        scratch_steps=args.scratch_steps or args.steps,
        output=Path(args.output_dir),
        at_once=args.at_once,
    )
    print("\n".join(lines_of(run_study(study), main_metric(config))))
    print(f"results in {study.output}", flush=True)


def check(args: argparse.Namespace, given: frozenset[str]) -> None:
    """Refuse what cannot be done.

    Raises:
        UserInputError: names the flag.
    """
    for name in ("load_model_path", "output_dir"):
        if not getattr(args, name):
            raise UserInputError(f"--{name}: not given; neuromamba label-efficiency needs it.")
    for name, reason in _NOT_HERE.items():
        if name in given and getattr(args, name) not in (None, False, []):
            raise UserInputError(f"--{name}: not used by label-efficiency: {reason}.")
    for name, least in (
        ("labels", 1),
        ("draws", 1),
        ("steps", 1),
        ("scratch_steps", 1),
        ("at_once", 1),
    ):
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < least:
                raise UserInputError(f"--{name}: got {value}, expected {least} or more.")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run(words), "call again to continue.")


if __name__ == "__main__":
    sys.exit(main())
