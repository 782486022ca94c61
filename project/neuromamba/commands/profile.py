"""Measure a training step: time by phase, memory, throughput, and how they scale.

    neuromamba profile --dataset_name Dummy --img_size 24 24 24 8 --pretraining \\
        --use_autoregressive --accelerator cpu

It takes the flags of "neuromamba train" and trains for some batches, without validation and
checkpoints; warm-up batches do not count. All strategies can be measured, also under torchrun:
rank 0 prints, times and memory are those of the slowest rank. With --scaling batch_size 1 2 4 the
measurement is repeated, each point in a process of its own (--scaling processes starts torchrun); a
point that runs out of memory becomes a row of the table.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError
from neuromamba.config.flag_parser import Parser, parse_arguments
from neuromamba.config.training import WARM_UP_BATCHES
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run_config import RunConfig, run_config
from neuromamba.planning.scaling import POINTS, scaling_report
from neuromamba.training.stopping import run_training

# Flags of a training that ask for something a profile does not do.
_REFUSED = (
    "test_only",
    "resume_ckpt_path",
    "fast_dev_run",
    "barebones",
    "scalability_check",
    "dry_run",
)


def profile_parser() -> Parser:
    """Build the parser: the flags of ``neuromamba train``, and those of the profile."""
    return build_parser("neuromamba profile", __doc__, _add_own)


def _add_own(parser: Parser) -> None:
    group = parser.add_argument_group("profile")
    add = group.add_argument
    add("--profile_batches", type=int, default=20, metavar="N", help="batches to measure")
    add(
        "--warm_up_batches",
        type=int,
        default=WARM_UP_BATCHES,
        metavar="N",
        help="batches before them, which do not count",
    )
    add("--json", metavar="FILE", help="write the figures as JSON")
    add(
        "--scaling",
        nargs="+",
        metavar="WHAT N",
        help=f"profile for several numbers of {', '.join(POINTS)}: e.g. batch_size 1 2 4",
    )
    add(
        "--point_seconds",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="time limit of each point of --scaling",
    )


def checked(argv: Sequence[str]) -> RunConfig:
    """Flags checked.

    Raises:
        UserInputError: as ``neuromamba train``; flags of a run that do not belong to a profile.
    """
    args, given = parse_arguments(profile_parser(), argv)
    for name in _REFUSED:
        if name in given and getattr(args, name) not in (None, False):
            raise UserInputError(
                f"--{name}: is not for a profile, which trains for --warm_up_batches and "
                f"--profile_batches; leave it out."
            )
    for name, least in (("profile_batches", 1), ("warm_up_batches", 0), ("point_seconds", 1)):
        if getattr(args, name) < least:
            raise UserInputError(f"--{name}: got {getattr(args, name)}, expected {least} or more.")
    return run_config(args, given)


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Profile, print and write; returns what ``--json`` holds.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    config = checked(argv)
    path = config.flags["json"]
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise UserInputError(f"--json: there is no folder '{Path(path).parent}' to write to.")
    if config.flags["scaling"] is not None:
        found, text = scaling_report(config, argv)
    else:
        # Imported here: torch takes seconds, and a wrong flag need not wait for it.
        from neuromamba.fmamba.scalability import table
        from neuromamba.planning.step_profile import profile

        logging.basicConfig(format="%(message)s")
        logging.getLogger("neuromamba").setLevel(logging.INFO)
        found = profile(config)
        text = table(found) if found else ""
    if not found:
        return {}  # another rank prints
    print(text, flush=True)
    if path is not None:
        try:
            Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserInputError(f"--json: cannot write '{path}' ({error.strerror}).") from None
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 on success, 2 if a flag or a file is wrong, 130 after Ctrl-C."""
    words = sys.argv[1:] if argv is None else argv
    return run_training(lambda: run(words))


if __name__ == "__main__":
    sys.exit(main())
