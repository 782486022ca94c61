"""A command over many scans: records, progress, what an earlier call has finished."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import some_of
from neuromamba.inference.loaded import LoadedModel
from neuromamba.inference.many import each_scan
from neuromamba.inference.output_folder import OutputFolder
from neuromamba.inference.prepare import refuse_for_a_store
from neuromamba.inference.region_model import RegionModel
from neuromamba.inference.sources import ScanFile

ResultT = TypeVar("ResultT")


@dataclass
class Batch:
    """The scans of a call and their records.

    Attributes:
        model: that is used.
        scans: in order.
        folder: that is written.
        records: of the scans that are finished, by name.
        passed_over: images that are no scans -> reason.
    """

    model: Any  # LoadedModel or RegionModel
    scans: list[ScanFile]
    folder: OutputFolder
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)

    @property
    def in_order(self) -> list[dict[str, Any]]:
        """The records, in the order of the scans."""
        return [self.records[scan.name] for scan in self.scans if scan.name in self.records]

    @property
    def status(self) -> int:
        """Exit status: 0 if all scans have an answer, else 1."""
        answered = [one for one in self.records.values() if one["status"] != "refused"]
        return 0 if len(answered) == len(self.scans) else 1


def open_batch(
    model: LoadedModel | RegionModel,
    args: argparse.Namespace,
    command: str,
    options: Mapping[str, Any],
    check: Callable[[Sequence[ScanFile]], object] = lambda scans: None,
) -> Batch:
    """Find the scans of a call and open its folder.

    Args:
        model: loaded.
        args: of ``flags.model_parser``.
        command: its name.
        options: flags that change a result.
        check: raises a ``UserInputError`` for scans that another flag does not fit, before the
            folder is made.

    Raises:
        UserInputError: no scans; a folder that cannot be used; what ``check`` raises.
    """
    scans, passed = model.find(args.bold)
    if not scans:
        raise UserInputError(f"BOLD: no scan in {some_of(args.bold, 3)}.")
    if isinstance(model, LoadedModel) and all(
        one.source is None and not one.error for one in scans
    ):
        refuse_for_a_store(scans[0], args.tr, args.mask)
    check(scans)
    folder = OutputFolder(Path(args.output), model, command, options)
    batch = Batch(model=model, scans=scans, folder=folder)
    batch.passed_over = {image.name: image.why for image in passed}
    return batch


def run_batch(
    batch: Batch,
    args: argparse.Namespace,
    work: Callable[[Any], ResultT],
    keep: Callable[[ScanFile, ResultT], Mapping[str, Any]],
    write: Callable[[Sequence[Mapping[str, Any]]], Path],
    more: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] = lambda records: {},
) -> None:
    """Do the scans of a call, and write its tables and ``run.json``, after Ctrl-C too.

    Args:
        batch: of the call.
        args: of ``flags.model_parser``.
        work, keep: as of ``process``.
        write: writes the tables from the records in order; returns what the last line names.
        more: entries of ``run.json`` besides those of all commands.
    """
    try:
        process(batch, args, work, keep)
    finally:
        records = batch.in_order
        written = write(records)
        batch.folder.write_run(records, passed_over=batch.passed_over, **more(records))
    print(f"{summary(batch)}; {written}")


def process(
    batch: Batch,
    args: argparse.Namespace,
    work: Callable[[Any], ResultT],
    keep: Callable[[ScanFile, ResultT], Mapping[str, Any]],
) -> None:
    """Do the scans that no earlier call has finished; each record is written when it is done.

    Args:
        batch: of the call.
        args: of ``flags.model_parser``.
        work: what to do with a prepared scan.
        keep: what its result is in plain containers; may write files.
    """
    for scan in batch.scans:
        known = batch.folder.finished(scan)
        if known is not None:
            batch.records[scan.name] = known
    left = [scan for scan in batch.scans if scan.name not in batch.records]
    if len(left) < len(batch.scans):
        done = len(batch.scans) - len(left)
        print(f"{done} of {len(batch.scans)} scans were finished by an earlier call", flush=True)
    outcomes = each_scan(
        batch.model,
        left,
        work,
        tr=args.tr,
        mask=args.mask,
        strict=args.strict,
        workers=args.num_workers,
    )
    for outcome in tqdm(outcomes, total=len(left), unit="scan", disable=None):
        result = None if outcome.result is None else keep(outcome.scan, outcome.result)
        batch.records[outcome.scan.name] = batch.folder.keep(outcome, result)
        if outcome.status != "ok":
            tqdm.write(f"{outcome.scan.name}: {outcome.status}: {outcome.reason}", sys.stderr)


def summary(batch: Batch) -> str:
    """How many scans have which status, in one line."""
    counts = dict.fromkeys(("ok", "warned", "refused"), 0)
    for record in batch.records.values():
        counts[record["status"]] += 1
    scans = f"{len(batch.scans)} scan{'s' if len(batch.scans) != 1 else ''}"
    return f"{scans}: " + ", ".join(f"{n} {name}" for name, n in counts.items())
