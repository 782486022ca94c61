"""Scans as CSV or TSV: a table with a column of subjects, or a folder with a file for each scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.files import without_leftovers
from neuromamba.common.text import number, plain_subject, some_of
from neuromamba.data.cohorts.tables import read_table
from neuromamba.data.regions.series_files import NO_REGION, READERS, read_series_file

SUFFIXES = (".csv", ".tsv")
# Columns that say whose scan a row belongs to, and which of several.
_SUBJECT = ("subject", "subjectid", "subject_id", "participant_id", "sub_id", "id")
_SCAN = ("session", "run", "scan")
_PARTICIPANTS = ("participants.csv", "participants.tsv")


class TableScan(NamedTuple):
    """A scan of a table.

    Attributes:
        subject: name.
        pheno: what the table says of it.
        series: [regions, frames].
    """

    subject: str
    pheno: Mapping[str, Any]
    series: np.ndarray


def read_scan_table(path: Path, flag: str) -> list[TableScan]:
    """Read the scans of a table: a row for each frame, in the order of time.

    A column of the subjects distinguishes the scans (further ones may be called session, run or
    scan). Columns that have one value in each scan describe it, such as its class; the others are
    regions.

    Args:
        path: of the file.
        flag: what named it.

    Raises:
        UserInputError: it has no column of subjects, no regions, or a region that is no number.
    """
    table = read_table(path)
    lower = [name.lower() for name in table.columns]
    subject = next((lower.index(name) for name in _SUBJECT if name in lower), None)
    if subject is None:
        raise UserInputError(
            f"{flag}: '{path}' has no column of the subjects ({', '.join(_SUBJECT)}), so it may be "
            f"the series of one scan. Add the column, or give a folder with a file for each scan "
            f"and participants.csv."
        )
    apart = [subject, *(i for i, name in enumerate(lower) if name in _SCAN)]
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in table.rows:
        groups.setdefault(tuple(row[i] for i in apart), []).append(row)
    rest = [i for i, n in enumerate(lower) if i not in apart and n not in NO_REGION]
    constant = [i for i in rest if all(len({r[i] for r in rows}) == 1 for rows in groups.values())]
    regions = [i for i in rest if i not in constant]
    if not regions:
        raise UserInputError(
            f"{flag}: '{path}' has no column that varies within a scan. Expected a row for each "
            f"frame and a column for each region."
        )
    return [
        TableScan(
            key[0],
            {"subjectId": key[0], **{table.columns[i]: rows[0][i] for i in constant}},
            _numbers([[row[i] for i in regions] for row in rows], path, flag, key[0]),
        )
        for key, rows in groups.items()
    ]


def _numbers(rows: Sequence[Sequence[str]], path: Path, flag: str, subject: str) -> np.ndarray:
    values = [[number(cell) for cell in row] for row in rows]
    for row, cells in zip(values, rows, strict=True):
        if None in row:
            raise UserInputError(
                f"{flag}: '{path}' has '{cells[row.index(None)]}' for a region of {subject}, "
                f"expected a number. Correct it, or leave the scan out."
            )
    return np.array(values, dtype=np.float32).T


def read_scan_folder(folder: Path, flag: str) -> list[TableScan]:
    """Read a folder of files with the series of a scan each, and ``participants.csv`` beside them.

    A file is called after its subject; what follows the first "_" distinguishes several scans.

    Args:
        folder: of the files.
        flag: what named it.

    Raises:
        UserInputError: there are none, one cannot be read, or a subject is not among the
            participants.
    """
    files = [
        path
        for path in without_leftovers(folder.iterdir())
        if path.suffix.lower() in READERS and path.name not in _PARTICIPANTS
    ]
    if not files:
        raise UserInputError(
            f"{flag}: no file in '{folder}' has the series of a scan ({', '.join(READERS)})."
        )
    rows = _participants(folder)
    scans, unknown = [], []
    for path in files:
        subject = path.stem.split("_")[0]
        row = rows.get(plain_subject(subject))
        if rows and row is None:
            unknown.append(subject)
        series = read_series_file(path).values.astype(np.float32).T
        scans.append(TableScan(subject, {**(row or {}), "subjectId": subject}, series))
    if unknown:
        raise UserInputError(
            f"{flag}: {len(unknown)} of {len(files)} files of '{folder}' are of nobody in its "
            f"participants table ({some_of(unknown, 5)}). Call files after the subjects there."
        )
    return scans


def _participants(folder: Path) -> dict[str, dict[str, str]]:
    """Subject, as names are compared -> row of the table; {} without a table."""
    path = next((folder / name for name in _PARTICIPANTS if (folder / name).is_file()), None)
    if path is None:
        return {}
    table = read_table(path)
    lower = [name.lower() for name in table.columns]
    column = next((lower.index(name) for name in _SUBJECT if name in lower), 0)
    rows = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    return {plain_subject(row[table.columns[column]]): row for row in rows}
