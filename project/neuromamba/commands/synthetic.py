"""Write synthetic fMRI as NIfTI, with a known difference between two classes of subjects.

    neuromamba synthetic --output synthetic_nifti --subjects 20

Each subject has one run, and participants.csv has the classes. What is simulated is written in
neuromamba/data/synthetic/brain.py.
"""

from __future__ import annotations

import argparse
import sys

from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.data.synthetic.spec import EFFECTS, SyntheticSpec


def _parser() -> argparse.ArgumentParser:
    default = SyntheticSpec()
    parser = argparse.ArgumentParser(
        prog="neuromamba synthetic",
        description=__doc__,
        formatter_class=ExampleFormatter,
    )
    parser.add_argument("--output", required=True, help="folder to write, empty or absent")
    parser.add_argument("--subjects", type=int, default=default.subjects, help="how many")
    parser.add_argument("--frames", type=int, default=default.frames, help="frames of a run")
    parser.add_argument(
        "--grid",
        type=int,
        nargs=3,
        default=default.grid,
        metavar=("X", "Y", "Z"),
        help="voxels of a frame",
    )
    parser.add_argument(
        "--voxel_size", type=float, default=0.0, help="in mm; 0: so that the brain fits the grid"
    )
    parser.add_argument(
        "--effect_size",
        type=float,
        default=default.effect_size,
        help="amplitude of the planted oscillation over the standard deviation of the noise",
    )
    parser.add_argument(
        "--network_radius",
        type=float,
        default=default.network_radius,
        help="radius in mm of the regions that oscillate",
    )
    parser.add_argument(
        "--effect",
        default=default.effect,
        help=f"what differs between the classes: {', '.join(EFFECTS)}",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of all random numbers")
    parser.add_argument("--tr", type=float, default=default.tr, help="repetition time in seconds")
    parser.add_argument("--tsnr", type=float, default=default.tsnr, help="temporal SNR")
    parser.add_argument(
        "--orientation", default=default.orientation, help="of the files: RAS or LAS"
    )
    parser.add_argument("--num_workers", type=int, default=1, help="processes that write")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier data set")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command; returns the exit status."""
    values = vars(_parser().parse_args(argv))
    output, workers, overwrite = (values.pop(k) for k in ("output", "num_workers", "overwrite"))

    def write() -> None:
        spec = SyntheticSpec(**{**values, "grid": tuple(values["grid"])})
        from neuromamba.data.synthetic.runs import write_nifti_dataset  # imports nibabel, scipy

        write_nifti_dataset(spec, output, workers, overwrite=overwrite)
        print(f"{spec.subjects} runs and participants.csv in {output}")

    return run_command(write, "call again with --overwrite.")


if __name__ == "__main__":
    sys.exit(main())
