"""Say whether scans fit a trained model; nothing is predicted and nothing is written.

    neuromamba check output/PROJECT/RUN sub-01_task-rest_bold.nii.gz

Prints what the model expects, and for each scan what would be done to it, every doubt with its
remedy, and how it compares with the runs of the training.

Exit status: 0 if all scans can be used; 1 if some cannot; 2 for an error in the
command line; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuromamba.common.cli import run_command
from neuromamba.inference.flags import add_atlas_flag, check_flags, model_parser


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser: argparse.ArgumentParser = model_parser("check", __doc__, output=False)
    add_atlas_flag(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; returns the exit status.

    Raises:
        UserInputError: an error in the command line.
    """
    args = build_parser().parse_args(argv)
    check_flags(args)
    from neuromamba.common.errors import UserInputError
    from neuromamba.common.text import some_of
    from neuromamba.inference.many import each_scan
    from neuromamba.inference.open_model import for_scans
    from neuromamba.inference.prepared import comparison_lines

    model = for_scans(args)
    print(f"{model.path} expects")
    for name, value in model.contract.describe():
        print(f"  {name:<18}{value}")
    scans, passed = model.find(args.bold)
    if not scans:
        raise UserInputError(f"BOLD: no scan in {some_of(args.bold, 3)}.")
    for image in passed:
        print(f"passed over {image.name}: {image.why}")
    refused = 0
    found = each_scan(
        model,
        scans,
        lambda prepared: prepared,
        tr=args.tr,
        mask=args.mask,
        strict=args.strict,
    )
    for outcome in found:
        print(f"{outcome.scan.name}: {outcome.status}")
        refused += outcome.status == "refused"
        if outcome.result is None:
            print(f"  refused: {outcome.reason}")
            continue
        for action in outcome.result.actions:
            print(f"  {action}")
        for problem in outcome.result.problems:
            print(f"  doubt: {problem}")
        for line in comparison_lines(outcome.result.measures):
            print(f"  {line}")
        print(f"  windows: {len(outcome.result.windows)}", flush=True)
    return 1 if refused else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run(words), "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
