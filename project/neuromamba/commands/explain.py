"""Map which voxels or regions the predictions of a trained model rest on.

    neuromamba explain output/PROJECT/RUN sub-01_task-rest_bold.nii.gz -o OUT

OUT holds <scan>_attribution.nii.gz with the shape and affine of the scan, the same map of a model
with random weights (<scan>_attribution_random.nii.gz), which it must differ from to say anything
about the model, maps of the group where there are several subjects (group_*.nii.gz), pages to look
at (<scan>_view.html, report.html) and run.json. Of a NeuroSSM the values of the regions are in
<scan>_attribution.csv and group_*.csv, with maps where --atlas is given. docs/explain.md says
what the values mean. Called again, it continues where it stopped.

Exit status: 0 if all scans have an answer; 1 if some have none; 2 for an error in the
command line; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import EXPLAIN_METHODS, EXPLAIN_RESOLUTIONS, PATHWAY_ABLATIONS
from neuromamba.inference.flags import (
    add_atlas_flag,
    add_report_flag,
    as_typed,
    check_flags,
    model_parser,
    refuse_changed,
    result_options,
)

if TYPE_CHECKING:  # torch takes seconds to import
    from neuromamba.inference.explanation_files import ExplainedCall
    from neuromamba.inference.loaded import LoadedModel
    from neuromamba.inference.references import Reference
    from neuromamba.inference.region_model import RegionModel

# Flags of the options of explanations.
_SHARED = ("method", "target", "steps", "seed")
_OF_VOLUMES = ("edge", "windows", "resolution", "smooth")
_OF_REGIONS = ("ablation",)


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
        help="explain this many windows of a scan, evenly spaced (default: 0, all)",
    )
    add(
        "--resolution",
        choices=EXPLAIN_RESOLUTIONS,
        default="patch",
        help="mean over each patch, or every voxel by itself, which is noisier (default: patch)",
    )
    add(
        "--ablation",
        choices=PATHWAY_ABLATIONS,
        default="mean",
        help="of a model of regions: a pathway is replaced by its mean over the training scans, or "
        "by zero (default: mean)",
    )
    add_atlas_flag(parser)
    add(
        "--references",
        nargs="+",
        metavar="BOLD",
        help="scans of other people, of all classes, to compare each scan with: clearer maps of "
        "single scans; 8 of them are used (default: each scan's mean)",
    )
    add(
        "--smooth",
        type=float,
        default=0.0,
        metavar="MM",
        help="smooth maps by a Gaussian of this full width at half maximum (default: 0, not)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of random weights and sign flips")
    add(
        "--permutations",
        type=int,
        default=5000,
        metavar="N",
        help="sign flips of the test of group maps (default: 5000)",
    )
    add_report_flag(parser, "report.html and <scan>_view.html")
    return parser


class _Family(NamedTuple):
    """How scans of a family are explained.

    Attributes:
        options: of the maps, which have been checked.
        flags: that change a result.
        explain: prepared scan -> explanation.
        keep: (folder, scan, explanation) -> what the record says of its files.
        groups: (folder, records) -> maps of groups, and why there are none.
        write_page: of ``reports``.
    """

    options: Any
    flags: Sequence[str]
    explain: Callable[[Any], Any]
    keep: Callable[..., dict[str, Any]]
    groups: Callable[..., tuple[list[Any], str]]
    write_page: Callable[[ExplainedCall], Path]


def _volumes(model: LoadedModel, args: argparse.Namespace) -> _Family:
    """Refuse flags of the other family; the steps for volumes."""
    from neuromamba.inference.explain import ExplainOptions, explain_scan
    from neuromamba.inference.explanation_files import keep_explanation, write_groups
    from neuromamba.inference.predict import require_head

    require_head(model, "explain")
    refuse_changed(
        args, build_parser(), _OF_REGIONS, "of models of regions; this one takes volumes."
    )
    options = ExplainOptions(**{name: getattr(args, name) for name in (*_SHARED, *_OF_VOLUMES)})

    def write_page(call: ExplainedCall) -> Path:
        from neuromamba.reports.explanation_page import write_explanation_page

        return write_explanation_page(call)

    references = _references(model, args)
    return _Family(
        options,
        (*_SHARED, *_OF_VOLUMES, "permutations", "references"),
        lambda scan: explain_scan(model, scan, options, references),
        keep_explanation,
        partial(write_groups, native=model.contract.native),
        write_page,
    )


def _references(model: LoadedModel, args: argparse.Namespace) -> list[Reference]:
    """Windows of the scans of ``--references``.

    Raises:
        UserInputError: none there, or one that cannot be used.
    """
    if args.references is None:
        return []
    from neuromamba.inference.references import evenly, reference_of

    scans, _ = model.find(args.references)
    if not scans:
        raise UserInputError(f"--references: no scan in {', '.join(args.references[:3])}.")
    found = []
    for number in evenly(len(scans)):
        try:
            with model.prepare(scans[number], args.tr, args.mask) as prepared:
                found.append(reference_of(model, prepared))
        except UserInputError as error:
            raise UserInputError(f"--references: {error}") from None
    return found


def _regions(model: RegionModel, args: argparse.Namespace) -> _Family:
    """Refuse flags of the other family; the steps for series of regions."""
    from neuromamba.inference.region_explain import RegionExplainOptions
    from neuromamba.inference.region_explanation_files import (
        keep_region_explanation,
        write_region_groups,
    )

    refuse_changed(
        args,
        build_parser(),
        (*_OF_VOLUMES, "references"),
        "of models of volumes; this one takes regions.",
    )
    words = {name: getattr(args, name) for name in (*_SHARED, *_OF_REGIONS)}
    options = RegionExplainOptions(**words)
    model.check_explains(options)

    def write_page(call: ExplainedCall) -> Path:
        from neuromamba.reports.region_explanation_page import write_region_page

        return write_region_page(call)

    return _Family(
        options,
        (*_SHARED, *_OF_REGIONS, "permutations", "atlas"),
        lambda scan: model.explain(scan, **words),
        keep_region_explanation,
        partial(write_region_groups, regions=model.regions, atlas=model.atlas),
        write_page,
    )


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; returns the exit status.

    Raises:
        UserInputError: an error in the command line.
    """
    args = build_parser().parse_args(argv)
    check_flags(args)
    if args.permutations < 100:
        raise UserInputError(f"--permutations: got {args.permutations}, expected 100 or more.")
    # Imported here: torch takes seconds, and flags have been checked by now.
    from neuromamba.inference.batch import open_batch, run_batch
    from neuromamba.inference.explanation_files import ExplainedCall
    from neuromamba.inference.open_model import for_scans
    from neuromamba.inference.region_model import RegionModel
    from neuromamba.inference.score_map import target_index

    model = for_scans(args)
    family = _regions(model, args) if isinstance(model, RegionModel) else _volumes(model, args)
    if args.target:
        target_index(model.class_names, args.target)
    batch = open_batch(model, args, "explain", result_options(args, *family.flags))

    def maps(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"maps": {one["scan"]: one["result"] for one in records if one["result"]}}

    run_batch(
        batch,
        args,
        family.explain,
        partial(family.keep, batch.folder),
        lambda records: batch.folder.path,
        maps,
    )
    records = batch.in_order
    test = {"permutations": args.permutations, "seed": args.seed}
    groups, without = family.groups(batch.folder, records, wanted=args.target, **test)
    batch.folder.write_run(
        records,
        passed_over=batch.passed_over,
        **maps(records),
        groups=[group.record() for group in groups],
        no_groups=without,
    )
    if args.report:
        call = ExplainedCall(
            batch=batch,
            groups=groups,
            no_groups=without,
            options=family.options,
            model_name=args.model,
            command=as_typed("explain", argv),
        )
        print(f"page: {family.write_page(call)}")
    return batch.status


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run(words), "what is finished is kept; call again to continue.")


if __name__ == "__main__":
    sys.exit(main())
