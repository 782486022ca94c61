"""Predict of scans with a trained model.

    neuromamba predict output/PROJECT/RUN sub-01_task-rest_bold.nii.gz -o OUT

Each scan is brought to what the model was trained on (docs/use_a_model.md); what is done to it and
every doubt is written down. All windows are predicted and averaged as in the run's own evaluation.
OUT holds predictions.csv (a row per scan), windows.csv (a row per window), report.html and
run.json. Called again, it continues where it stopped.

Exit status: 0 if all scans have an answer; 1 if some have none; 2 for a wrong call; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuromamba.common.cli import run_command
from neuromamba.config.names import SCALING_METHODS
from neuromamba.inference.flags import ATLAS_HELP, check_flags, model_parser, result_options


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = model_parser("predict", __doc__)
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write report.html (default: yes)",
    )
    parser.add_argument(
        "--atlas",
        metavar="A",
        help=ATLAS_HELP,
    )
    parser.add_argument(
        "--scaling",
        choices=SCALING_METHODS,
        help="scale the intensities otherwise than in the training: an experiment, said to be one",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; returns the exit status.

    Raises:
        UserInputError: a wrong call.
    """
    args = build_parser().parse_args(argv)
    check_flags(args)
    # Imported here: torch takes seconds, and flags have been checked by now.
    from neuromamba.inference.batch import open_batch, process, summary
    from neuromamba.inference.loaded import LoadedModel
    from neuromamba.inference.open_model import for_scans
    from neuromamba.inference.predict import require_head
    from neuromamba.inference.prediction_files import PREDICTIONS, write_predictions

    model = for_scans(args)
    if isinstance(model, LoadedModel):
        require_head(model, "predict")
        if args.scaling is not None:
            model = model.with_scaling(args.scaling)
    batch = open_batch(model, args, "predict", result_options(args, "scaling", "atlas"))
    try:
        process(
            batch,
            args,
            model.predict,
            lambda scan, prediction: prediction.record(),
        )
    finally:  # after Ctrl-C too
        records = batch.in_order
        write_predictions(batch.folder, records, model.class_names)
        batch.folder.write_run(records, passed_over=batch.passed_over)
    print(f"{summary(batch)}; {batch.folder.path / PREDICTIONS}")
    if args.report:
        from neuromamba.reports.prediction_page import write_prediction_page

        command = " ".join(["neuromamba predict", *argv])
        print(f"page: {write_prediction_page(batch, args.model, command)}")
    return batch.status


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run(words), "what is finished is kept; call again to continue.")


if __name__ == "__main__":
    sys.exit(main())
