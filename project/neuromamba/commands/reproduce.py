"""Rebuild the papers' tables: run what is missing, and write it beside the published numbers.

    neuromamba reproduce --table all --dataset_name Dummy
    neuromamba reproduce --table abide --data_dir ../shared/data/abide_roi
    neuromamba reproduce --study objectives --seeds 1 2 3
    neuromamba reproduce --table 1 2 --dataset_name HCP --image_path /path/to/hcp_store \\
        --checkpoints /path/to/released -- --accelerator gpu --devices 4

Each cell is a call of "neuromamba train" (one for each seed) in a folder of --output_dir; what has
finished is not repeated, and tables share their runs. What follows -- is given to every run.
Written are table_<N>.md, .tex, .csv and .json: the published number beside ours with n, seeds and
interval. With Dummy everything is small and synthetic, takes minutes on a CPU and needs no data.

Tables of real subjects are abide, painted (series of ABIDE painted into their atlas), sherlock and
stages: files of --data_dir (docs/results.md says where they come from) are imported, models are
trained and compared with baselines on the same splits, and table.md, .csv, .json and figure.png are
written to paper/<table>. Tables whose files are absent are named and left out.

--study objectives compares objectives of pre-training on synthetic data at equal compute: for each
seed and for an easy and a hard effect, ten pre-trainings and probes of their frozen features, about
half an hour of CPU a seed. Written are study_objectives.md, .csv and .json (docs/objectives.md).

Seeds can be run on several machines; --collect --add FILE... makes one table of their .json files.

--dry_run shows the jobs, and the cost of those of tables; --script writes an array job for Slurm or
PBS, each task of which does one job; --collect writes the tables of what exists.

Exit status: 0; 1 if a run failed; 2 if a flag or a file is wrong, or if no table can be made
because its files are absent; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuromamba.common.cli import ExampleFormatter, run_command
from neuromamba.common.errors import UserInputError
from neuromamba.common.stages import StageFailure
from neuromamba.reports.objectives import SEEDS, STUDIES, checked_study, job_lines, run_study
from neuromamba.reports.real_subjects import tables
from neuromamba.reports.real_subjects.real_table import REAL_TABLES
from neuromamba.reports.reproduction import TABLES, ordered
from neuromamba.reports.reproduction_run import SCHEDULERS, checked, reproduce, typed_command

TABLE_SEEDS = (1, 2, 3)
GPU = "H100"


def _numbers(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="neuromamba reproduce",
        description=__doc__,
        formatter_class=ExampleFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--table",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(TABLES)}, or all; of real subjects: {', '.join(REAL_TABLES)}",
    )
    what.add_argument("--study", metavar="NAME", help=f"{', '.join(STUDIES)}; instead of tables")
    add("--dataset_name", metavar="NAME", help="HCP, or Dummy (default)")
    add("--image_path", metavar="DIR", help="its store; not needed for Dummy")
    add(
        "--data_dir",
        metavar="DIR",
        help="of a table of real subjects: its files; default: ../shared/data/<its folder>",
    )
    add(
        "--checkpoints",
        metavar="DIR",
        help="released files (1M_E128.pt, 3M_E192.pt, 5M_E256.pt); without it backbones are "
        "pre-trained on the same data first",
    )
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="S",
        help=f"default: {_numbers(TABLE_SEEDS)}; of a study: {_numbers(SEEDS)}; of a table of real "
        "subjects: its own",
    )
    add(
        "--output_dir",
        metavar="DIR",
        help="of the runs; default: output/reproduce_<dataset>; of a study: output/study_<name>",
    )
    add("--paper_dir", metavar="DIR", help="of the tables; default: paper/<dataset>")
    add("--dry_run", action="store_true", help="show the jobs; of tables, their cost too")
    add("--collect", action="store_true", help="write the tables of what exists, run nothing")
    add(
        "--add",
        nargs="+",
        metavar="FILE",
        help="of a study: its .json from other machines, whose seeds are added to the tables",
    )
    add("--script", metavar="NAME", help=f"write an array job: {', '.join(SCHEDULERS)}")
    add("--job", type=int, metavar="N", help="do the N-th job only, from 0 (for array jobs)")
    add("--gpu", metavar="NAME", help=f"to count hours of (default: {GPU})")
    return parser


def run(argv: Sequence[str]) -> None:
    """Do what the flags say.

    Raises:
        UserInputError: a mistake that the user can correct.
        StageFailure: a run failed.
    """
    words = list(argv)
    own: list[str] = words
    extra: tuple[str, ...] = ()
    if "--" in words:
        at = words.index("--")
        own, extra = words[:at], tuple(words[at + 1 :])
    args = build_parser().parse_args(own)
    if args.table is not None and set(args.table) & set(REAL_TABLES):
        _real(args, own, extra)
        return
    if args.data_dir is not None:
        raise UserInputError(
            f"--data_dir: belongs to the tables {', '.join(REAL_TABLES)}. The papers' tables take "
            f"--image_path."
        )
    args.dataset_name = args.dataset_name or "Dummy"
    if args.study is not None:
        _study(args, own, extra)
        return
    args.seeds = args.seeds or list(TABLE_SEEDS)
    asked = checked(args, extra)
    if args.dry_run:
        from neuromamba.planning.job_costs import job_costs  # imports torch

        print(
            job_costs([(job.name, job.flags) for job in ordered(asked.study.jobs)], args.gpu or GPU)
        )
        return
    reproduce(asked, args, own, extra)


def _real(args: argparse.Namespace, own: Sequence[str], extra: tuple[str, ...]) -> None:
    """Make tables of real subjects."""
    asked = tables.checked(args, extra)
    if args.dry_run:
        print("\n".join(tables.lines_of(asked)))
        return
    tables.make(asked, typed_command(own, extra), collect=args.collect)


def _study(args: argparse.Namespace, own: Sequence[str], extra: tuple[str, ...]) -> None:
    """Do the jobs of a study and write its tables."""
    study = checked_study(args, extra)
    if args.dry_run:
        print("\n".join(job_lines(study)))
        return
    from neuromamba.reports.objectives_table import with_added, write_study  # imports SciPy

    with_added((), study.added)  # a file that cannot be read is not found out after hours
    if args.collect and not study.out.is_dir() and not study.added:
        raise UserInputError(
            f"--output_dir: '{study.out}' does not exist; there is nothing to collect."
        )
    if not args.collect:
        run_study(study)
    written = write_study(study, typed_command(own, extra))
    print(written[0].read_text(encoding="utf-8"), flush=True)
    print(f"study objectives: {written[0]}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        return run_command(lambda: run(words), "call again to continue; finished runs are kept.")
    except StageFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
