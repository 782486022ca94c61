"""Turn a public collection of region series into the file that "neuromamba regions train" reads.

    neuromamba regions import nilearn_data/ABIDE_pcp -o abide.pickle --drop_duplicates
    neuromamba regions train --dataset Own --data_file abide.pickle --target diagnosis \\
        --dynamic_length 100 --device cpu

SOURCE is a folder of the Preprocessed Connectomes Project (<FILE_ID>_rois_<atlas>.1D, as nilearn's
fetch_abide_pcp leaves it) or of ADHD-200 (*_TCs.1D), a folder with a file for each scan (.csv,
.tsv, .1D, .npy, .parquet), an .npz file with the frames of all scans in one array and their
lengths, or a file that "neuromamba regions train" reads already. Images need "neuromamba regions
extract". The table of labels is found beside the scans, or named with --labels.

Every column of the table is kept; site, age, sex and motion are there under these names, too.
FILE.json beside the file has the sources with their hashes, and all that was left out.

Exit status: 0; 1 if scans were left out that cannot be used; 2 if a flag or a file is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.atomic_files import make_folder
from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.config.names import (
    COLLECTION_FORMATS,
    CONSTANT_REGIONS,
    DATASET_NAMES,
    ROI_ORIENTATIONS,
)

_MOST_LINES = 50  # of scans that were left out


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba regions import",
        description=__doc__,
        formatter_class=ExampleFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder or file")
    add(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help=".pickle or .npy; a folder gets scans.pickle",
    )
    add(
        "--format",
        default="auto",
        metavar="NAME",
        help=f"auto, {', '.join(COLLECTION_FORMATS)} (default: auto)",
    )
    add("--atlas", metavar="NAME", help="of several: the part of file names, or the array's name")
    add(
        "--orientation",
        choices=ROI_ORIENTATIONS,
        default="auto",
        help="rows x columns of the files; auto takes tables as time x regions and .npy as regions "
        "x time, and refuses what looks otherwise (default: auto)",
    )
    add(
        "--constant_regions",
        choices=CONSTANT_REGIONS,
        default="keep",
        help="regions without signal: keep them in their place, to be zeros in training; drop "
        "those that are constant in more than --constant_share of the scans, from all scans; "
        "or refuse the collection (default: %(default)s)",
    )
    add(
        "--constant_share",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="of the scans, see --constant_regions drop (default: %(default)g)",
    )
    add(
        "--drop_duplicates",
        action="store_true",
        help="of scans that are copies of each other, keep the first; without it they are refused",
    )

    labels = parser.add_argument_group("labels")
    add = labels.add_argument
    add(
        "--labels",
        "--label_csv",
        nargs="+",
        default=[],
        metavar="FILE",
        help="tables of the subjects, CSV or TSV (default: those beside the scans)",
    )
    add("--subject_column", metavar="NAME", help="of the tables (default: found)")
    add(
        "--dataset_name",
        metavar="NAME",
        help=f"cohort whose names and codes hold: {', '.join(DATASET_NAMES)} (default: ABIDE and "
        "ADHD200 are recognised by their columns, else Own)",
    )
    add(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME=COLUMN",
        help="which columns are site, age, sex and motion (default: found by their usual names)",
    )
    add(
        "--missing_codes",
        nargs="+",
        default=[],
        metavar="CODE",
        help="values that mean not recorded, in all columns (-9999) or in one (FIQ=-9999); "
        "those of the cohort are known",
    )

    rate = parser.add_argument_group("repetition time")
    add = rate.add_argument
    add("--tr", type=float, metavar="SECONDS", help="of all scans")
    add("--tr_column", metavar="NAME", help="of the labels (default: TR, TR_s, RepetitionTime ...)")
    add("--tr_table", metavar="FILE", help="table with the columns site and TR")
    return parser


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; the exit status.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    args = build_parser().parse_args(argv)
    # Imported here: numpy and the readers need a second, and --help need not wait for them.
    from neuromamba.data.regions.collections.importing import ImportOptions, import_collection
    from neuromamba.data.regions.collections.rates import RateFlags
    from neuromamba.data.regions.collections.record import next_command, summary_of, write_record
    from neuromamba.data.regions.scan_output import check_output, write_scan_file

    output = Path(args.output)
    if not output.suffix or output.is_dir():
        output /= "scans.pickle"
    check_output(output, (".json",))
    options = ImportOptions(
        source=Path(args.source),
        output=output,
        format=args.format,
        atlas=args.atlas,
        labels=tuple(map(Path, args.labels)),
        subject_column=args.subject_column,
        dataset_name=args.dataset_name,
        columns=tuple(args.columns),
        missing_codes=tuple(args.missing_codes),
        orientation=args.orientation,
        constant_regions=args.constant_regions,
        constant_share=args.constant_share,
        drop_duplicates=args.drop_duplicates,
        rates=RateFlags(
            args.tr, args.tr_column, None if args.tr_table is None else Path(args.tr_table)
        ),
    )
    found = import_collection(options)
    make_folder(output.parent, "--output")
    write_record(output, found)
    write_scan_file(output, found.entries())
    copies = {one.dropped for one in found.duplicates}
    unusable = {name: why for name, why in found.left_out.items() if name not in copies}
    for name, why in list(unusable.items())[:_MOST_LINES]:
        print(f"left out: {name}: {why}", file=sys.stderr)
    if len(unusable) > _MOST_LINES:
        more = len(unusable) - _MOST_LINES
        print(f"left out: {more} more, see {output.with_suffix('.json')}", file=sys.stderr)
    print("\n".join(summary_of(found, output)))
    print(f"{len(found.scans)} of {len(found.collection.scans)} scans in {output}")
    print(f"next: {next_command(found, output)}")
    return 1 if unusable else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: run(sys.argv[1:] if argv is None else argv), "nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
