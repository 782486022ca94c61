"""Paint series of regions into their atlas: 4D images with labels that FMamba can be trained on.

    neuromamba regions import abide_roi --atlas cc200 -o abide.pickle --drop_duplicates
    neuromamba regions paint --data_file abide.pickle --atlas cc200_atlas_3mm.nii.gz -o painted
    neuromamba preprocess --input painted --output store --dataset_name Own --img_size 48 66 54

Every voxel of a region gets the region's series, so the images hold what the series hold and
nothing else; a result on them says nothing of real voxels. Written are files named as fMRIPrep's
(image, mask of the regions with signal, sidecar with the TR) and participants.tsv with all labels
of the file. Regions are matched by the names that "neuromamba regions import" recorded beside the
file, else by their order. One frame is in memory at a time. --subjects 160 --stratify_by site
paints fewer people, in proportion to their sites.

Exit status: 0; 2 if a flag or a file is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.atomic_files import make_folder
from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import ATLAS_NAMES


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba regions paint",
        description=__doc__,
        formatter_class=ExampleFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--data_file", required=True, metavar="FILE", help="series of regions, as for regions train"
    )
    add(
        "--atlas",
        required=True,
        help=f"that they were averaged over: {', '.join(ATLAS_NAMES)}, or an image of labels",
    )
    add("-o", "--output", required=True, metavar="DIR", help="new folder of the images")
    add("--data_dir", default="Dataset/Data", metavar="DIR", help="has atlases/, if any")
    add("--tr", type=float, metavar="SECONDS", help="of scans whose TR the file does not say")
    add("--subjects", type=int, metavar="N", help="paint N subjects, drawn (default: all)")
    add(
        "--stratify_by",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="with --subjects: as many of each value, or combination of values, as in the file",
    )
    add("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    return parser


def run(argv: Sequence[str]) -> None:
    """Do what the flags say.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    args = build_parser().parse_args(argv)
    from neuromamba.data.ingest.repetition_time import check_tr

    check_tr(args.tr)
    output = Path(args.output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserInputError(
            f"--output: '{output}' is there and not empty. Choose a new folder; nothing in this "
            f"one was touched."
        )
    # Imported here: nibabel takes its time, and a wrong flag need not wait for it.
    import numpy as np
    from tqdm import tqdm

    from neuromamba.data.regions.atlases import chosen_atlas
    from neuromamba.data.regions.painting import Painting, drawn, matched_ids, paint, regions_of
    from neuromamba.data.regions.scan_files import ScanFile, read_scans

    file = ScanFile(Path(args.data_file), "--data_file")
    scans = read_scans(file, None)
    shape = np.shape(scans[0].series)
    if len(shape) != 2:
        raise file.error(f"holds as first scan an array of shape {shape}, expected regions x time.")
    if args.subjects is not None:
        scans = drawn(scans, args.subjects, args.stratify_by, args.seed)
    elif args.stratify_by:
        raise UserInputError("--stratify_by: says how --subjects are drawn; give their number too.")
    atlas = chosen_atlas(args.atlas, Path(args.data_dir))
    painting = Painting(atlas, matched_ids(atlas, regions_of(file.path), shape[0]), args.tr)
    make_folder(output, "--output")
    painted = paint(file, scans, painting, output)
    frames = 0
    for record in tqdm(painted, total=len(scans), unit="scan", disable=not sys.stderr.isatty()):
        frames += record["frames"]
    print(f"{len(scans)} scans, {frames:,} frames, {len(painting.ids)} regions of {atlas.name}")
    print(f"images in {output}, labels in {output / 'participants.tsv'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(
        lambda: run(sys.argv[1:] if argv is None else argv),
        "what was painted is kept; remove the folder to begin again.",
    )


if __name__ == "__main__":
    sys.exit(main())
