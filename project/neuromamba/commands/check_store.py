"""Check every file of a store, and with --clean move bad files out of it.

    neuromamba check-store --image_path /path/to/store

docs/data_format.md lists the checks. Nothing is changed unless --clean is given: then damaged files
and leftovers are moved to the quarantine, with their reasons in its reasons.tsv, and manifest.csv
is written again. Nothing is deleted or overwritten.

Exit status: 0 if all is well; 1 if something is bad (moved or not); 2 for a wrong flag; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.data.store.check_options import CheckOptions


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba check-store",
        description=__doc__,
        formatter_class=ExampleFormatter,
    )
    add = parser.add_argument
    add("--image_path", required=True, metavar="STORE", help="folder of the store")
    add(
        "--sample",
        type=float,
        default=CheckOptions.sample,
        metavar="SHARE",
        help="share of the frames whose statistics are computed again and compared (default: 0.05)",
    )
    add("--full", action="store_true", help="compute those of all frames, as --sample 1")
    add("--clean", action="store_true", help="move bad files to the quarantine")
    add("--quarantine", metavar="DIR", help="where to (default: STORE/quarantine)")
    add("--num_workers", type=int, metavar="N", help="processes (default: one per processor)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)

    def check() -> int:
        options = CheckOptions(sample=1.0 if args.full else args.sample)
        from neuromamba.data.ingest.check_store import check_store  # imports h5py and nibabel

        good = check_store(
            args.image_path,
            options,
            quarantine=args.quarantine,
            clean=args.clean,
            num_workers=args.num_workers,
        )
        return 0 if good else 1

    return run_command(check, "nothing was moved.")


if __name__ == "__main__":
    sys.exit(main())
