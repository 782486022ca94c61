"""Tables of subjects, as laboratories have them: CSV or TSV, and the values of their columns.

A table may be separated by commas, semicolons, tabs or bars, start with a byte order mark, name a
subject in several rows, and lack values; what could be misread is refused.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.csv_cells import as_read
from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.files import without_leftovers
from neuromamba.common.text import ABSENT, some_of

_DELIMITERS = ",;\t|"
_SHOWN = 20  # columns named in a message


@dataclass(frozen=True)
class Table:
    """A file's cells, stripped of surrounding blanks.

    Attributes:
        path: of the file.
        columns: names in the first line.
        rows: the other lines that are not empty, each as long as ``columns``.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str, flag: str) -> list[str]:
        """The cells of a column.

        Raises:
            UserInputError: there is none of that name; ``flag`` named it.
        """
        look_up(name, self.columns, f"{flag}: {self.path}, column")
        index = self.columns.index(name)
        return [row[index] for row in self.rows]

    @property
    def summary(self) -> str:
        """File name and columns, for messages."""
        return f"{self.path.name} ({some_of(self.columns, _SHOWN)})"


def read_table(path: Path) -> Table:
    """Read a CSV or TSV file (UTF-8; comma, semicolon, tab or bar).

    Raises:
        UserInputError: unreadable, not UTF-8, empty, a column named twice, a row that has more
            fields than there are columns, or one that describes the columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            lines = [stream.readline(), stream.readline()]
            # Excel's own first line, which names the separator.
            named = re.fullmatch(r"\ufeff?\"?sep=(.)\"?\s*", lines[0])
            stream.seek(0)
            if named:
                stream.readline()
            delimiter = named[1] if named else _delimiter(path, *lines)
            reader = csv.reader(stream, delimiter=delimiter)
            columns = tuple(as_read(name.strip()).strip() for name in next(reader, []))
            rows = []
            for row in reader:
                if any(cell.strip() for cell in row[len(columns) :]):
                    # The columns would be shifted: a label could belong to another column.
                    raise UserInputError(
                        f"{path}, line {reader.line_num}: found {len(row)} fields, expected "
                        f"{len(columns)} as in the first line. Quote the fields that hold a "
                        f"'{delimiter}'."
                    )
                cells = [as_read(cell.strip()).strip() for cell in row[: len(columns)]]
                if any(cells):
                    rows.append((*cells, *[""] * (len(columns) - len(cells))))
    except OSError as error:
        raise UserInputError(f"{path}: cannot read the table ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise UserInputError(
            f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start}). Save the "
            f"table as CSV in UTF-8."
        ) from None
    except csv.Error as error:
        raise UserInputError(f"{path}: cannot read the table ({error}).") from None
    if not any(columns):
        raise UserInputError(f"{path}: the file is empty; expected column names in the first line.")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise UserInputError(
            f"{path}: more than one column is called {', '.join(twice)}. Rename all but one."
        )
    if _describes(rows):
        raise UserInputError(
            f"{path}: its second line describes the columns ({some_of(rows[0], 3)}), as files of "
            f"the NDA do, and is no subject. Remove that line."
        )
    return Table(path, columns, tuple(rows))


def _describes(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row holds phrases in all columns, and later ones none in the first."""
    phrases = bool(rows) and all(" " in cell for cell in rows[0])
    return phrases and len(rows) > 1 and not any(" " in row[0] for row in rows[1:])


def _delimiter(path: Path, first: str, second: str) -> str:
    """The separator that gives both lines as many fields; a name of a column may hold others."""
    fields = {
        one: [len(next(csv.reader([line], delimiter=one), [])) for line in (first, second)]
        for one in _DELIMITERS
    }
    if path.suffix == ".tsv" and fields["\t"][0] > 1:
        return "\t"
    agreeing = [one for one, (names, cells) in fields.items() if names == cells > 1]
    return max(agreeing or _DELIMITERS, key=lambda one: fields[one][0])


def tables_of(folder: Path) -> list[Table]:
    """The CSV and TSV files of a ``metadata/`` folder, by name."""
    return [
        read_table(path)
        for path in without_leftovers([*folder.glob("*.csv"), *folder.glob("*.tsv")])
    ]


def adopt_tables(source: Path, image_path: Path, names: Sequence[str]) -> list[str]:
    """Copy a cohort's tables from among its images into ``metadata/`` of its store.

    Args:
        source: folder of the images; the tables are in it or in a folder of it.
        image_path: the store's folder.
        names: of the tables.

    Returns:
        What was done, or why not, a line each. A table that is already there is left as it is.
    """
    lines = []
    for name in names:
        # Not deeper: a cohort's tree may hold millions of files.
        candidates = [source / name, *sorted(source.glob(f"*/{name}"))]
        found = [path for path in candidates if path.is_file()]
        contents = {path.read_bytes() for path in found}
        target = image_path / "metadata" / name
        if not found or (target.exists() and contents == {target.read_bytes()}):
            continue
        if len(contents) > 1:
            some = ", ".join(str(path.relative_to(source)) for path in found[:3])
            lines.append(f"metadata: {len(found)} different {name} ({some} ...); copy one yourself")
        elif target.exists():
            lines.append(f"metadata: {target} differs from {found[0]} and is left as it is")
        else:
            target.parent.mkdir(exist_ok=True)
            with atomic_path(target) as temporary:
                temporary.write_bytes(*contents)
            lines.append(f"metadata: {name} copied from {found[0]}")
    return lines


@dataclass(frozen=True)
class Cell:
    """A value of a subject, and the file that has it."""

    text: str
    path: Path


def values_of_subjects(
    tables: Iterable[Table],
    subject_columns: Sequence[str],
    columns: Sequence[str],
    key: Callable[[str], str],
    wanted: Iterable[str],
    missing_codes: Iterable[str] = (),
    meaning: Callable[[str], object] = str,
) -> dict[str, Cell] | None:
    """Values of a column by subject, from every table that has a subject column and the column.

    Args:
        tables: to look in.
        subject_columns, columns: admitted names, in order of preference.
        key: form of a subject's name in which names are compared.
        wanted: keys of the subjects to look for.
        missing_codes: values that mean "not recorded", besides empty fields and NA.
        meaning: two values of a subject conflict if this differs (``F`` and ``female`` need not).

    Returns:
        key -> value, for the subjects that have one; None if no table has both columns.

    Raises:
        UserInputError: a subject with conflicting values.
    """
    absent = ABSENT | {code.lower() for code in missing_codes}
    keys = set(wanted)
    values: dict[str, Cell] = {}
    usable = False
    for table in tables:
        subject_column = next((name for name in subject_columns if name in table.columns), None)
        column = next((name for name in columns if name in table.columns), None)
        if subject_column is None or column is None:
            continue
        usable = True
        subjects = table.column(subject_column, "")
        for subject, text in zip(subjects, table.column(column, ""), strict=True):
            if text.lower() in absent or (name := key(subject)) not in keys:
                continue
            known = values.setdefault(name, Cell(text, table.path))
            if meaning(known.text) != meaning(text):
                raise UserInputError(
                    f"{table.path}: subject '{subject}' has conflicting values in column "
                    f"'{column}': '{known.text}' and '{text}'. Keep one row per subject."
                )
    return values if usable else None
