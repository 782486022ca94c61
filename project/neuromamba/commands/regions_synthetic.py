"""Write synthetic time series of regions, in which each class has known signals in some regions.

    neuromamba regions synthetic --dataset HCP_REST --output Dataset/Data

The files are those that "neuromamba regions train" reads; FILE.truth.json says what is where.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.atomic_files import make_folder
from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.registry import DATASETS
from neuromamba.data.synthetic.spec import MADE


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba regions synthetic",
        description=__doc__,
        formatter_class=ExampleFormatter,
    )
    parser.add_argument("--dataset", required=True, choices=MADE, help="whose layout to imitate")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--subjects", type=int, default=40, help="how many")
    parser.add_argument("--frames", type=int, help="of a scan (default: as usual for the data set)")
    parser.add_argument(
        "--strength",
        type=float,
        default=2.5,
        help="planted signal in standard deviations of the noise; 0 plants nothing",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    return parser


def run(argv: Sequence[str]) -> None:
    """Write the files.

    Raises:
        UserInputError: a number that makes no data set, or a folder that cannot be written.
    """
    args = build_parser().parse_args(argv)
    details = DATASETS[args.dataset]
    assert details.rois is not None
    frames = args.frames or details.frames[0]
    for flag, value, low in (("--subjects", args.subjects, 1), ("--frames", frames, 8)):
        if value < low:
            raise UserInputError(f"{flag}: got {value}, expected {low} or more.")
    if args.strength < 0:
        raise UserInputError(f"--strength: got {args.strength}, expected 0 or more.")
    folder = Path(args.output)
    make_folder(folder, "--output")
    from neuromamba.data.synthetic.regions import KINDS, Recipe, write_dataset

    kinds = tuple(KINDS[label % 2] for label in range(len(details.classes)))
    recipe = Recipe(details.rois, frames, kinds, args.strength, args.seed)
    path = write_dataset(args.dataset, folder, args.subjects, recipe)
    print(f"{args.subjects} synthetic subjects in {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0, or 2 if a flag or a file is wrong."""
    return run_command(lambda: run(sys.argv[1:] if argv is None else argv), "call again.")


if __name__ == "__main__":
    sys.exit(main())
