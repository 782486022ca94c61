"""Extract time series of an atlas's regions from NIfTI runs in MNI space.

    neuromamba regions extract --input derivatives/fmriprep --atlas Schaefer400 \\
        --label_csv participants.csv --output Dataset/Data/mine.pickle

It writes the file that "neuromamba regions train --dataset Own --data_file FILE --target COLUMN"
reads, and beside it a quality page (.html) and what it was made from (.json). Runs that cannot be
used are named and left out.

Exit status: 0; 1 if runs were left out; 2 if a flag or a file is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.atomic_files import make_folder
from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.config.names import ATLAS_NAMES, CONFOUND_SETS
from neuromamba.data.ingest.layouts import LAYOUTS, find_runs
from neuromamba.data.ingest.sources import Choice


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba regions extract",
        description=__doc__,
        formatter_class=ExampleFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", required=True, metavar="DIR", help="folder of runs in MNI space")
    add("--output", required=True, metavar="FILE", help=".pickle or .npy")
    add("--atlas", required=True, help=f"{', '.join(ATLAS_NAMES)}, or an image of labels")
    add("--data_dir", default="Dataset/Data", metavar="DIR", help="has atlases/, if any")
    add("--layout", default="auto", help=f"auto, {', '.join(LAYOUTS)} (default: auto)")
    add(
        "--space",
        default="",
        metavar="NAME",
        help="of several versions of a run, this one; native: the atlas is in the runs' own space "
        "(default: MNI)",
    )
    add("--label_csv", metavar="FILE", help="table of subjects; all its columns go to pheno")
    add(
        "--confounds",
        choices=CONFOUND_SETS,
        default="none",
        help="fMRIPrep's: basic is 6 motion, white matter, CSF and cosines; full has their "
        "derivatives and squares (default: %(default)s)",
    )
    add("--low_pass", type=float, metavar="HZ", help="default: no filter")
    add("--high_pass", type=float, metavar="HZ", help="default: no filter")
    add("--tr", type=float, metavar="SECONDS", help="in place of what the files say")
    add(
        "--min_dof",
        type=float,
        default=40.0,
        metavar="N",
        help="refuse runs that keep fewer degrees of freedom (default: %(default)g)",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; the exit status.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    args = build_parser().parse_args(argv)
    sources = find_runs(args.input, args.layout, Choice(args.space)).sources
    # Imported here: nilearn takes seconds, and a wrong flag need not wait for it.
    from neuromamba.data.regions.atlases import chosen_atlas
    from neuromamba.data.regions.extract_folder import (
        extract_folder,
        label_table,
        write_record,
        write_scans,
    )
    from neuromamba.data.regions.extraction import Extraction
    from neuromamba.data.regions.scan_output import check_output
    from neuromamba.reports.extraction_page import write_page

    output, page = Path(args.output), Path(args.output).with_suffix(".html")
    check_output(output)
    extraction = Extraction(
        args.confounds, args.low_pass, args.high_pass, args.tr, args.min_dof, args.space
    )
    table = None if args.label_csv is None else label_table(Path(args.label_csv), sources)
    atlas = chosen_atlas(args.atlas, Path(args.data_dir))
    make_folder(output.parent, "--output")
    found = extract_folder(sources, atlas, extraction, table)
    write_record(output, found)
    write_page(page, found.runs, found.refused, atlas, extraction)
    write_scans(output, found.runs, table)
    print(f"{len(found.runs)} of {len(sources)} runs in {output}, quality page {page}")
    return 1 if found.refused else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: run(sys.argv[1:] if argv is None else argv), "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
