"""Step time by phase, memory and throughput of a run described by ``project/main.py``'s flags.

    python project/deepspeed_profile.py --config configs/neuromamba_base.yaml --pretraining \\
        --use_autoregressive --image_path /path/to/store --precision bf16

A real run trains for some batches, without validation and checkpoints; a warm-up does not count.
Any strategy that ``project/main.py`` takes, under torchrun too: rank 0 prints, times and memory are
those of the worst rank. ``--scaling batch_size 1 2 4`` repeats it, each point in a process of its
own (for ``processes`` under torchrun): a point that runs out of memory is a row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError
from neuromamba.fmamba.flags import Parser, build_parser, parse_arguments
from neuromamba.fmamba.profiling import WARM_UP, ThroughputCheck
from neuromamba.fmamba.run import Run
from neuromamba.fmamba.run_config import RunConfig, run_config
from neuromamba.fmamba.scalability import facts_of, flops_of, summary, table
from neuromamba.fmamba.trainer import accumulation
from neuromamba.planning.scaling import POINTS, scaling_report
from neuromamba.planning.schedule import windows_each
from neuromamba.training.stopping import exit_status

# What a profile leaves out of the run that the flags describe.
_WITHOUT = {
    "max_epochs": -1,
    "limit_val_batches": 0,
    "limit_test_batches": 0,
    "enable_checkpointing": False,
    "min_epochs": None,
    "min_steps": None,
}
_WITHOUT_FLAGS = {"loggername": "csv", "use_early_stopping": False, "save_embedding": False}
# Flags of main.py that ask for something a profile does not do.
_REFUSED = (
    "test_only",
    "resume_ckpt_path",
    "fast_dev_run",
    "barebones",
    "scalability_check",
    "dry_run",
)


def profile_parser() -> Parser:
    """The flags of ``project/main.py`` and those of the profile."""
    parser = build_parser()
    parser.prog = "project/deepspeed_profile.py"
    parser.description = "Profile a training: time by phase, memory, throughput, scaling."
    group = parser.add_argument_group("profile")
    add = group.add_argument
    add("--profile_batches", type=int, default=20, metavar="N", help="batches that count")
    add("--warm_up_batches", type=int, default=WARM_UP, metavar="N", help="batches before them")
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
    return parser


class ProfiledRun(Run):
    """A run that only trains, for so many batches, and hands its figures on."""

    def __init__(self, config: RunConfig) -> None:
        flags, steps = config.flags, accumulation(config)
        self.batches = flags["profile_batches"]
        # Two optimiser steps more, for the exchange of data.
        whole = flags["warm_up_batches"] + self.batches + 2 * max(2, steps)
        limits = {**_WITHOUT, "max_steps": math.ceil(whole / steps)}
        super().__init__(dataclasses.replace(config, trainer={**config.trainer, **limits}))
        self.found: dict[str, Any] = {}

    def _fit(
        self, trainer: Any, module: Any, loaders: Any, point: Any, fault_tolerance: Any
    ) -> dict[str, float]:
        size = self.config.data.batch_size
        each = windows_each(loaders.data.windows_in("train"), self.hardware.ranks)
        if each < size:  # the figures would be of smaller batches
            raise UserInputError(
                f"--batch_size: no batch has {size} windows, since a rank has {each} in an epoch; "
                f"give at most {each}, or profile on more data."
            )

        def finish(gathered: dict[str, Any]) -> None:
            self.found = summary(gathered, facts_of(self.config))

        warm_up = self.config.flags["warm_up_batches"]
        check = ThroughputCheck(flops_of(self.config), finish, warm_up, self.batches, True)
        trainer.callbacks.append(check)
        trainer.fit(module, datamodule=loaders)
        return {}


def profile(config: RunConfig) -> dict[str, Any]:
    """Figures of a run (``scalability.summary``); {} on all ranks but the first.

    Raises:
        UserInputError: as the run would raise it.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = {**config.flags, **_WITHOUT_FLAGS, "output_dir": str(Path(folder) / "run")}
        planned = ProfiledRun(dataclasses.replace(config, flags=flags))
        planned.allocator.apply()
        with contextlib.redirect_stdout(sys.stderr):
            planned.execute()
    return planned.found


def checked(argv: Sequence[str]) -> RunConfig:
    """Flags checked.

    Raises:
        UserInputError: as ``project/main.py``; flags of a run that do not belong to a profile.
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
        UserInputError: anything the user can mend.
    """
    config = checked(argv)
    path = config.flags["json"]
    if path is not None and not Path(path).resolve().parent.is_dir():
        raise UserInputError(f"--json: there is no folder '{Path(path).parent}' to write to.")
    if config.flags["scaling"] is not None:
        found, text = scaling_report(config, argv, Path(__file__).resolve())
    else:
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
    """Entry point: 0 on success, 2 with one line for a user's mistake, 130 after Ctrl-C."""
    try:
        run(sys.argv[1:] if argv is None else argv)
    except (Exception, KeyboardInterrupt) as error:
        status = exit_status(error)
        if status is None:
            raise
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
