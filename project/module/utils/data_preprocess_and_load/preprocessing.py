"""Convert a folder of 4D NIfTI runs into a store that training reads.

    python project/module/utils/data_preprocess_and_load/preprocessing.py \\
        --input DIR --output IMAGE_PATH --img_size 96 96 96

writes ``IMAGE_PATH/hdf5/<run>.h5`` and ``IMAGE_PATH/manifest.csv``. Each run is reoriented to LAS,
optionally resampled, masked, cropped or padded to the grid and stored as int16 with its statistics
(``hdf5_store.py``). A second call skips what is up to date. A bad file is reported, the others are
converted all the same.

Exit status: 0; 1 if some files failed; 2 for a wrong flag; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from tqdm import tqdm

from project.module.config import UserInputError, canonical_dataset_name
from project.module.utils.data_preprocess_and_load.conversion import (
    ConversionOptions,
    Outcome,
    available_cpus,
    convert_run,
)
from project.module.utils.data_preprocess_and_load.datasets import DATASETS
from project.module.utils.data_preprocess_and_load.hdf5_store import COMPRESSIONS, read_header
from project.module.utils.data_preprocess_and_load.manifest import manifest_row, write_manifest
from project.module.utils.data_preprocess_and_load.sources import Source, find_sources
from project.module.utils.data_preprocess_and_load.workers import Job, convert_runs


def convert_folder(
    input_dir: str | Path,
    image_path: str | Path,
    options: ConversionOptions | None = None,
    *,
    num_workers: int | None = None,
    report: Callable[[str], None] = print,
) -> list[Outcome]:
    """Convert every run below ``input_dir``; the files do not depend on ``num_workers``.

    Args:
        input_dir: searched recursively for ``*.nii`` and ``*.nii.gz``.
        image_path: folder of the store; made if absent.
        options: how to convert.
        num_workers: processes; None takes one per processor, 1 works in this process.
        report: receives the lines of the log and of the summary.

    Returns:
        One outcome per run, in the order of the paths.

    Raises:
        UserInputError: no input, or an output folder that cannot be written.
        KeyboardInterrupt: after the runs in progress were finished (workers) or discarded (one
            process), and the manifest was written.
    """
    options = options or ConversionOptions()
    sources, companions = find_sources(input_dir, exclude=Path(options.mask))
    if companions:
        report(f"{len(companions)} companion image(s) passed over: {_some(companions)}")
    if not sources:
        raise UserInputError(
            f"--input: only masks, references or anatomical images in '{input_dir}'; expected 4D "
            f"runs."
        )
    return convert_sources(sources, image_path, options, num_workers=num_workers, report=report)


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
    folder = Path(image_path) / "hdf5"
    if not options.dry_run:
        _make_folder(folder)
    workers = 1 if options.dry_run else min(num_workers or available_cpus(), len(sources))
    outcomes: list[Outcome] = []
    try:
        for outcome in progress(
            convert_runs(sources, folder, options, workers, job), len(sources), report
        ):
            outcomes.append(outcome)
    finally:
        outcomes.sort(key=lambda outcome: outcome.source.path)
        warnings = [] if options.dry_run else _update_manifest(Path(image_path), outcomes)
        for line in _summary(outcomes, warnings, len(sources)):
            report(line)
    return outcomes


def _some(names: Sequence[str], shown: int = 3) -> str:
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserInputError(
            f"--output: '{folder}' cannot be made ({error.strerror}). Choose a folder that can be "
            f"written."
        ) from None
    if not os.access(folder, os.W_OK):
        raise UserInputError(f"--output: '{folder}' is read-only. Choose another folder.")


def progress(
    outcomes: Iterator[Outcome], total: int, report: Callable[[str], None]
) -> Iterator[Outcome]:
    """A bar in a terminal; in a log one line per run. Problems are told at once in both."""
    terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="run", disable=not terminal) as bar:
        for done, outcome in enumerate(outcomes, start=1):
            bar.update()
            line = f"[{done}/{total}] {outcome.source.name}: {outcome.status}"
            if outcome.message:
                line += f": {outcome.message}"
            if outcome.header is not None:
                header = outcome.header
                line += (
                    f", {header.n_frames} frames, {header.n_voxels} voxels ({header.mask_source})"
                )
            line += "".join(f"; note: {note}" for note in outcome.notes)
            quiet = outcome.status in ("converted", "skipped", "ok") and not outcome.notes
            if not (quiet and terminal):
                bar.clear()
                report(line)
                bar.refresh()
            yield outcome


def _update_manifest(image_path: Path, outcomes: Sequence[Outcome]) -> list[str]:
    """Write the manifest from the headers of all files; returns warnings about the store."""
    known = {outcome.source.output: outcome.header for outcome in outcomes if outcome.header}
    rows, warnings = [], []
    for path in sorted((image_path / "hdf5").glob("*.h5")):
        try:
            header = known.get(path.name) or read_header(path)
        except UserInputError as error:
            warnings.append(str(error))
            continue
        rows.append(manifest_row(f"hdf5/{path.name}", header))
    if rows:
        write_manifest(image_path, rows)
    by_source: dict[str, list[str]] = {}
    for row in rows:
        if row.source_sha256:
            by_source.setdefault(row.source_sha256, []).append(row.file)
    warnings += [
        f"the same source under {len(files)} names: {', '.join(files)}; remove all but one"
        for files in by_source.values()
        if len(files) > 1
    ]
    grids = Counter(header.grid for header in known.values() if header)
    if len(grids) > 1:
        warnings.append(f"several grids in one store: {dict(grids)}")
    return warnings


def _summary(outcomes: Sequence[Outcome], warnings: Sequence[str], total: int) -> Iterator[str]:
    counts = Counter(outcome.status for outcome in outcomes)
    yield ""
    for status in ("planned", "converted", "skipped", "failed"):
        if counts[status] or status in ("converted", "failed"):
            yield f"{status:<12}{counts[status]:>8}"
    if len(outcomes) < total:
        yield f"{'not done':<12}{total - len(outcomes):>8}  (interrupted: call again to continue)"
    headers = [outcome.header for outcome in outcomes if outcome.header]
    if headers:
        voxels = [header.n_voxels for header in headers]
        share = statistics.median(header.brain_fraction for header in headers)
        yield (
            f"{'brain voxels':<12}{round(statistics.median(voxels)):>8}  median, from "
            f"{min(voxels)} to {max(voxels)}; {share:.1%} of the grid"
        )
        masks = Counter(header.mask_source.split(":")[0] for header in headers)
        yield f"{'masks':<12}{', '.join(f'{name} {n}' for name, n in sorted(masks.items())):>8}"
    for warning in warnings:
        yield f"warning: {warning}"
    for outcome in outcomes:
        yield from (f"warning: {outcome.source.name}: {note}" for note in outcome.notes)
    for outcome in outcomes:
        if outcome.status == "failed":
            yield f"failed: {outcome.message}"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    default = ConversionOptions()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", required=True, metavar="DIR", help="folder with 4D *.nii, *.nii.gz, recursive")
    add("--output", required=True, metavar="IMAGE_PATH", help="folder of the store")
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
    add("--compression", choices=COMPRESSIONS, default=default.compression)
    add("--num_workers", type=int, metavar="N", help="processes (default: one per processor)")
    add("--min_frames", type=int, default=default.min_frames, metavar="N", help="refuse shorter")
    add("--overwrite", action="store_true", help="convert again what is up to date")
    add("--dry_run", "--dry-run", action="store_true", help="read headers, write nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        crop_offset = args.crop_offset
        if crop_offset is None and args.dataset_name:
            crop_offset = DATASETS[canonical_dataset_name(args.dataset_name)].crop_offset
        options = ConversionOptions(
            img_size=tuple(args.img_size),
            mask=args.mask,
            tr=args.tr,
            drop_first=args.drop_first,
            resample=args.resample,
            crop_offset=None if crop_offset is None else tuple(crop_offset),
            dataset=args.dataset_name,
            compression=args.compression,
            min_frames=args.min_frames,
            overwrite=args.overwrite,
            dry_run=args.dry_run,
        )
        outcomes = convert_folder(args.input, args.output, options, num_workers=args.num_workers)
    except UserInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; call again to continue", file=sys.stderr)
        return 130
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
