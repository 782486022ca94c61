"""Command lines of the steps of tables that are no commands of their own.

A module of steps lists what it can do (``StepCommand``) and ends in ``run_steps``: its docstring is
the description in ``--help``, and a step that finds something writes it to ``-o FILE`` as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.cli import run_command


class StepCommand(NamedTuple):
    """One step of a module.

    Attributes:
        do: takes the arguments; returns what is written to ``-o``, plain containers, or None.
        paths: names of the arguments without a flag, which are files or folders.
        seed: whether it takes ``--seed`` (0).
        finds: what is written, such as "scores", in the line that says where; empty if the step
            has no ``-o``.
        more: adds its own arguments to its parser.
    """

    do: Callable[[argparse.Namespace], Mapping[str, Any] | None]
    paths: Sequence[str]
    seed: bool = False
    finds: str = ""
    more: Callable[[argparse.ArgumentParser], None] = lambda _: None


def step_parser(
    description: str | None, steps: Mapping[str, StepCommand]
) -> argparse.ArgumentParser:
    """The command line of a module of steps: the step's name comes first.

    Args:
        description: docstring of the module.
        steps: name -> step.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_subparsers(dest="step", required=True)
    for name, step in steps.items():
        one = names.add_parser(name)
        for path in step.paths:
            one.add_argument(path, type=Path)
        step.more(one)
        if step.seed:
            one.add_argument("--seed", type=int, default=0)
        if step.finds:
            one.add_argument("-o", "--output", type=Path, required=True)
    return parser


def run_steps(
    description: str | None, steps: Mapping[str, StepCommand], argv: Sequence[str] | None
) -> int:
    """Do the step that ``argv`` names; returns the exit status.

    Args:
        description, steps: as in ``step_parser``.
        argv: the words after the module's name; None for those of this process.
    """

    def run() -> None:
        args = step_parser(description, steps).parse_args(argv)
        step = steps[args.step]
        found = step.do(args)
        if step.finds:
            write_text_atomically(args.output, json.dumps(found, indent=1) + "\n")
            print(f"{step.finds}: {args.output}")

    return run_command(run, "nothing was written.")
