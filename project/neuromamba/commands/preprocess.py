"""Convert a folder of 4D NIfTI runs into a store that training reads.

    neuromamba preprocess --input derivatives/fmriprep --output store --dry_run

It reads the folders of fMRIPrep, HCP and ABCD as they are, UK Biobank's after applywarp, and any
other folder of 4D runs in MNI space. It writes IMAGE_PATH/hdf5/<run>.h5, manifest.csv and, if runs
failed, quarantine.tsv. Each run is reoriented to LAS, optionally resampled, masked, cropped or
padded to the grid, and stored as int16 with its statistics (docs/preprocessing.md). A second call
converts only what is new or has changed. A file that cannot be converted is reported, and the
others are converted.

Exit status: 0; 1 if some files failed or, in a dry run, were refused; 2 for a wrong flag; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.config.names import canonical_dataset_name
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.ingest.flags import add_store_flags, store_options
from neuromamba.data.ingest.layouts import AUTO, LAYOUTS
from neuromamba.data.ingest.options import ConversionOptions

if TYPE_CHECKING:
    from neuromamba.data.ingest.convert import Outcome


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    default = ConversionOptions()
    parser = argparse.ArgumentParser(
        prog="neuromamba preprocess",
        description=__doc__,
        formatter_class=ExampleFormatter,
    )
    add = parser.add_argument
    add("--input", required=True, metavar="DIR", help="folder with 4D *.nii, *.nii.gz, recursive")
    add("--output", required=True, metavar="IMAGE_PATH", help="folder of the store")
    add(
        "--layout",
        choices=(AUTO, *LAYOUTS),
        default=AUTO,
        help="arrangement of the folder; auto: recognised",
    )
    add(
        "--space",
        default=default.space,
        metavar="NAME",
        help="take the images of this space, such as MNI152NLin6Asym (default: any MNI space); "
        "native: images outside MNI space, on purpose",
    )
    add(
        "--desc",
        default=default.desc,
        metavar="NAME",
        help="of several outputs of a run, take desc-NAME (default: preproc, else denoised, "
        "residual ...; smoothed ones last)",
    )
    add(
        "--img_size",
        nargs=3,
        type=int,
        default=default.img_size,
        metavar=("X", "Y", "Z"),
        help="voxels of the grid that runs are cropped or padded to",
    )
    add(
        "--mask",
        default=default.mask,
        metavar="auto|nonzero|computed|PATH",
        help="brain mask: auto, the one beside a run, else its voxels that are not zero, else "
        "computed from the image; or an image on the runs' grid",
    )
    add("--tr", type=float, metavar="SECONDS", help="TR of all runs; overrides the files")
    add("--resample", type=float, metavar="MM", help="resample to cubic voxels of this size")
    add(
        "--crop_offset",
        nargs=3,
        type=int,
        metavar=("X", "Y", "Z"),
        help="target index = LAS source index + offset, negative crops (default: the data set's, "
        "else centred)",
    )
    add_store_flags(parser, default.compression)
    add(
        "--shard",
        nargs=2,
        type=int,
        metavar=("I", "N"),
        help="only every N-th run, from the I-th on (0 to N - 1): for array jobs",
    )
    return parser


def main(argv: Sequence[str] | None = None, **defaults: Any) -> int:
    """Run the command line; returns the exit status. ``defaults`` replace those of flags."""
    parser = build_parser()
    parser.set_defaults(**defaults)
    args = parser.parse_args(argv)

    def convert() -> int:
        cohort = DATASETS[canonical_dataset_name(args.dataset_name or "Own")]
        crop_offset = args.crop_offset or cohort.crop_offset
        options = ConversionOptions(
            img_size=tuple(args.img_size),
            mask=args.mask,
            tr=args.tr,
            resample=args.resample,
            crop_offset=None if crop_offset is None else tuple(crop_offset),
            space=args.space,
            desc=args.desc,
            **store_options(args),
        )
        # Imported here: nibabel and h5py take seconds; flags have been checked by now.
        from neuromamba.data.ingest.folder import Shard, convert_folder

        outcomes = convert_folder(
            args.input,
            args.output,
            options,
            layout=args.layout,
            shard=Shard(*args.shard) if args.shard else None,
            tables=cohort.tables,
            num_workers=args.num_workers,
        )
        return found_failures(outcomes)

    return run_command(convert, "call again to continue.")


def found_failures(outcomes: Sequence[Outcome]) -> int:
    """Exit status of a conversion that has ended: 1 if runs failed."""
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
