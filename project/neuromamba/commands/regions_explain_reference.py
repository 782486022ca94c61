"""Compare attribution maps of NeuroSSM (CPA) with meta-analytic maps of Neurosynth.

    neuromamba regions explain-reference --root ./Analysis/Explainability \\
        --out ./Analysis/Explainability_Results

For each data set below --root that has terms (--terms): the mean CPA map of each class over the
correctly classified holdout scans of all seeds, its reference map, their partial correlations, and
five images in maps/<DATASET>/<CLASS>/. Scores go to reports/<DATASET>/scores.json, and a page with
pictures to report.html beside it.

Exit status: 0; 2 if a flag or a file is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba import neurossm
from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import RANDOM_MAPS

TERMS = Path(neurossm.__file__).with_name("terms.yaml")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba regions explain-reference",
        description=__doc__,
        formatter_class=ExampleFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", required=True, metavar="DIR", help="maps of neuromamba regions train --analysis")
    add("--out", required=True, metavar="DIR", help="where results go")
    add("--datasets", nargs="+", metavar="NAME", help="default: all with maps and terms")
    add(
        "--data_dir",
        default="Dataset/Data",
        metavar="DIR",
        help="holds neurosynth/ (downloaded on the first run) and atlases/ (default: %(default)s)",
    )
    add(
        "--terms",
        default=str(TERMS),
        metavar="FILE",
        help="terms of a class (default: terms.yaml)",
    )
    add("--atlas", metavar="FILE", help="image of the regions' labels")
    add(
        "--null",
        choices=RANDOM_MAPS,
        default="moran",
        help="random maps of the p values: moran keeps the similarity of neighbours, permutation "
        "shuffles the regions",
    )
    add("--draws", type=int, default=1000, help="number of random maps")
    add("--seed", type=int, default=0, help="of the random maps (default: %(default)s)")
    return parser


def run(argv: Sequence[str]) -> None:
    """Do what the flags say.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    args = build_parser().parse_args(argv)
    if args.draws < 1:
        raise UserInputError(f"--draws: got {args.draws}, expected 1 or more.")
    # Imported here: nilearn takes seconds, and a wrong flag need not wait for it.
    from neuromamba.neurossm.reference_maps import RandomMaps, compare_with_references

    compare_with_references(
        Path(args.root),
        Path(args.out),
        datasets=args.datasets,
        data_dir=Path(args.data_dir),
        terms_file=Path(args.terms),
        atlas=args.atlas,
        random_maps=RandomMaps(args.null, args.draws, args.seed),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run(words), "maps of terms that were made are kept.")


if __name__ == "__main__":
    sys.exit(main())
