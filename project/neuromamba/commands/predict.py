"""Predict a class or value for scans with a trained model.

    neuromamba predict output/PROJECT/RUN sub-01_task-rest_bold.nii.gz -o OUT

Each scan is brought to what the model was trained on (docs/use_a_model.md); what is done to it and
every doubt is written down. All windows are predicted and averaged as in the run's own evaluation.
OUT holds predictions.csv (a row per scan), windows.csv (a row per window), report.html and
run.json. Called again, it continues where it stopped.

Exit status: 0 if all scans have an answer; 1 if some have none; 2 for an error in the
command line; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuromamba.common.cli import run_command
from neuromamba.config.names import SCALING_METHODS
from neuromamba.inference.flags import (
    add_atlas_flag,
    add_report_flag,
    as_typed,
    check_flags,
    model_parser,
    result_options,
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser: argparse.ArgumentParser = model_parser("predict", __doc__)
    add_report_flag(parser)
    add_atlas_flag(parser)
    parser.add_argument(
        "--scaling",
        choices=SCALING_METHODS,
        help="scale the intensities otherwise than in the training: an experiment, said to be one",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; returns the exit status.

    Raises:
        UserInputError: an error in the command line.
    """
    args = build_parser().parse_args(argv)
    check_flags(args)
    # Imported here: torch takes seconds, and flags have been checked by now.
    from neuromamba.inference.batch import open_batch, run_batch
    from neuromamba.inference.loaded import LoadedModel
    from neuromamba.inference.open_model import for_scans
    from neuromamba.inference.predict import require_head
    from neuromamba.inference.prediction_files import write_predictions

    model = for_scans(args)
    if isinstance(model, LoadedModel):
        require_head(model, "predict")
        if args.scaling is not None:
            model = model.with_scaling(args.scaling)
    batch = open_batch(model, args, "predict", result_options(args, "scaling", "atlas"))
    run_batch(
        batch,
        args,
        model.predict,
        lambda scan, prediction: prediction.record(),
        lambda records: write_predictions(batch.folder, records, model.class_names),
    )
    if args.report:
        from neuromamba.reports.prediction_page import write_prediction_page

        page = write_prediction_page(batch, args.model, as_typed("predict", argv))
        print(f"page: {page}")
    return batch.status


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run(words), "what is finished is kept; call again to continue.")


if __name__ == "__main__":
    sys.exit(main())
