"""Pre-train and fine-tune FMamba on synthetic fMRI, beside controls, and write a report.

    neuromamba demo --quick

All steps are commands of neuromamba, which are printed first: synthetic NIfTI, a store,
pre-training without labels, fine-tuning, controls, probes of the frozen features, and fine-tuning
and training from scratch on few labelled subjects. Results are OUTPUT_DIR/report.html, metrics.json
(kept_tokens is a share, seconds/* are run times) and figures/; the hyper-parameters are in
demo.yaml there.
Called again, it skips what is finished; a step whose settings have changed is done again, with all
steps that depend on it.

Exit status: 0; 1 if a stage failed; 2 for a wrong flag; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.common.stages import StageFailure
from neuromamba.reports.demo_pipeline import EFFECT, QUICK_SUBJECTS, run_demo


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba demo",
        description=__doc__,
        formatter_class=ExampleFormatter,
    )
    add = parser.add_argument
    add("--output_dir", default="output/demo", metavar="DIR", help="of the data, runs and report")
    add("--subjects", type=int, help=f"default: 160, {QUICK_SUBJECTS} with --quick")
    add("--effect_size", type=float, default=EFFECT, help="of the planted effect; 0 plants none")
    add("--shuffle_labels", type=int, metavar="SEED", help="control: permute the labels")
    add("--seed", type=int, default=0, help="of the data and of the training")
    add(
        "--quick",
        action="store_true",
        help="a few subjects, one epoch, about a minute: shows that everything works",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = build_parser().parse_args(argv)
    if args.subjects is None:
        args.subjects = QUICK_SUBJECTS if args.quick else 160
    try:
        return run_command(lambda: run_demo(args), "call again to continue.")
    except StageFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
