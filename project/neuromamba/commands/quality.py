"""Write a quality page of a store: pictures and numbers of every run, outliers first.

    neuromamba quality --image_path /path/to/store

It writes STORE/quality/quality.html (one file that needs no network), quality.tsv with all numbers
and flags beside it, and quality_cache/, from which a second call takes the runs that did not
change. docs/quality.md says what the columns and flags mean.

Exit status: 0; 1 if some files cannot be read; 2 for a wrong flag; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.config.names import RUN_SCALINGS
from neuromamba.reports.quality.request import QualityRequest


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba quality",
        description=__doc__,
        formatter_class=ExampleFormatter,
    )
    plain = QualityRequest(image_path="")
    add = parser.add_argument
    add("--image_path", required=True, metavar="STORE", help="folder of the store")
    add("--output", default="", metavar="FILE.html", help="default: STORE/quality/quality.html")
    add(
        "--patch_size",
        nargs=4,
        type=int,
        default=plain.patch_size,
        metavar=("X", "Y", "Z", "T"),
        help="patch of the model, for the number of tokens",
    )
    add(
        "--input_scaling_method",
        default=plain.input_scaling_method,
        metavar="NAME",
        help=f"scaling of histogram and background: {', '.join(RUN_SCALINGS)}",
    )
    add("--sequence_length", type=int, default=plain.sequence_length, help="frames of a window")
    add(
        "--frames",
        type=int,
        default=plain.frames,
        metavar="N",
        help="read at most N evenly spaced frames of a run (default: 0, all of them, because a "
        "bad frame that is not read is not found)",
    )
    add("--limit", type=int, default=plain.limit, metavar="N", help="only the first N runs")
    add(
        "--check_content",
        action="store_true",
        help="compare every run's values with the hash of them that its file holds; reads all "
        "frames, also of runs in the cache",
    )
    add("--num_workers", type=int, metavar="N", help="processes (default: one per processor)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    values = vars(build_parser().parse_args(argv))
    values["patch_size"] = tuple(values["patch_size"])

    def survey() -> int:
        request = QualityRequest(**values)
        from neuromamba.reports.quality.store_page import quality

        rows = quality(request)
        return 1 if any(row.run.error for row in rows) else 0

    return run_command(survey, "call again to continue from the cache.")


if __name__ == "__main__":
    sys.exit(main())
