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
    "try it": {
        "demo": Command("demo", "pre-train and fine-tune on synthetic fMRI, and write a report"),
    },
    "get data in": {
        "preprocess": Command("preprocess", "convert 4D NIfTI runs into a store (HDF5)"),
        "convert-reference": Command("convert_reference", "convert files of the reference code"),
        "check-store": Command("check_store", "find damaged or missing files of a store"),
        "quality": Command("quality", "write a page that shows every run of a store"),
        "synthetic": Command("synthetic", "write synthetic fMRI (NIfTI) with a known class effect"),
        "regions import": Command("regions_import", "import public collections of region series"),
        "regions extract": Command("regions_extract", "extract time series of regions from NIfTI"),
        "regions paint": Command("regions_paint", "paint region series into their atlas (NIfTI)"),
        "regions synthetic": Command("regions_synthetic", "write synthetic time series of regions"),
    },
    "train": {
        "train": Command("train", "pre-train, fine-tune and test FMamba on voxels"),
        "regions train": Command("regions_train", "train, test and explain NeuroSSM on regions"),
        "export": Command("export", "export a checkpoint: a folder to share, or one file"),
    },
    "use a trained model": {
        "check": Command("check", "say whether scans fit a trained model"),
        "predict": Command("predict", "predict a class or value for scans with a trained model"),
        "embed": Command("embed", "turn scans into features with a trained model or backbone"),
        "explain": Command("explain", "map which voxels a prediction rests on"),
        "rollout": Command("rollout", "generate the future frames of a scan"),
    },
    "judge and understand": {
        "label-efficiency": Command(
            "label_efficiency", "fine-tune and train from scratch on few labelled subjects"
        ),
        "report": Command("report", "write a page about finished runs, beside baselines"),
        "probe": Command("probe", "score what simple models read from frozen features"),
        "reproduce": Command("reproduce", "rebuild the papers' tables"),
        "regions explain-reference": Command(
            "regions_explain_reference", "compare attribution maps with Neurosynth's"
        ),
    },
    "plan and run on a cluster": {
        "doctor": Command("doctor", "check what this machine has for a training"),
        "plan": Command("plan", "predict memory, batches and hours; write the job script"),
        "flops": Command("flops", "count parameters, tokens and FLOPs"),
        "profile": Command("profile", "measure time and memory of a training step"),
        "build-kernels": Command("build_kernels", "compile the C passes of the CPU backend"),
    },
}


def usage(chosen: str = "") -> str:
    """The list of commands, grouped by what a person wants to do.

    Args:
        chosen: only commands whose names start with this word; "" lists all.
    """
    prefix = f"{chosen} " if chosen else ""
    lines = [
        f"usage: neuromamba {prefix}COMMAND [flags]",
        f"       neuromamba {prefix}COMMAND --help",
    ]
    if not chosen:
        lines += [
            "",
            "State-space foundation models of fMRI: NeuroMamba (voxels), NeuroSSM (regions).",
        ]
    for purpose, commands in COMMANDS.items():
        rows = [(name, one.summary) for name, one in commands.items() if name.startswith(prefix)]
        if rows:
            lines += ["", f"{purpose}:"]
            lines += [f"  {name:<27}{summary}" for name, summary in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "help" in words[:2]:  # `help train` and `regions help` are `train --help`, `regions --help`
        words = [*(word for word in words if word != "help"), "--help"]
    if words[:1] == ["--version"]:
        from neuromamba import __version__

        print(f"neuromamba {__version__}")
        return 0
    known = {name: command for group in COMMANDS.values() for name, command in group.items()}
    families = {name.split()[0] for name in known if " " in name}
    family = words.pop(0) if words and words[0] in families else ""
    if not words or words[0] in ("-h", "--help"):
        print(usage(family))
        return 0 if words else 2
    name, admissible = words[0], [*known, *families, "help"]
    if family:
        name = f"{family} {name}"
        admissible = [one for one in known if one.startswith(f"{family} ")]
    try:
        look_up(name, admissible, "command")
    except UserInputError as error:
        print(f"error: {error} See: neuromamba --help", file=sys.stderr)
        return 2
    module = import_module(f"neuromamba.commands.{known[name].module}")
    return int(module.main(words[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
