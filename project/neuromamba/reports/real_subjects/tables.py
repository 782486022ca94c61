"""``neuromamba reproduce --table abide``: run what is missing on real subjects, write the table.

To add a table, write a module with a ``RealTable``, add it in ``real_tables`` and its name to
``real_table.REAL_TABLES``.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from neuromamba.common.atomic_files import make_folder, write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.stages import run_program, run_stage, shown
from neuromamba.reports.real_subjects.real_table import REAL_TABLES, RealTable, Request, Step
from neuromamba.reports.reproduction import check_seeds, paper_folder

SHARED = Path("../shared/data")
_FINISHED = "finished"  # folder of the output folder: a file for each step, a hash of its command
# Flags of the papers' tables and of studies alone.
_OF_PAPERS = ("dataset_name", "image_path", "checkpoints", "gpu", "add", "script", "job")


def real_tables() -> Mapping[str, RealTable]:
    """Name -> table."""
    from neuromamba.reports.real_subjects import abide, painted, sherlock, stages

    modules = (abide, painted, sherlock, stages)
    tables = {module.TABLE.name: module.TABLE for module in modules}
    assert tuple(tables) == REAL_TABLES
    return tables


class Asked(NamedTuple):
    """A table with what the flags say of it.

    Attributes:
        table: which.
        request: its folders and seeds.
        folder: receives ``table.md`` and the like.
    """

    table: RealTable
    request: Request
    folder: Path


def checked(args: argparse.Namespace, extra: tuple[str, ...]) -> list[Asked]:
    """Check the flags of tables of real subjects.

    Raises:
        UserInputError: names the flag.
    """
    names = list(dict.fromkeys(args.table))
    others = [name for name in names if name not in REAL_TABLES]
    if others:
        raise UserInputError(
            f"--table: {', '.join(others)} and {', '.join(n for n in names if n in REAL_TABLES)} "
            f"take different flags. Make them by two commands."
        )
    for flag in _OF_PAPERS:
        if getattr(args, flag) is not None:
            raise UserInputError(
                f"--{flag}: belongs to the papers' tables; {', '.join(names)} takes --data_dir, "
                f"--seeds, --output_dir, --paper_dir, --collect and --dry_run."
            )
    for flag in ("data_dir", "output_dir", "paper_dir"):
        if getattr(args, flag) is not None and len(names) > 1:
            raise UserInputError(
                f"--{flag}: is the folder of one table, got --table {' '.join(names)}. Make them "
                f"one by one, or leave the flag out."
            )
    if args.seeds is not None:
        check_seeds(args.seeds)
    asked = []
    for name in names:
        table = real_tables()[name]
        if table.one_seed and args.seeds is not None and len(args.seeds) > 1:
            raise UserInputError(
                f"--seeds: --table {name} takes one, got {len(args.seeds)}; give another "
                f"--output_dir and --paper_dir for each."
            )
        request = Request(
            data=Path(args.data_dir) if args.data_dir else SHARED / table.folder,
            out=Path(args.output_dir or f"output/reproduce_{name}"),
            seeds=tuple(args.seeds or table.seeds),
            extra=extra,
        )
        _refuse_owned(table, request)
        asked.append(Asked(table, request, Path(args.paper_dir or paper_folder() / name)))
    return asked


def _refuse_owned(table: RealTable, request: Request) -> None:
    """What the steps choose cannot be given to every training, except the device."""
    used = {
        word
        for step in table.steps(request._replace(extra=()))
        if step.training
        for word in step.command
        if word.startswith("--")
    }
    for word in request.extra:
        name = word.split("=")[0]
        if name in used - {"--device"}:
            raise UserInputError(
                f"{name}: stands after --, but --table {table.name} chooses it for each run. Leave "
                f"it out (--seeds go before --)."
            )


def lines_of(asked: Sequence[Asked]) -> list[str]:
    """The commands of the tables, as one would type them (``--dry_run``)."""
    found = []
    for table, request, _ in asked:
        found.append(f"# {table.name}, from {request.data}")
        found += [_typed(step, request) for step in table.steps(request)]
    return found


def make(asked: Sequence[Asked], command: str, *, collect: bool) -> None:
    """Make the tables whose files are there; the others are named and left out.

    Args:
        asked: of ``checked``.
        command: that makes them, as typed.
        collect: write the tables of what has finished, and run nothing.

    Raises:
        UserInputError: none can be made.
        StageFailure: a step failed.
    """
    absent = {one.table.name: _absent(one, collect) for one in asked}
    if all(absent.values()):
        raise UserInputError(next(iter(absent.values())))
    for one in asked:
        if absent[one.table.name]:
            print(f"skipped: {one.table.name}. {absent[one.table.name]}", file=sys.stderr)
            continue
        if not collect:
            make_folder(one.request.out, "--output_dir")
            steps = one.table.steps(one.request)
            for number, step in enumerate(steps, start=1):
                _do(step, one.request, f"{number}/{len(steps)} {step.name}")
        _write(one, command)


def _absent(one: Asked, collect: bool) -> str:
    """Why a table cannot be made; "" if its files, or to collect its runs, are there."""
    data, out = one.request.data, one.request.out
    if collect:
        return "" if out.is_dir() else f"--output_dir: '{out}' does not exist; nothing to collect."
    if one.table.present(data):
        return ""
    found = "does not hold its files" if data.is_dir() else "does not exist"
    return (
        f"--data_dir: '{data}' {found}. Expected: {one.table.source} {one.table.document} says "
        f"where they come from."
    )


def _words(step: Step, request: Request) -> tuple[str, ...]:
    return (*step.command, *(request.extra if step.training else ()))


def _typed(step: Step, request: Request) -> str:
    words = _words(step, request)
    return shlex.join(("python", "-m", step.module, *words)) if step.module else shown(words)


def run_module(stage: str, module: str, words: Sequence[str]) -> None:
    """Print the words, run a module of this package with them and wait.

    Raises:
        StageFailure: it ended with an error, which it has printed itself.
    """
    print(f"$ {shlex.join(('python', '-m', module, *words))}", flush=True)
    run_program(stage, [sys.executable, "-m", module, *words])


def _do(step: Step, request: Request, name: str) -> None:
    """Run a step that has not finished with these words."""
    words = _words(step, request)
    key = hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
    marker = request.out / _FINISHED / step.name
    if marker.is_file() and marker.read_text(encoding="utf-8") == key and step.makes.exists():
        print(f"{name}: finished before", flush=True)
        return
    print(name, flush=True)
    if step.module:
        run_module(name, step.module, words)
    else:
        run_stage(name, words)
    make_folder(marker.parent, "--output_dir")
    write_text_atomically(marker, key)


def _write(one: Asked, command: str) -> None:
    from neuromamba.reports.real_subjects.writing import write_real_table  # imports matplotlib

    groups = one.table.collect(one.request)
    if not groups:
        raise UserInputError(
            f"--output_dir: '{one.request.out}' holds no finished run of {one.table.name}; there "
            f"is nothing to collect."
        )
    make_folder(one.folder, "--paper_dir")
    written = write_real_table(one.table, groups, one.folder, command)
    print(written[0].read_text(encoding="utf-8"), flush=True)
    print(f"table {one.table.name}: {written[0]}", flush=True)
