"""The repetition time of each scan: of a flag, a table, a column, or what a cohort's sites used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.text import category, number, some_of
from neuromamba.data.cohorts.tables import read_table
from neuromamba.data.ingest.repetition_time import check_tr
from neuromamba.data.regions.collections.found import FoundScan
from neuromamba.data.regions.collections.labels import Labels

_COLUMNS = ("tr_s", "tr", "repetitiontime", "repetition_time", "tr_sec", "tr_ms")
_MILLISECONDS = 100.0  # a larger number is none of seconds
# Scan parameters that the sites have published: http://fcon_1000.projects.nitrc.org/indi/abide and
# .../indi/adhd200. Beginning of a FILE_ID, or a site -> seconds; sites of ADHD-200 by their number.
SITE_TR: Mapping[str, Mapping[str, float]] = {
    "ABIDE": {
        "caltech": 2.0,
        "cmu_a": 2.0,
        "cmu_b": 1.5,
        "kki": 2.5,
        "leuven_1": 1.66,
        "leuven_2": 1.66,
        "max_mun": 3.0,
        "maxmun": 3.0,
        "nyu": 2.0,
        "ohsu": 2.5,
        "olin": 1.5,
        "pitt": 1.5,
        "sbl": 2.2,
        "sdsu": 2.0,
        "stanford": 2.0,
        "trinity": 2.0,
        "ucla_1": 3.0,
        "ucla_2": 3.0,
        "um_1": 2.0,
        "um_2": 2.0,
        "usm": 2.0,
        "yale": 2.0,
    },
    "ADHD200": {
        "1": 2.0,
        "2": 2.0,
        "3": 2.5,
        "4": 1.96,
        "5": 2.0,
        "6": 2.5,
        "7": 1.5,
        "8": 2.5,
    },
}


class Rates(NamedTuple):
    """Repetition times.

    Attributes:
        seconds: of each scan; None if it is unknown.
        source: what said so, for messages and the record.
        notes: what a user should know, a sentence each.
    """

    seconds: tuple[float | None, ...]
    source: str
    notes: tuple[str, ...] = ()


class RateFlags(NamedTuple):
    """What the flags say of repetition times; see ``rates_of``."""

    tr: float | None = None
    column: str | None = None
    table: Path | None = None


def rates_of(
    scans: Sequence[FoundScan], labels: Labels, roles: Mapping[str, str], flags: RateFlags
) -> Rates:
    """The repetition time of each scan.

    ``--tr`` is that of all scans; ``--tr_table`` has a row for each site (or value of another
    column); ``--tr_column`` is a column of the labels. Without a flag: a column of the usual name,
    else what the sites of ABIDE and ADHD-200 have published.

    Args:
        scans: of the collection.
        labels: their rows.
        roles: of ``columns.roles_of``; says which column is the site.
        flags: what the user gave.

    Raises:
        UserInputError: two flags, no such column, or a number that is no repetition time.
    """
    given = [f"--{n}" for n, v in zip(("tr", "tr_column", "tr_table"), flags, strict=True) if v]
    if len(given) > 1:
        raise UserInputError(f"{given[0]}: contradicts {given[1]}; give one of them.")
    check_tr(flags.tr)
    rows = labels.rows
    if flags.tr is not None:
        return Rates((flags.tr,) * len(scans), "--tr")
    if flags.table is not None:
        return _of_table(rows, flags.table, labels, roles)
    column = flags.column
    if column is not None:
        look_up(column, labels.columns, "--tr_column")
    else:
        lower = {name.lower(): name for name in reversed(labels.columns)}
        column = next((lower[name] for name in _COLUMNS if name in lower), None)
    if column is not None:
        return _of_column([row.get(column, "") for row in rows], column, scans)
    own = [_number(scan.columns.get("tr")) for scan in scans]
    if any(value is not None for value in own):
        return Rates(tuple(own), "the collection")
    return _of_sites(scans, rows, labels, roles)


def _number(value: object) -> float | None:
    return None if value is None else number(str(value))


def _of_column(texts: Sequence[str], column: str, scans: Sequence[FoundScan]) -> Rates:
    values = [number(text) if text else None for text in texts]
    wrong = [
        f"'{text}' of {scan.name}"
        for text, value, scan in zip(texts, values, scans, strict=True)
        if text and value is None
    ]
    if wrong:
        raise UserInputError(
            f"--tr_column: '{column}' holds {some_of(wrong, 3)}, expected seconds. Correct the "
            f"table, or give --tr or --tr_table."
        )
    return _checked(values, f"column {column}", f"--tr_column: '{column}'")


def _checked(values: Sequence[float | None], source: str, where: str) -> Rates:
    """Refuse what is no repetition time; milliseconds become seconds."""
    known = [value for value in values if value is not None]
    notes: tuple[str, ...] = ()
    if known and min(known) >= _MILLISECONDS:
        values = [None if value is None else value / 1000 for value in values]
        notes = (f"{where} holds {min(known):g} to {max(known):g}, taken as milliseconds.",)
    for value in values:
        try:
            check_tr(value)
        except UserInputError as error:
            raise UserInputError(f"{where}: {str(error).removeprefix('--tr: ')}") from None
    return Rates(tuple(values), source, notes)


def _of_table(
    rows: Sequence[Mapping[str, str]], path: Path, labels: Labels, roles: Mapping[str, str]
) -> Rates:
    if not path.is_file():
        raise UserInputError(f"--tr_table: '{path}' does not exist.")
    table = read_table(path)
    lower = {name.lower(): name for name in table.columns}
    tr = next((lower[name] for name in _COLUMNS if name in lower), None)
    others = [name for name in table.columns if name != tr]
    by = next((name for name in others if name in labels.columns), None)
    column = by
    if by is None and "site" in roles:
        column = roles["site"]
        by = next((name for name in others if name.lower() == "site"), None)
    if tr is None or by is None or column is None:
        raise UserInputError(
            f"--tr_table: '{path}' has the columns {some_of(table.columns)}, expected 'TR' and one "
            f"that the labels have, too, or 'site' ({some_of(labels.columns, 8)})."
        )
    of_value: dict[str, float] = {}
    for key, text in zip(table.column(by, ""), table.column(tr, ""), strict=True):
        value = number(text)
        if value is None:
            raise UserInputError(
                f"--tr_table: '{path}' has '{text}' as TR of {key}, expected seconds."
            )
        if of_value.setdefault(category(key).lower(), value) != value:
            raise UserInputError(f"--tr_table: '{path}' has two TRs of {key}. Keep one row of it.")
    keys = [category(row.get(column, "")).lower() for row in rows]
    found = _checked([of_value.get(key) for key in keys], f"{path.name}, by {column}", "--tr_table")
    absent = sorted({key for key in keys if key and key not in of_value})
    if absent:
        note = f"--tr_table has no TR of {some_of(absent)} ({column})."
        found = found._replace(notes=(*found.notes, note))
    return found


def _of_sites(
    scans: Sequence[FoundScan],
    rows: Sequence[Mapping[str, str]],
    labels: Labels,
    roles: Mapping[str, str],
) -> Rates:
    known = SITE_TR.get(labels.cohort.name, {})
    unknown = "The TR is unknown; give --tr SECONDS, --tr_column or --tr_table."
    found = []
    for scan, row in zip(scans, rows, strict=True):
        file = scan.name.rpartition("_")[0].lower()
        site = category(row.get(roles.get("site", ""), "")).lower()
        found.append(known.get(file, known.get(site)))
    if all(value is None for value in found):
        return Rates(tuple(found), "unknown", (unknown,))
    notes: tuple[str, ...] = ()
    absent = [scan.name for scan, value in zip(scans, found, strict=True) if value is None]
    if absent:
        notes = (f"the TR of {len(absent)} scans is unknown ({some_of(absent, 5)}).",)
    return Rates(tuple(found), f"published by the sites of {labels.cohort.name}", notes)
