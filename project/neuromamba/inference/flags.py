"""Flags that the commands which use a trained model share; nothing here imports torch."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.cli import ExampleFormatter
from neuromamba.common.errors import UserInputError
from neuromamba.common.similar_paths import did_you_mean

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_parser(command: str, description: str | None, *, output: bool = True) -> Any:
    """The command line of ``neuromamba <command> MODEL BOLD... [-o OUT]``.

    Args:
        command: its name.
        description: of the command.
        output: whether it writes a folder.
    """
    parser = argparse.ArgumentParser(
        prog=f"neuromamba {command}",
        description=description,
        formatter_class=ExampleFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="run folder, checkpoint, exported folder or file, ORGANISATION/NAME on the hub, or "
        "what neuromamba regions train wrote",
    )
    add(
        "bold",
        metavar="BOLD",
        nargs="+",
        help="4D NIfTI files, folders of them (BIDS derivatives, HCP, ...), or stores; for a "
        "NeuroSSM series of regions (CSV, TSV, .1D, .npy, Parquet)",
    )
    if output:
        add("-o", "--output", metavar="OUT", required=True, help="folder to write")
    add("--tr", type=float, metavar="S", help="repetition time in seconds, of all scans")
    add(
        "--mask",
        metavar="M",
        help="brain mask on the scans' grid, or nonzero or computed; default: the one beside a "
        "scan, else as neuromamba preprocess finds it",
    )
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    add(
        "--strict",
        action="store_true",
        help="refuse scans that would be resampled in time or padded, or that raise any doubt",
    )
    if output:
        add(
            "--num_workers",
            type=int,
            default=1,
            metavar="N",
            help="scans prepared at a time, while the model computes (default: 1)",
        )
    return parser


def add_atlas_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--atlas``, which a model of regions needs for NIfTI scans."""
    parser.add_argument(
        "--atlas",
        metavar="A",
        help="of a model of regions and NIfTI scans: image of labels in MNI space, or Schaefer400, "
        "AAL3v2, AAL116; the one of the training",
    )


def add_report_flag(parser: argparse.ArgumentParser, files: str = "report.html") -> None:
    """Add ``--report`` and ``--no-report``.

    Args:
        parser: of the command.
        files: what is written.
    """
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"write {files} (default: yes)",
    )


def refuse_changed(
    args: argparse.Namespace, parser: argparse.ArgumentParser, names: Sequence[str], why: str
) -> None:
    """Refuse flags that have no effect on the model in use.

    Args:
        args: of ``parser``.
        parser: knows the defaults.
        names: of the flags.
        why: end of the message.

    Raises:
        UserInputError: one of them is not at its default; names it.
    """
    for name in names:
        if getattr(args, name) != parser.get_default(name):
            raise UserInputError(f"--{name}: {why}")


def as_typed(command: str, argv: Sequence[str]) -> str:
    """The command line, for the end of a page."""
    return shlex.join(["neuromamba", command, *argv])


def check_flags(args: argparse.Namespace) -> None:
    """Refuse what is wrong before torch is imported.

    Raises:
        UserInputError: names the flag.
    """
    from neuromamba.data.ingest.options import MASK_RULES
    from neuromamba.data.ingest.repetition_time import check_tr

    check_tr(args.tr)
    if not Path(args.model).exists() and not _HUB_ID.fullmatch(args.model):
        raise UserInputError(
            f"MODEL: there is no file or folder '{args.model}'.{did_you_mean(args.model)}"
        )
    if args.mask is not None and args.mask not in MASK_RULES and not Path(args.mask).is_file():
        raise UserInputError(
            f"--mask: '{args.mask}' is no file and none of {', '.join(MASK_RULES)}."
        )
    if getattr(args, "num_workers", 1) < 1:
        raise UserInputError(f"--num_workers: got {args.num_workers}, expected 1 or more.")
    missing = [place for place in args.bold if not Path(place).exists()]
    if len(missing) == len(args.bold):
        raise UserInputError(
            f"BOLD: there is no file or folder '{missing[0]}'"
            f"{f', nor any of the other {len(missing) - 1}' if missing[1:] else ''}."
            f"{did_you_mean(missing[0])}"
        )


def result_options(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The flags that change a result, for the records of a call: ``names`` and those of all."""
    mask = args.mask and str(args.mask)
    found = {"tr": args.tr, "mask": mask, "strict": args.strict}
    return found | {name: getattr(args, name) for name in names}
