"""Map which voxels the predictions of a trained model rest on.

    neuromamba explain output/PROJECT/RUN sub-01_task-rest_bold.nii.gz -o OUT

OUT holds <scan>_attribution.nii.gz with the shape and affine of the scan, the same map of a model
with random weights (<scan>_attribution_random.nii.gz), which it must differ from to say anything
about the model, maps of the group where there are several subjects (group_*.nii.gz), pages to look
at (<scan>_view.html, report.html) and run.json. docs/use_a_model.md says what the values mean.
Called again, it continues where it stopped.

Exit status: 0 if all scans have an answer; 1 if some have none; 2 for a wrong call; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import EXPLAIN_METHODS, EXPLAIN_RESOLUTIONS
from neuromamba.inference.flags import check_flags, model_parser, result_options

_RESULT = ("method", "target", "steps", "edge", "windows", "resolution", "seed", "permutations")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = model_parser("explain", __doc__)
    add = parser.add_argument
    add(
        "--method",
        choices=EXPLAIN_METHODS,
        default="ig",
        help="ig: integrated gradients; gradxinput: gradient times input, one step and less exact; "
        "occlusion: what changes without a patch (default: ig)",
    )
    add(
        "--target",
        default="",
        metavar="CLASS",
        help="class to explain (default: the one that is predicted, of each scan)",
    )
    add(
        "--steps",
        type=int,
        default=32,
        metavar="N",
        help="points of ig between baseline and scan; more lower the completeness error "
        "(default: 32)",
    )
    add(
        "--edge",
        type=int,
        default=1,
        metavar="N",
        help="edge of what occlusion removes at a time, in patches: 2 takes an eighth of the time "
        "and gives a coarser map (default: 1)",
    )
    add(
        "--windows",
        type=int,
        default=0,
        metavar="N",
        help="explain so many windows of a scan, evenly spaced (default: 0, all)",
    )
    add(
        "--resolution",
        choices=EXPLAIN_RESOLUTIONS,
        default="patch",
        help="mean over each patch, or every voxel by itself, which is noisier (default: patch)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of random weights and sign flips")
    add(
        "--permutations",
        type=int,
        default=5000,
        metavar="N",
        help="sign flips of the test of group maps (default: 5000)",
    )
    add(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write report.html and <scan>_view.html (default: yes)",
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; returns the exit status.

    Raises:
        UserInputError: a wrong call.
    """
    args = build_parser().parse_args(argv)
    check_flags(args)
    if args.permutations < 100:
        raise UserInputError(f"--permutations: got {args.permutations}, expected 100 or more.")
    # Imported here: torch takes seconds, and flags have been checked by now.
    from neuromamba.inference.batch import open_batch, process, summary
    from neuromamba.inference.explain import ExplainOptions, explain_scan, target_index
    from neuromamba.inference.explanation_files import keep_explanation, write_groups
    from neuromamba.inference.loading import load
    from neuromamba.inference.predict import require_head

    names = [name for name in _RESULT if name != "permutations"]
    options = ExplainOptions(**{name: getattr(args, name) for name in names})
    model = load(args.model, args.device)
    require_head(model, "explain")
    if args.target:
        target_index(model, args.target)
    batch = open_batch(model, args, "explain", result_options(args, *_RESULT))
    try:
        process(
            batch,
            args,
            lambda scan: explain_scan(model, scan, options),
            lambda scan, found: keep_explanation(batch.folder, scan, found),
        )
    finally:  # after Ctrl-C too
        records = batch.in_order
        maps = {one["scan"]: one["result"] for one in records if one["result"]}
        batch.folder.write_run(records, passed_over=batch.passed_over, maps=maps)
    groups, without = write_groups(
        batch.folder,
        records,
        wanted=args.target,
        native=model.contract.native,
        permutations=args.permutations,
        seed=args.seed,
    )
    batch.folder.write_run(
        records,
        passed_over=batch.passed_over,
        maps=maps,
        groups=[group.record() for group in groups],
        no_groups=without,
    )
    print(f"{summary(batch)}; {batch.folder.path}")
    if args.report:
        from neuromamba.reports.explanation_page import write_explanation_page

        command = " ".join(["neuromamba explain", *argv])
        page = write_explanation_page(batch, groups, without, options, args.model, command)
        print(f"page: {page}")
    return batch.status


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run(words), "what is finished is kept; call again to continue.")


if __name__ == "__main__":
    sys.exit(main())
