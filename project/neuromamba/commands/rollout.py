"""Generate the future frames of a scan with a pre-trained model, and compare them with the true.

    neuromamba rollout output/PROJECT/RUN sub-01_task-rest_bold.nii.gz -o OUT --frames 20

The model reads the first frames of the scan, half a window unless --prompt says otherwise, and
generates those after them (docs/rollout.md). It must have been pre-trained to predict tokens
(neuromamba train --pretraining --use_autoregressive). OUT holds predicted.nii.gz and true.nii.gz in
the space of the scan's file, rollout.gif, rollout.csv (errors of each frame), rollout.json and
report.html; files of an earlier call are replaced.

Exit status: 0; 2 for an error in the command line or a scan that cannot be used; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import ROLLOUT_STATISTICS
from neuromamba.inference.flags import add_report_flag, as_typed, check_flags, model_parser


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = model_parser("rollout", __doc__, output=False)
    add = parser.add_argument
    add("-o", "--output", metavar="OUT", required=True, help="folder to write")
    add("--frames", type=int, required=True, metavar="N", help="frames to generate")
    add(
        "--prompt",
        type=int,
        metavar="P",
        help="true frames that the model reads first (default: half a window)",
    )
    add(
        "--statistics",
        choices=ROLLOUT_STATISTICS,
        default="prompt",
        help="what the scaling's mean and standard deviation are over: the prompt, or the whole "
        "run, frames to be predicted included (default: prompt)",
    )
    add_report_flag(parser, "rollout.gif and report.html")
    return parser


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; returns the exit status.

    Raises:
        UserInputError: an error in the command line, or a scan that cannot be used.
    """
    args = build_parser().parse_args(argv)
    check_flags(args)
    for flag, value in (("--frames", args.frames), ("--prompt", args.prompt)):
        if value is not None and value < 1:
            raise UserInputError(f"{flag}: got {value}, expected 1 or more.")
    if len(args.bold) != 1:
        raise UserInputError(f"BOLD: got {len(args.bold)} scans, expected one.")
    # Imported here: torch takes seconds, and flags have been checked by now.
    from neuromamba.fmamba.rollout import refuse_unless_generative
    from neuromamba.inference.loading import load
    from neuromamba.inference.rollout import doubts_of, objective_of
    from neuromamba.inference.rollout_files import refuse_others, write_rollout

    refuse_others(Path(args.output))
    model = load(args.model, args.device)
    refuse_unless_generative(model.backbone, objective_of(model))
    with model.prepare(args.bold[0], tr=args.tr, mask=args.mask, strict=args.strict) as scan:
        found = model.rollout(scan, args.frames, prompt=args.prompt, statistics=args.statistics)
        folder = Path(args.output)
        warnings, doubts = doubts_of(scan), scan.all_doubts
        # The scaling is the rollout's own.
        actions = [action for action in scan.actions if not action.startswith("intensities")]
        prepared = scan.record() | {"actions": actions}
        write_rollout(
            found, folder, {"model": str(model.path), "doubts": warnings, "prepared": prepared}
        )
        page = None
        if args.report:
            from neuromamba.reports.rollout_page import write_rollout_page

            page = write_rollout_page(
                found,
                folder,
                scan=scan.name,
                model=args.model,
                facts=[
                    ("done to the scan", "; ".join(actions)),
                    *((f"expected {name}", text) for name, text in model.contract.describe()),
                ],
                warnings=warnings,
                doubts=doubts,
                command=as_typed("rollout", argv),
            )
    for text in (*warnings, *doubts):
        print(f"doubt: {text}", file=sys.stderr)
    own = found.summary()
    skill = "not defined" if own["skill"] is None else f"{own['skill']:.3f}"
    print(
        f"{args.frames} frames generated after {len(found.prompt)}; {own['frames']} have a true "
        f"frame, skill {skill}; {folder}"
    )
    if page is not None:
        print(f"page: {page}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    return run_command(lambda: run(words), "nothing is kept; call again.")


if __name__ == "__main__":
    sys.exit(main())
