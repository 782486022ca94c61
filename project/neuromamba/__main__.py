"""The command line ``neuromamba``: one table of commands, each imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NamedTuple

from neuromamba.common.errors import UserInputError, look_up


class Command(NamedTuple):
    """A command: its module in ``neuromamba.commands``, and one line of help."""

    module: str
    summary: str


# What a person wants to do -> name -> command.
COMMANDS: Mapping[str, Mapping[str, Command]] = {
    "get data in": {
        "preprocess": Command("preprocess", "convert 4D NIfTI runs into a store"),
        "convert-reference": Command("convert_reference", "convert the reference's files"),
        "check-store": Command("check_store", "find damaged or missing files of a store"),
        "quality": Command("quality", "a page that shows every run of a store"),
        "synthetic": Command("synthetic", "write synthetic fMRI with a planted effect"),
        "regions extract": Command("regions_extract", "time series of regions from NIfTI runs"),
        "regions synthetic": Command("regions_synthetic", "write synthetic time series of regions"),
    },
    "train": {
        "demo": Command("demo", "pre-train and fine-tune on synthetic fMRI, in minutes"),
        "train": Command("train", "pre-train, fine-tune and test FMamba"),
        "regions train": Command("regions_train", "train, test and explain NeuroSSM"),
        "export": Command("export", "one file of any checkpoint"),
    },
    "judge and understand": {
        "report": Command("report", "a page about finished runs, beside baselines"),
        "reproduce": Command("reproduce", "the papers' tables"),
        "regions explain-reference": Command(
            "regions_explain_reference", "attribution maps beside Neurosynth's"
        ),
    },
    "plan and run on a cluster": {
        "doctor": Command("doctor", "what this machine has for a training"),
        "plan": Command("plan", "memory, batches and hours of a training"),
        "flops": Command("flops", "parameters, tokens and FLOPs"),
        "profile": Command("profile", "time and memory of a training step"),
        "build-kernels": Command("build_kernels", "compile the C passes of the CPU backend"),
    },
}


def usage() -> str:
    """The list of commands, grouped by what a person wants to do."""
    lines = ["usage: neuromamba COMMAND [flags]", "       neuromamba COMMAND --help"]
    for purpose, commands in COMMANDS.items():
        lines += ["", f"{purpose}:"]
        lines += [f"  {name:<27}{command.summary}" for name, command in commands.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        from neuromamba import __version__

        print(f"neuromamba {__version__}")
        return 0
    known = {name: command for group in COMMANDS.values() for name, command in group.items()}
    length = 2 if words[0] == "regions" else 1
    name = " ".join(words[:length])
    try:
        look_up(name, known, "neuromamba")
    except UserInputError as error:
        print(f"error: {error} See: neuromamba --help", file=sys.stderr)
        return 2
    module = import_module(f"neuromamba.commands.{known[name].module}")
    return int(module.main(words[length:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
