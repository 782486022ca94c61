"""Convert a folder of 4D NIfTI runs into a store that training reads.

    python project/module/utils/data_preprocess_and_load/preprocessing.py \\
        --input DIR --output IMAGE_PATH --img_size 96 96 96 [--dry_run]

takes the folders of fMRIPrep, HCP, UK Biobank and ABCD as they are, and any other folder of 4D
runs in MNI space. It writes ``IMAGE_PATH/hdf5/<run>.h5``, ``manifest.csv`` and, if runs failed,
``quarantine.tsv``. Each run is reoriented to LAS, optionally resampled, masked, cropped or padded
to the grid and stored as int16 with its statistics (``hdf5_store.py``). A second call skips what is
up to date. A bad file is reported, the others are converted all the same.

Exit status: 0; 1 if some files failed or, in a dry run, were refused; 2 for a wrong flag; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from project.module.command_line import ended
from project.module.config import UserInputError, canonical_dataset_name
from project.module.utils.data_preprocess_and_load.conversion import (
    Outcome,
    available_cpus,
    convert_run,
)
from project.module.utils.data_preprocess_and_load.conversion_options import ConversionOptions
from project.module.utils.data_preprocess_and_load.datasets import DATASETS
from project.module.utils.data_preprocess_and_load.hdf5_store import COMPRESSIONS
from project.module.utils.data_preprocess_and_load.header_cache import read_headers
from project.module.utils.data_preprocess_and_load.ingest_report import (
    found_lines,
    plan_lines,
    progress,
    room_warning,
    summary_lines,
)
from project.module.utils.data_preprocess_and_load.layouts import AUTO, LAYOUTS, find_runs
from project.module.utils.data_preprocess_and_load.manifest import rebuild_manifest
from project.module.utils.data_preprocess_and_load.metadata import adopt_tables
from project.module.utils.data_preprocess_and_load.quarantine import QUARANTINE, update_quarantine
from project.module.utils.data_preprocess_and_load.run_plan import plan_folder
from project.module.utils.data_preprocess_and_load.sources import Source
from project.module.utils.data_preprocess_and_load.whole_files import make_folder, remove_abandoned
from project.module.utils.data_preprocess_and_load.workers import Job, convert_runs

_MANY = 200  # runs whose headers take long enough to say so


@dataclass(frozen=True)
class Shard:
    """Every ``number``-th run, counted from ``index`` (0 to ``number`` - 1)."""

    index: int = 0
    number: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.number:
            raise UserInputError(
                f"--shard: got {self.index} {self.number}, expected I N with I from 0 to N - 1."
            )


def convert_folder(
    input_dir: str | Path,
    image_path: str | Path,
    options: ConversionOptions | None = None,
    *,
    layout: str = AUTO,
    shard: Shard | None = None,
    tables: Sequence[str] = (),
    num_workers: int | None = None,
    report: Callable[[str], None] = print,
) -> list[Outcome]:
    """Convert the runs below ``input_dir``; the files do not depend on ``num_workers``.

    Args:
        input_dir: searched recursively for ``*.nii`` and ``*.nii.gz``.
        image_path: folder of the store; made if absent.
        options: how to convert. In a dry run the plan is reported and nothing is written.
        layout: key of ``LAYOUTS``, or "auto".
        shard: convert only these of the runs; the others are checked all the same.
        tables: names of tables of subjects that are copied to ``metadata/`` if they are there.
        num_workers: processes; None takes one per processor, 1 works in this process.
        report: receives the lines of the log and of the summary.

    Returns:
        One outcome per run of the shard, in the order of the paths; in a dry run those that are
        refused.

    Raises:
        UserInputError: no input; an output folder that cannot be written; or, after all runs
            were handled, a manifest or quarantine list that cannot be.
        KeyboardInterrupt: after the runs in progress were finished (workers) or discarded (one
            process), and the manifest was written.
    """
    options, shard, image_path = options or ConversionOptions(), shard or Shard(), Path(image_path)
    if num_workers is not None and num_workers < 1:
        raise UserInputError(f"--num_workers: got {num_workers}, expected 1 or more.")
    found = find_runs(input_dir, layout, options.space, exclude=Path(options.mask))
    for line in found_lines(found, in_full=options.dry_run):
        report(line)
    folder = image_path / "hdf5"
    if not options.dry_run:
        make_folder(folder, "--output")
    if len(found.sources) > _MANY:
        report(f"checking the headers of {len(found.sources)} runs")
    stored, _ = read_headers(image_path, sorted(folder.glob("*.h5")), write=False)
    plans, sources = plan_folder(found.sources, options, stored)
    sources = sources[shard.index :: shard.number]
    names = {source.name for source in sources}
    plans = [plan for plan in plans if plan.source.name in names]
    if options.dry_run:
        for line in plan_lines(plans, sources, options, image_path, stored):
            report(line)
        return [Outcome(s, "failed", s.error) for s in sources if s.error]
    to_write = [plan for plan in plans if plan.source.output not in stored]
    for line in room_warning(to_write, options, image_path):
        report(line)
    outcomes = convert_sources(sources, image_path, options, num_workers=num_workers, report=report)
    for line in adopt_tables(Path(input_dir), image_path, tables):
        report(line)
    return outcomes


def convert_sources(
    sources: Sequence[Source],
    image_path: str | Path,
    options: Any,
    *,
    job: Job = convert_run,
    num_workers: int | None = None,
    report: Callable[[str], None] = print,
) -> list[Outcome]:
    """What ``convert_folder`` does with the runs it has found.

    Args:
        options: as ``job`` takes them; ``options.dry_run`` keeps the store untouched.
        job: converts one source; see ``workers.Job``.
        others, returns and raises: as for ``convert_folder``.
    """
    if num_workers is not None and num_workers < 1:
        raise UserInputError(f"--num_workers: got {num_workers}, expected 1 or more.")
    image_path = Path(image_path)
    folder = image_path / "hdf5"
    if not options.dry_run:
        make_folder(folder, "--output")
        remove_abandoned(folder)
        remove_abandoned(image_path)
    workers = 1 if options.dry_run else max(1, min(num_workers or available_cpus(), len(sources)))
    outcomes: list[Outcome] = []
    errors: list[str] = []
    try:
        converted = convert_runs(sources, folder, options, workers, job)
        for outcome in progress(converted, len(sources), report):
            outcomes.append(outcome)
    finally:
        outcomes.sort(key=lambda outcome: outcome.source.path)
        warnings: list[str] = []
        if not options.dry_run:
            warnings, errors = _records(image_path, outcomes)
        for line in summary_lines(outcomes, warnings + errors, len(sources)):
            report(line)
    if errors:
        raise UserInputError(" ".join(errors))
    return outcomes


def _records(image_path: Path, outcomes: Sequence[Outcome]) -> tuple[list[str], list[str]]:
    """Write manifest and quarantine list; neither keeps the other from coming about."""
    warnings: list[str] = []
    errors: list[str] = []
    failed = {o.source.path: o.message for o in outcomes if o.status == "failed"}
    try:
        warnings += rebuild_manifest(image_path)
    except UserInputError as error:
        errors.append(str(error))
    try:
        listed = update_quarantine(image_path, [o.source.path for o in outcomes], failed)
        warnings += [f"{listed} file(s) in {image_path / QUARANTINE}"] if listed else []
    except UserInputError as error:
        errors.append(str(error))
    return warnings, errors


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    default = ConversionOptions()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", required=True, metavar="DIR", help="folder with 4D *.nii, *.nii.gz, recursive")
    add("--output", required=True, metavar="IMAGE_PATH", help="folder of the store")
    add("--layout", choices=(AUTO, *LAYOUTS), default=AUTO, help="how the folder is arranged")
    add(
        "--space",
        default=default.space,
        metavar="NAME",
        help="take the images of this space, such as MNI152NLin6Asym (default: any MNI space); "
        "native: images outside MNI space, on purpose",
    )
    add("--img_size", nargs=3, type=int, default=default.img_size, metavar=("X", "Y", "Z"))
    add("--mask", default=default.mask, metavar="auto|nonzero|computed|PATH", help="brain mask")
    add("--tr", type=float, metavar="SECONDS", help="TR of all runs, against header and sidecar")
    add("--drop_first", type=int, default=0, metavar="N", help="leave out the first N frames")
    add("--resample", type=float, metavar="MM", help="resample to cubic voxels of this size")
    add(
        "--crop_offset",
        nargs=3,
        type=int,
        metavar=("X", "Y", "Z"),
        help="target index = LAS source index + offset, negative crops (default: the data set's, "
        "else centred)",
    )
    add("--dataset_name", default="", metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    add("--voxel_norm", action="store_true", help="store mean and deviation of every voxel, too")
    add("--compression", choices=COMPRESSIONS, default=default.compression)
    add("--num_workers", type=int, metavar="N", help="processes (default: one per processor)")
    add("--min_frames", type=int, default=default.min_frames, metavar="N", help="refuse shorter")
    add(
        "--shard",
        nargs=2,
        type=int,
        metavar=("I", "N"),
        help="only every N-th run, from the I-th on (0 to N - 1): for array jobs",
    )
    add("--overwrite", action="store_true", help="convert again what is up to date")
    add("--dry_run", "--dry-run", action="store_true", help="read headers, write nothing")
    return parser


def main(argv: Sequence[str] | None = None, **defaults: Any) -> int:
    """Run the command line; returns the exit status. ``defaults`` replace those of flags."""
    parser = build_parser()
    parser.set_defaults(**defaults)
    args = parser.parse_args(argv)

    def convert() -> int:
        cohort = DATASETS[canonical_dataset_name(args.dataset_name or "Own")]
        crop_offset = args.crop_offset or cohort.crop_offset
        options = ConversionOptions(
            img_size=tuple(args.img_size),
            mask=args.mask,
            tr=args.tr,
            drop_first=args.drop_first,
            resample=args.resample,
            crop_offset=None if crop_offset is None else tuple(crop_offset),
            dataset=args.dataset_name,
            compression=args.compression,
            space=args.space,
            voxel_norm=args.voxel_norm,
            min_frames=args.min_frames,
            overwrite=args.overwrite,
            dry_run=args.dry_run,
        )
        outcomes = convert_folder(
            args.input,
            args.output,
            options,
            layout=args.layout,
            shard=Shard(*args.shard) if args.shard else None,
            tables=cohort.tables,
            num_workers=args.num_workers,
        )
        return found_failures(outcomes)

    return ended(convert, "call again to continue.")


def found_failures(outcomes: Sequence[Outcome]) -> int:
    """Exit status of a conversion that has ended: 1 if runs failed."""
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
