"""Check every file of a store and report; move bad files into a quarantine if asked to."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from neuromamba.common.csv_cells import CsvWriter
from neuromamba.common.errors import UserInputError
from neuromamba.common.workers import available_cpus, in_processes
from neuromamba.data.ingest.report import progress
from neuromamba.data.store.checks import (
    CheckedRun,
    CheckOptions,
    check_run,
    leftovers,
    manifest_problems,
    mark_duplicates,
    mixtures,
)
from neuromamba.data.store.manifest import rebuild_manifest
from neuromamba.data.store.near_copies import near_copies
from neuromamba.data.store.reader import list_runs

REASONS = "reasons.tsv"


def check_store(
    image_path: str | Path,
    options: CheckOptions | None = None,
    *,
    quarantine: str | Path | None = None,
    clean: bool = False,
    num_workers: int | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Check a store and report.

    Args:
        image_path: of the store; holds ``hdf5/``.
        options: see ``CheckOptions``.
        quarantine: folder for bad files; None is ``<image_path>/quarantine``.
        clean: move bad files and leftovers there, and write the manifest again.
        num_workers: processes; None takes one per processor.
        report: receives the lines.

    Returns:
        Whether all was well.

    Raises:
        UserInputError: no store; a quarantine that cannot be used.
        KeyboardInterrupt: Ctrl-C; nothing was moved.
    """
    if num_workers is not None and num_workers < 1:
        raise UserInputError(f"--num_workers: got {num_workers}, expected 1 or more.")
    paths = list_runs(image_path)
    folder = paths[0].parent
    if folder.name != "hdf5":
        raise UserInputError(
            f"--image_path: '{image_path}' has no folder hdf5/. Give the folder of a store."
        )
    root = folder.parent
    destination = Path(quarantine) if quarantine else root / "quarantine"
    if destination.resolve().is_relative_to(folder.resolve()):
        raise UserInputError(
            f"--quarantine: '{destination}' lies in '{folder}', which holds the runs. Choose "
            f"another folder."
        )
    if clean:
        _check_quarantine(destination, folder)

    workers = min(num_workers or available_cpus(), len(paths))
    task = functools.partial(check_run, options=options or CheckOptions())
    outcomes = list(progress(in_processes(task, paths, workers, _killed), len(paths), report))
    outcomes.sort(key=lambda outcome: outcome.path)
    mark_duplicates(outcomes)
    stray, warnings = leftovers(folder)
    bad = [(o.path, o.message) for o in outcomes if o.status == "bad"] + stray
    problems, more = manifest_problems(root, outcomes)
    stale = bool(problems or more)
    warnings += more
    mixed, more = mixtures(outcomes)
    problems, warnings = problems + mixed, warnings + more
    readable = [o for o in outcomes if o.status == "ok" and o.header is not None]
    copies = near_copies([o.path for o in readable], [o.header for o in readable if o.header])
    problems += [
        f"{copy.one.label} and {copy.other.label}, of different subjects, hold the same scan but "
        f"for offset or unit"
        for copy in copies
    ]

    for line in _summary(outcomes, warnings, problems, bad):
        report(line)
    if clean:
        for path, reason in bad:
            report(f"moved: hdf5/{path.name} -> {_move(path, destination, reason)}")
        if bad or stale:
            rebuild_manifest(root)
    elif bad:
        report(f"nothing was changed; --clean moves {len(bad)} file(s) to '{destination}'")
    return not (bad or problems or any(outcome.status == "failed" for outcome in outcomes))


def _killed(path: Path) -> CheckedRun:
    message = (
        "not checked: a worker process was killed, probably for lack of memory. Use fewer "
        "--num_workers"
    )
    return CheckedRun(path=path, status="failed", message=message)


def _summary(
    outcomes: Sequence[CheckedRun],
    warnings: Sequence[str],
    problems: Sequence[str],
    bad: Sequence[tuple[Path, str]],
) -> Iterator[str]:
    counts = Counter(outcome.status for outcome in outcomes)
    counts["leftovers"] = len(bad) - counts["bad"]
    yield ""
    for status in ("ok", "bad", "leftovers"):
        yield f"{status:<12}{counts[status]:>8}"
    if counts["failed"]:
        yield f"{'not checked':<12}{counts['failed']:>8}"
    yield from (f"warning: {line}" for line in warnings)
    for outcome in outcomes:
        yield from (f"warning: {outcome.name}: {note}" for note in outcome.notes)
    yield from (f"problem: {line}" for line in problems)
    yield from (f"bad: hdf5/{path.name}: {reason}" for path, reason in bad)
    for outcome in outcomes:
        if outcome.status == "failed":
            yield f"not checked: {outcome.name}: {outcome.message}"


def _check_quarantine(destination: Path, folder: Path) -> None:
    """Refuse a quarantine before hours of checking; it is made when a file is moved."""
    existing = next(
        p for p in (destination.absolute(), *destination.absolute().parents) if p.exists()
    )
    if not existing.is_dir():
        raise UserInputError(f"--quarantine: '{existing}' is a file; choose a folder.")
    for needed in (existing, folder):
        if not os.access(needed, os.W_OK):
            raise UserInputError(f"--clean: '{needed}' is read-only, so nothing can be moved.")
    if existing.stat().st_dev != folder.stat().st_dev:
        raise UserInputError(
            f"--quarantine: '{destination}' is on another file system than '{folder}', and files "
            f"are renamed, not copied. Choose a folder on the same one."
        )


def _move(path: Path, destination: Path, reason: str) -> Path:
    """Move a file or folder into the quarantine under a free name, and note the reason there."""
    destination.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        target = destination / (f"{path.name}.{number}" if number else path.name)
        try:
            # Reserves the name, because a rename would replace what another process puts there.
            if path.is_dir() and not path.is_symlink():
                target.mkdir()
            else:
                target.touch(exist_ok=False)
            break
        except FileExistsError:
            number += 1
    try:
        os.replace(path, target)
    except OSError as error:
        target.rmdir() if target.is_dir() else target.unlink()  # the empty reservation
        raise UserInputError(f"{path}: cannot be moved ({error.strerror}).") from None
    listing = destination / REASONS
    with open(listing, "a", encoding="utf-8") as stream:
        if not stream.tell():
            stream.write("file\tmoved_from\treason\n")
        CsvWriter(stream, delimiter="\t").writerow(
            [target.name, f"hdf5/{path.name}", " ".join(reason.split())]
        )
    return target
