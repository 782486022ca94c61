"""Turn scans into features with a trained model or a pre-trained backbone.

    neuromamba embed output/PROJECT/RUN derivatives/fmriprep -o OUT --pool window

Each scan is brought to what the model was trained on (docs/use_a_model.md). OUT holds
embeddings.parquet, with scan, subject, session, run, window, region, statistic, layer and the
features f0, f1 ... in each row, run.json and, unless --pool token, report.html. Called again, it
continues where it stopped.

Exit status: 0 if all scans have an answer; 1 if some have none; 2 for an error in the
command line; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.config.names import EMBED_POOLS, EMBED_STATISTICS
from neuromamba.inference.flags import (
    add_report_flag,
    as_typed,
    check_flags,
    model_parser,
    refuse_changed,
    result_options,
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = model_parser("embed", __doc__)
    add = parser.add_argument
    add(
        "--layer",
        type=int,
        default=-1,
        metavar="N",
        help="0 embedding, 1 ... blocks, -1 the features after the final norm, -2 ... blocks from "
        "the last but one back (default: -1)",
    )
    add(
        "--pool",
        choices=EMBED_POOLS,
        default="subject",
        help="what a row stands for (default: subject: one scan)",
    )
    add(
        "--atlas",
        metavar="A",
        help="with --pool region: image of labels in MNI space, or Schaefer400, AAL3v2, AAL116; "
        "default: a coarse grid of 27 cells; of a model of regions: the atlas of NIfTI scans",
    )
    add(
        "--statistics",
        nargs="+",
        choices=EMBED_STATISTICS,
        default=["mean", "sd"],
        help="over the tokens of a place, in time (default: mean sd)",
    )
    add(
        "--labels",
        metavar="FILE",
        help="CSV or TSV with a column of subjects and the column of --label_column: colours the "
        "map of the report and scores probes",
    )
    add("--label_column", metavar="NAME", help="column of --labels")
    add_report_flag(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    check_flags(args)
    if (args.labels is None) != (args.label_column is None):
        raise UserInputError("--labels and --label_column belong together; give both or neither.")
    if args.labels is not None and not Path(args.labels).is_file():
        raise UserInputError(f"--labels: there is no file '{args.labels}'.")
    if args.labels is None:
        return
    if args.pool == "token" or not args.report:
        other = "--pool token, which has no report" if args.pool == "token" else "--no-report"
        raise UserInputError(f"--labels: not used with {other}.")
    from neuromamba.data.cohorts.tables import read_table

    read_table(Path(args.labels)).column(args.label_column, "--label_column")


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; returns the exit status.

    Raises:
        UserInputError: an error in the command line.
    """
    args = build_parser().parse_args(argv)
    _check(args)
    # Imported here: torch takes seconds, and flags have been checked by now.
    from neuromamba.data.regions.atlases import Atlas, chosen_atlas
    from neuromamba.inference.batch import open_batch, run_batch
    from neuromamba.inference.embed import Embedding, embed_scan, layer_name
    from neuromamba.inference.embedding_files import keep_embedding, write_embeddings
    from neuromamba.inference.loaded import LoadedModel
    from neuromamba.inference.open_model import for_scans
    from neuromamba.inference.prepared import PreparedScan
    from neuromamba.inference.region_model import RegionModel
    from neuromamba.inference.regions import refuse_atlas_in_native_space
    from neuromamba.inference.sources import ScanFile
    from neuromamba.inference.subject_labels import SubjectLabels, read_subject_labels

    model = for_scans(args)
    atlas: Atlas | None = None
    if isinstance(model, RegionModel):
        refuse_changed(
            args,
            build_parser(),
            ("layer", "pool", "statistics"),
            "of models of volumes; of a model of regions the mean over time of every pathway is "
            "written.",
        )
    else:
        if args.atlas is not None and args.pool != "region":
            raise UserInputError("--atlas: only used with --pool region.")
        layer_name(args.layer, model.contract.model.token_blocks)
        if args.atlas is not None:  # one that cannot be had is no fault of the scans
            refuse_atlas_in_native_space(model.contract.native, "the model")
            atlas = chosen_atlas(args.atlas)
    statistics = tuple(dict.fromkeys(args.statistics))
    options = result_options(args, "layer", "pool", "atlas") | {"statistics": list(statistics)}

    def of_volumes(scan: PreparedScan) -> Embedding:
        assert isinstance(model, LoadedModel)
        return embed_scan(
            model,
            scan,
            layer=args.layer,
            pool=args.pool,
            atlas=atlas,
            statistics=statistics,
        )

    labels: SubjectLabels | None = None

    def read_labels(scans: Sequence[ScanFile]) -> None:
        nonlocal labels
        if args.labels is not None:
            subjects = sorted({scan.subject for scan in scans})
            labels = read_subject_labels(Path(args.labels), args.label_column, subjects)

    batch = open_batch(model, args, "embed", options, check=read_labels)
    run_batch(
        batch,
        args,
        model.embed if isinstance(model, RegionModel) else of_volumes,
        lambda scan, embedding: keep_embedding(batch.folder, scan, embedding),
        lambda records: write_embeddings(batch.folder, records),
    )
    if args.report and args.pool != "token":
        from neuromamba.reports.embedding_page import write_embedding_page

        command = as_typed("embed", argv)
        page = write_embedding_page(batch, args.model, command, labels)
        print(f"page: {page}")
    return batch.status


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run(words), "what is finished is kept; call again to continue.")


if __name__ == "__main__":
    sys.exit(main())
