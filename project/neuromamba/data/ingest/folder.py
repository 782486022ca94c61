"""Converts a folder of runs into a store: find, plan, convert, list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import make_folder, remove_abandoned
from neuromamba.common.errors import UserInputError
from neuromamba.common.files import without_leftovers
from neuromamba.common.workers import available_cpus
from neuromamba.data.cohorts.tables import adopt_tables
from neuromamba.data.ingest.convert import Outcome, convert_run
from neuromamba.data.ingest.jobs import Job, convert_runs
from neuromamba.data.ingest.layouts import AUTO, find_runs
from neuromamba.data.ingest.one_grid import on_one_grid
from neuromamba.data.ingest.options import ConversionOptions
from neuromamba.data.ingest.preflight import RunPlan, plan_folder
from neuromamba.data.ingest.quarantine import QUARANTINE, update_quarantine
from neuromamba.data.ingest.report import (
    found_lines,
    plan_lines,
    progress,
    room_warning,
    summary_lines,
)
from neuromamba.data.ingest.sources import Choice, Source
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.header_cache import read_headers
from neuromamba.data.store.manifest import rebuild_manifest

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
        shard: convert only these of the runs; the others are checked nevertheless.
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
    choice = Choice(options.space, options.desc)
    found = find_runs(input_dir, layout, choice, exclude=Path(options.mask))
    for line in found_lines(found, in_full=options.dry_run):
        report(line)
    folder = image_path / "hdf5"
    if not options.dry_run:
        make_folder(folder, "--output")
    if len(found.sources) > _MANY:
        report(f"checking the headers of {len(found.sources)} runs")
    stored, _ = read_headers(image_path, without_leftovers(folder.glob("*.h5")), write=False)
    plans, sources = plan_folder(found.sources, options, stored)
    plans, sources = _placed_alike(plans, sources, options, stored)
    sources = sources[shard.index :: shard.number]
    names = {source.name for source in sources}
    plans = [plan for plan in plans if plan.source.name in names]
    if options.dry_run:
        for line in plan_lines(plans, sources, options, image_path, stored):
            report(line)
        return [Outcome(source=s, status="failed", message=s.error) for s in sources if s.error]
    to_write = [plan for plan in plans if plan.source.output not in stored]
    for line in room_warning(to_write, options, image_path):
        report(line)
    outcomes = convert_sources(sources, image_path, options, num_workers=num_workers, report=report)
    for line in adopt_tables(Path(input_dir), image_path, tables):
        report(line)
    return outcomes


def _placed_alike(
    plans: list[RunPlan],
    sources: list[Source],
    options: ConversionOptions,
    stored: Mapping[str, RunHeader],
) -> tuple[list[RunPlan], list[Source]]:
    """Place the runs that lie elsewhere than most; see ``on_one_grid``."""
    outputs = {source.output for source in sources}
    kept = [header for name, header in stored.items() if name not in outputs]
    plans, errors = on_one_grid(plans, options, kept)
    planned = {plan.source.name: plan.source for plan in plans}
    placed = [
        source.refused(errors[source.name])
        if source.name in errors
        else planned.get(source.name, source)
        for source in sources
    ]
    return plans, placed


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
