"""What the converter prints: the plan of a dry run, progress, and the summary."""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm import tqdm

from neuromamba.common.files import free_bytes
from neuromamba.common.text import clause, some_of
from neuromamba.data.ingest.convert import Outcome
from neuromamba.data.ingest.layouts import LAYOUTS, Found
from neuromamba.data.ingest.options import ConversionOptions, options_for
from neuromamba.data.ingest.preflight import RunPlan
from neuromamba.data.ingest.sources import Source, stem_of
from neuromamba.data.store.header import RunHeader

USUAL_WINDOW = 20  # frames, the default of --sequence_length
_HEADINGS = ("run", "shape", "TR", "space", "mask", "voxels", "verdict")


class Handled(Protocol):
    """What became of a run: of a conversion, or of a check."""

    @property
    def name(self) -> str: ...

    status: str
    message: str
    notes: list[str]
    header: RunHeader | None


HandledT = TypeVar("HandledT", bound=Handled)


def found_lines(found: Found, in_full: bool) -> Iterator[str]:
    """What the folder holds; ``in_full`` names every image that is passed over."""
    layout = f"layout {found.layout}: {LAYOUTS[found.layout].description}"
    yield f"{layout}; {len(found.sources)} run(s)"
    if found.passed_over:
        names = [image.name for image in found.passed_over]
        more = "" if in_full else ": " + some_of(names, 3, "--dry_run lists them")
        yield f"{len(names)} other image(s) passed over{more}"
    if in_full:
        yield from (f"  {image.name}: {image.why}" for image in found.passed_over)


def plan_lines(
    plans: Sequence[RunPlan],
    sources: Sequence[Source],
    options: ConversionOptions,
    image_path: Path,
    stored: dict[str, RunHeader],
) -> Iterator[str]:
    """The table of a dry run, the refused runs, totals and room on the disk.

    Args:
        plans: the runs that will be converted.
        sources: all runs; the refused ones have an ``error``.
        options: of the conversion.
        image_path: folder of the store, which may be absent.
        stored: headers of the store's files, by name.
    """
    rows = [_HEADINGS]
    to_convert = []
    for plan in plans:
        header = stored.get(plan.source.output)
        verdict = "convert"
        if header is not None and not options.overwrite:
            same = header.options == plan.digest(options_for(plan.source, options))
            verdict = "keep, if the source is the same" if same else "convert again: other options"
        if not verdict.startswith("keep"):
            to_convert.append(plan)
        size = " x ".join(map(str, (*plan.run.shape, plan.run.n_frames)))
        parts = stem_of(plan.mask).split("_") if plan.mask else [options.mask]
        rule = "_".join(parts[-2:])  # of a mask's name what is not the run's
        if rule == "auto":
            rule = "nonzero, else computed"
        tr = f"{plan.tr:g} s ({plan.tr_source})" if math.isfinite(plan.tr) else "unknown"
        space = f"{plan.space} ({plan.space_basis})"
        name = plan.source.output.removesuffix(".h5")
        rows.append((name, size, tr, space, rule, plan.action, verdict))
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join(padded).rstrip()
    yield from (f"note: {plan.source.name}: {note}" for plan in plans for note in plan.notes)
    refused = [source for source in sources if source.error]
    yield from (f"refused: {source.error}" for source in refused)
    yield ""
    yield f"{'to convert':<12}{len(to_convert):>8}"
    if len(to_convert) < len(plans):
        yield f"{'there':<12}{len(plans) - len(to_convert):>8}"
    yield f"{'refused':<12}{len(refused):>8}"
    yield from window_warning([plan.n_frames for plan in plans])
    needed = sum(plan.bytes_expected(options) for plan in to_convert)
    yield f"{'disk':<12}{'about ' + _gib(needed)} needed, {_gib(free_bytes(image_path))} free"


def room_warning(
    plans: Sequence[RunPlan], options: ConversionOptions, image_path: Path
) -> Iterator[str]:
    """A warning if the disk is probably too small; compression is not counted."""
    needed = sum(plan.bytes_expected(options) for plan in plans)
    free = free_bytes(image_path)
    if needed > free and options.compression == "none":
        yield f"warning: about {_gib(needed)} are needed, but only {_gib(free)} are free"


def window_warning(lengths: Sequence[int]) -> Iterator[str]:
    """A warning about runs that are too short for a window of the usual length."""
    short = sum(length < USUAL_WINDOW for length in lengths)
    if short:
        yield (
            f"warning: {short} run(s) are shorter than {USUAL_WINDOW} frames, the usual window; "
            f"--min_frames {USUAL_WINDOW} refuses them"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def progress(
    outcomes: Iterator[HandledT], total: int, report: Callable[[str], None]
) -> Iterator[HandledT]:
    """A bar in a terminal; in a log one line per run. Problems are told at once in both."""
    terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="run", disable=not terminal) as bar:
        for done, outcome in enumerate(outcomes, start=1):
            bar.update()
            line = f"[{done}/{total}] {outcome.name}: {outcome.status}"
            if outcome.message:
                line += f": {outcome.message}"
            if outcome.header is not None:
                header = outcome.header
                line += (
                    f", {header.n_frames} frames, {header.n_voxels} voxels ({header.mask_source})"
                )
            line += "".join(f"; note: {clause(note)}" for note in outcome.notes)
            quiet = outcome.status in ("converted", "skipped", "ok") and not outcome.notes
            if not (quiet and terminal):
                bar.clear()
                report(line)
                bar.refresh()
            yield outcome


def summary_lines(
    outcomes: Sequence[Outcome], warnings: Sequence[str], total: int
) -> Iterator[str]:
    """Counts, masks, warnings, and the failed runs with their reasons."""
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
        yield from window_warning([header.n_frames for header in headers])
    for warning in warnings:
        yield f"warning: {warning}"
    for outcome in outcomes:
        yield from (f"warning: {outcome.source.name}: {note}" for note in outcome.notes)
    for outcome in outcomes:
        if outcome.status == "failed":
            yield f"failed: {outcome.message}"
