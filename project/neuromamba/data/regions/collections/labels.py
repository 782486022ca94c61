"""Tables of labels of a collection: whose row is whose, and what its cells say.

Subjects of scans and tables agree by the one rule of the cohorts (``Cohort.key``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.text import category, number, plain_subject, some_of
from neuromamba.data.cohorts.registry import DATASETS, Cohort
from neuromamba.data.cohorts.tables import ABSENT, Table, read_table
from neuromamba.data.regions.collections.found import Collection, FoundScan
from neuromamba.data.regions.subjects import SUBJECT_COLUMNS

NO_FILE = "no_filename"  # of the Preprocessed Connectomes: there is no scan
_FILE_COLUMN = "FILE_ID"
_OTHER_COLUMNS = ("subject_id", "sub_id", "id", "subjectid")  # in any case
_SESSIONS = ("session", "session_id", "ses", "visit")
# A cohort is recognised by columns that no other has.
_SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "ABIDE": ("DX_GROUP", "AGE_AT_SCAN"),
    "ADHD200": ("ScanDir ID",),
}


@dataclass(frozen=True)
class Codes:
    """Values that mean "not recorded", besides empty cells and NA.

    Attributes:
        everywhere: in all columns.
        of_column: in one column.
    """

    everywhere: frozenset[str] = frozenset()
    of_column: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @staticmethod
    def parse(words: Sequence[str], cohort: Cohort) -> Codes:
        """Read ``--missing_codes``: ``CODE``, or ``COLUMN=CODE``; the cohort's own are added."""
        everywhere = {category(code).lower() for code in cohort.missing_codes}
        of_column: dict[str, set[str]] = {}
        for word in words:
            column, equals, code = word.rpartition("=")
            if equals and column:
                of_column.setdefault(column, set()).add(category(code).lower())
            else:
                everywhere.add(category(word).lower())
        return Codes(frozenset(everywhere), {k: frozenset(v) for k, v in of_column.items()})

    def is_missing(self, column: str, text: str) -> bool:
        """Whether a cell holds nothing, or a code."""
        plain = category(text.strip()).lower()
        return (
            plain in ABSENT or plain in self.everywhere or plain in self.of_column.get(column, ())
        )


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What tables say of the scans.

    Attributes:
        cohort: whose habits and codes hold.
        rows: of each scan: column -> text, "" if it is missing; what the collection itself says of
            a scan is there, too.
        without_row: places of the scans that no table has a row of; empty without tables.
        columns: names, of the collection and in the order of the tables.
        tables: the files that were used.
        without_scan: names of rows that have no scan.
        unused: tables that name none of the scans.
        names: of the scans, where the rows of the table are the scans; else empty.
    """

    cohort: Cohort
    rows: tuple[Mapping[str, str], ...]
    without_row: tuple[int, ...]
    columns: tuple[str, ...]
    tables: tuple[Path, ...]
    without_scan: tuple[str, ...]
    unused: tuple[Path, ...]
    names: tuple[str, ...] = ()


def read_labels(
    collection: Collection,
    labels: Sequence[Path],
    *,
    dataset_name: str | None = None,
    subject_column: str | None = None,
    missing_codes: Sequence[str] = (),
) -> Labels:
    """Read the tables of a collection and find the row of each scan.

    Args:
        collection: its scans, and tables that lie beside them.
        labels: of ``--labels``, in place of these.
        dataset_name: a cohort; None recognises ABIDE and ADHD-200 by their columns.
        subject_column: of the tables; None finds it.
        missing_codes: see ``Codes.parse``.

    Raises:
        UserInputError: a table cannot be read, names nobody, or contradicts itself or another.
    """
    for path in labels:
        if not path.is_file():
            raise UserInputError(f"--labels: '{path}' does not exist.")
    tables = [read_table(path) for path in labels or collection.tables]
    own = {name: None for scan in collection.scans for name in scan.columns}
    columns = {**own, **{name: None for table in tables for name in table.columns if name}}
    if dataset_name is not None:
        cohort = DATASETS[look_up(dataset_name, DATASETS, "--dataset_name")]
    else:
        known = (name for name, signature in _SIGNATURES.items() if {*signature} <= {*columns})
        cohort = DATASETS[next(known, "Own")]
    codes = Codes.parse(missing_codes, cohort)
    for name in codes.of_column:
        look_up(name, columns, "--missing_codes, column")
    said = [_cells(scan.columns, codes) for scan in collection.scans]
    found: list[dict[str, str] | None] = [None] * len(said)
    used: list[Path] = []
    unused: list[Path] = []
    without: list[str] = []
    for table in tables:
        rows = _rows_of_scans(table, collection, cohort, subject_column)
        if not any(row is not None for row in rows.of_scans):
            unused.append(table.path)
            continue
        used.append(table.path)
        without += rows.without_scan
        for place, row in enumerate(rows.of_scans):
            if row is not None:
                cells = _cells(dict(zip(table.columns, row, strict=True)), codes)
                before = found[place]
                found[place] = cells if before is None else _merged(before, cells, table, used)
    here = [path for path in unused if path.resolve().is_relative_to(collection.root.resolve())]
    if unused and (labels or (here and not used)):
        raise _nobody(unused[0], tables, collection, cohort, bool(labels))
    return Labels(
        cohort=cohort,
        rows=tuple({**one, **(row or {})} for one, row in zip(said, found, strict=True)),
        without_row=tuple(i for i, row in enumerate(found) if used and row is None),
        columns=tuple(dict.fromkeys(name for row in (*said, *found) for name in row or {})),
        tables=tuple(used),
        without_scan=tuple(dict.fromkeys(without)),
        unused=tuple(unused),
        names=_names_in_order(tables, used, cohort) if collection.in_order else (),
    )


def _names_in_order(
    tables: Sequence[Table], used: Sequence[Path], cohort: Cohort
) -> tuple[str, ...]:
    """Names of subjects in a table whose rows are the scans; empty if it has none."""
    for table in tables:
        column = next(iter(_candidates(table, cohort)), None)
        if table.path in used and column is not None:
            names = table.column(column, "")
            if all(names) and len(set(names)) == len(names):
                return tuple(names)
    return ()


@dataclass(frozen=True)
class _Rows:
    of_scans: Sequence[tuple[str, ...] | None]
    without_scan: Sequence[str]


def _rows_of_scans(
    table: Table, collection: Collection, cohort: Cohort, subject_column: str | None
) -> _Rows:
    """The row of each scan, by subject, and by session where a subject has several rows."""
    scans = collection.scans
    if collection.in_order:
        if len(table.rows) != len(scans):
            return _Rows([None] * len(scans), [])
        return _Rows(table.rows, [])
    column = _subject_column(table, scans, cohort, subject_column)
    if column is None:
        return _Rows([None] * len(scans), [])
    names = table.column(column, "--subject_column")
    wanted = {cohort.key(scan.subject) for scan in scans} | {cohort.key(s.name) for s in scans}
    lower = [name.lower() for name in table.columns]
    session = next((lower.index(name) for name in _SESSIONS if name in lower), None)
    by_key: dict[str, list[tuple[str, ...]]] = {}
    without = []
    for name, row in zip(names, table.rows, strict=True):
        key = cohort.key(name) if name and name != NO_FILE else ""
        if key in wanted:
            by_key.setdefault(key, []).append(row)
        elif name:
            without.append(_called(table, row, name, cohort))
    return _Rows([_row_of(scan, by_key, session, table, cohort) for scan in scans], without)


def _row_of(
    scan: FoundScan,
    by_key: Mapping[str, Sequence[tuple[str, ...]]],
    session: int | None,
    table: Table,
    cohort: Cohort,
) -> tuple[str, ...] | None:
    rows = by_key.get(cohort.key(scan.name)) or by_key.get(cohort.key(scan.subject)) or []
    distinct = list(dict.fromkeys(rows))
    if len(distinct) > 1 and session is not None:
        distinct = [row for row in distinct if _plain(row[session]) == _plain(scan.session)]
    if len(distinct) > 1:
        raise UserInputError(
            f"--labels: '{table.path}' has {len(distinct)} different rows of {scan.name}. Keep one "
            f"row per subject, or distinguish them by a column 'session'."
        )
    return distinct[0] if distinct else None


def _plain(session: str) -> str:
    text = session.strip().lower()
    return plain_subject(text.removeprefix("ses-").removeprefix("session-"))


def _subject_column(
    table: Table, scans: Sequence[FoundScan], cohort: Cohort, given: str | None
) -> str | None:
    """The column that names most of the scans; None if no column does."""
    if given is not None:
        return look_up(given, table.columns, f"--subject_column: {table.path}, column")
    keys = {cohort.key(scan.subject) for scan in scans} | {cohort.key(s.name) for s in scans}
    counts = {
        name: len(keys & {cohort.key(cell) for cell in table.column(name, "")})
        for name in _candidates(table, cohort)
    }
    best = max(counts, key=lambda name: counts[name], default=None)
    return best if best is not None and counts[best] else None


def _candidates(table: Table, cohort: Cohort) -> list[str]:
    """Columns that may hold the names of subjects, best first."""
    usual = dict.fromkeys((_FILE_COLUMN, *cohort.subject_columns, *SUBJECT_COLUMNS))
    found = [name for name in usual if name in table.columns]
    others = [name for name in table.columns if name.lower() in _OTHER_COLUMNS]
    return list(dict.fromkeys([*found, *others]))


def _called(table: Table, row: tuple[str, ...], name: str, cohort: Cohort) -> str:
    """What a row without a scan is called: by its subject, where it says that there is no file."""
    if name != NO_FILE:
        return name
    own = next((one for one in cohort.subject_columns if one in table.columns), None)
    return name if own is None else row[table.columns.index(own)]


def _cells(row: Mapping[str, Any], codes: Codes) -> dict[str, str]:
    """The texts of a row; "" for a value that is missing."""
    texts = {name: "" if cell is None else str(cell) for name, cell in row.items() if name}
    return {name: "" if codes.is_missing(name, cell) else cell for name, cell in texts.items()}


def _merged(
    before: Mapping[str, str], cells: Mapping[str, str], table: Table, used: Sequence[Path]
) -> dict[str, str]:
    """Two rows of a scan as one.

    Raises:
        UserInputError: they differ in a column.
    """
    for name, cell in cells.items():
        other = before.get(name)
        if cell and other and not _agree(cell, other):
            raise UserInputError(
                f"--labels: '{table.path}' and another table ({some_of(used[:-1], 3)}) differ in "
                f"'{name}' of one scan: '{cell}' and '{other}'. Name the table that is right with "
                f"--labels."
            )
    return {**before, **cells, **{name: cell for name, cell in before.items() if cell}}


def _agree(cell: str, other: str) -> bool:
    """Whether two cells hold the same text or number."""
    numbers = number(cell), number(other)
    return category(cell) == category(other) or (numbers[0] is not None and len({*numbers}) == 1)


def _nobody(
    path: Path, tables: Sequence[Table], collection: Collection, cohort: Cohort, given: bool
) -> UserInputError:
    table = next(one for one in tables if one.path == path)
    flag = "--labels" if given else "SOURCE"
    if collection.in_order:
        return UserInputError(
            f"{flag}: '{path}' has {len(table.rows)} rows, and the scans have no names and are "
            f"{len(collection.scans)}; expected a row for each, in their order."
        )
    there: Any = _subject_like(table, cohort)
    return UserInputError(
        f"{flag}: '{path}' has a row of none of the {len(collection.scans)} scans "
        f"({some_of((scan.name for scan in collection.scans), 3)}); its columns are {there}. Name "
        f"the column of the subjects with --subject_column, or another table with --labels."
    )


def _subject_like(table: Table, cohort: Cohort) -> str:
    """Columns of a table, those of subjects with a value."""
    usual = _candidates(table, cohort)
    if not table.rows:
        return f"{some_of(table.columns, 12)}, without a row"
    named = [
        f"{name} ({table.rows[0][i]} ...)" for i, name in enumerate(table.columns) if name in usual
    ]
    others = [name for name in table.columns if name and name not in usual]
    return some_of([*named, *others], 12)
