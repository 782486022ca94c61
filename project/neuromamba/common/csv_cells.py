"""Cells of CSV and TSV files whose texts come from data: names of subjects, files and classes.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, which can
run a program or send the table away (OWASP, "CSV Injection"). Such a text is written with an
apostrophe in front, which spreadsheets take for "this is a text". Numbers stay as they are, also
negative ones. Characters that cannot be seen are written as their code (``common.text.visible``).

The readers below return the original texts, so that names in our files still match those of the
store. Files of earlier versions, which have neither, are read as before.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from neuromamba.common.text import is_invisible, visible

# The signs of full width are folded into the others by some programs.
_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_FORMULA = re.compile(f"['\\s]*[{_SIGNS}]")
_MARKED = re.compile(f"'['\\s]*[{_SIGNS}]")
_CODE = re.compile(r"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")
_BETWEEN_NUMBERS = re.compile(r"[\s\[\](),±%]+")


def written(cell: Any) -> Any:
    """Return a cell as it is written; only texts change."""
    if not isinstance(cell, str):
        return cell
    # A backslash that would be read as the start of a code is written as a code itself.
    text = visible(_CODE.sub(lambda found: f"\\u005c{found[0][1:]}", cell))
    return f"'{text}" if _FORMULA.match(text) and not _is_numbers(text) else text


def as_read(cell: str) -> str:
    """Return the text that ``written`` was given."""
    return _CODE.sub(_character, cell[1:] if _MARKED.match(cell) else cell)


def _is_numbers(text: str) -> bool:
    """Whether a text is a number, or numbers such as "-0.1 [-0.2, 0.0]"."""
    try:
        return bool([float(part) for part in _BETWEEN_NUMBERS.split(text) if part])
    except ValueError:
        return False


def _character(found: re.Match[str]) -> str:
    code = int(found[1] or found[2], 16)
    character = chr(code) if code < 0x110000 else ""
    return character if character == "\\" or is_invisible(character) else found[0]


class CsvWriter:
    """A ``csv.writer`` that writes cells as ``written`` does.

    Args:
        stream: opened with ``newline=""``.
        delimiter, lineterminator: as of ``csv.writer``.
    """

    def __init__(self, stream: Any, delimiter: str = ",", lineterminator: str = "\n") -> None:
        self._rows = csv.writer(stream, delimiter=delimiter, lineterminator=lineterminator)

    def writerow(self, row: Iterable[Any]) -> None:
        """Write a row; None becomes an empty cell."""
        self._rows.writerow([written(cell) for cell in row])

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        """Write rows."""
        for row in rows:
            self.writerow(row)

    def write_records(
        self, columns: Sequence[str], records: Iterable[Mapping[str, Any]], header: bool = True
    ) -> None:
        """Write the names of columns and a row for each record; what a record lacks is empty.

        Raises:
            ValueError: a record has a name that is no column.
        """
        if header:
            self.writerow(columns)
        for record in records:
            if unknown := set(record) - set(columns):
                raise ValueError(f"no columns: {sorted(unknown)}")
            self.writerow(record.get(name, "") for name in columns)


def csv_rows(lines: TextIO | Iterable[str], delimiter: str = ",") -> Iterator[list[str]]:
    """Read rows, each cell as the text that was given to the writer.

    Raises:
        csv.Error: the text is no CSV.
    """
    for row in csv.reader(lines, delimiter=delimiter):
        yield [as_read(cell) for cell in row]


def csv_records(lines: TextIO | Iterable[str], delimiter: str = ",") -> Iterator[dict[str, Any]]:
    """Read rows as name of a column -> text, as ``csv.DictReader`` does.

    Cells beyond the last column are in a list under None; columns beyond the last cell are None.

    Raises:
        csv.Error: the text is no CSV.
    """
    rows = (row for row in csv_rows(lines, delimiter) if row)
    columns = next(rows, [])
    for row in rows:
        record: dict[Any, Any] = dict(zip(columns, row, strict=False))
        if len(row) > len(columns):
            record[None] = row[len(columns) :]
        yield record | dict.fromkeys(columns[len(row) :])
