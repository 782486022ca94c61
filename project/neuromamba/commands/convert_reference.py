"""Convert data in the reference's layouts into a store that training reads.

    neuromamba convert-reference --input reference_data --output store --tr 0.72

DIR holds img/<subject>/frame_<t>.pt (SwiFT, NeuroMamba), or HDF5 files with one data set per frame,
or both. Voxels that differ from the background become the brain mask, the frames are reoriented to
LAS, and each run is written to IMAGE_PATH/hdf5/<run>.h5 and IMAGE_PATH/manifest.csv as by
"neuromamba preprocess", but compressed. A second call converts only what is new or has changed. A
run that cannot be converted is reported, and the others are converted. The input is not changed.

Orientation, voxel size and TR are not in these files: check the flags. The affine is built from
them, with the centre of the frames at (0, -18, 18) mm, that of MNI152 at 2 mm.

Exit status: 0; 1 if some runs failed; 2 for a wrong flag; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.commands.preprocess import found_failures
from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.data.ingest.flags import add_store_flags, store_options
from neuromamba.data.ingest.reference.options import BACKGROUNDS, TIME_AXES, ReferenceOptions


def build_parser(compression: str = ReferenceOptions.compression) -> argparse.ArgumentParser:
    """The command line; ``compression`` is the default of its flag."""
    default = ReferenceOptions
    parser = argparse.ArgumentParser(
        prog="neuromamba convert-reference",
        description=__doc__,
        formatter_class=ExampleFormatter,
    )
    add = parser.add_argument
    add("--input", required=True, metavar="DIR", help="frame_<t>.pt folders or *.h5, recursive")
    add("--output", required=True, metavar="IMAGE_PATH", help="folder of the store")
    add("--tr", required=True, type=float, metavar="SECONDS", help="TR of all runs")
    add(
        "--orientation",
        default=default.orientation,
        metavar="CODE",
        help="orientation of the frames",
    )
    add(
        "--voxel_size",
        nargs="+",
        type=float,
        default=list(default.voxel_size),
        metavar="MM",
        help="one number, or three in the order of the axes (default: 2)",
    )
    add("--space", default=default.space, metavar="NAME", help="space to record in the store")
    add(
        "--background",
        choices=BACKGROUNDS,
        default=default.background,
        help="value outside the brain: 0, the run's minimum, or whichever the corners have",
    )
    add(
        "--time_axis",
        choices=TIME_AXES,
        help="of 4D data sets, if it is not recognised",
    )
    add(
        "--img_size",
        nargs=3,
        type=int,
        metavar=("X", "Y", "Z"),
        help="crop or pad to this grid (default: as the frames are)",
    )
    add(
        "--crop_offset",
        nargs=3,
        type=int,
        metavar=("X", "Y", "Z"),
        help="target index = LAS index of the frame + offset, negative crops (default: centred)",
    )
    add_store_flags(parser, compression)
    return parser


def main(argv: Sequence[str] | None = None, compression: str = "lz4") -> int:
    """Run the command line; returns the exit status."""
    args = build_parser(compression).parse_args(argv)

    def convert() -> int:
        options = ReferenceOptions(
            tr=args.tr,
            img_size=args.img_size and tuple(args.img_size),
            orientation=args.orientation,
            voxel_size=tuple(args.voxel_size),
            background=args.background,
            time_axis=args.time_axis,
            space=args.space,
            crop_offset=args.crop_offset and tuple(args.crop_offset),
            **store_options(args),
        )
        # Imported here: nibabel and h5py take seconds; flags have been checked by now.
        from neuromamba.data.ingest.folder import convert_sources
        from neuromamba.data.ingest.reference.convert import convert_reference_run
        from neuromamba.data.ingest.reference.layouts import find_runs

        outcomes = convert_sources(
            find_runs(args.input, Path(args.output) / "hdf5"),
            args.output,
            options,
            job=convert_reference_run,
            num_workers=args.num_workers,
        )
        return found_failures(outcomes)

    return run_command(convert, "call again to continue.")


if __name__ == "__main__":
    sys.exit(main())
