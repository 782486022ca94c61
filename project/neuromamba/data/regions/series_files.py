"""One scan's series of regions from a file of numbers: CSV, TSV, AFNI's 1D, Parquet, .npy.

Tables have one row per frame and one column per region, and may name the regions in their first
line; ``.npy`` arrays are regions x time, as the files of ``neuromamba regions train``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import number

# Columns that count frames and are no region, in lower case.
NO_REGION = ("", "time", "frame", "frames", "volume", "tr", "index", "t", "unnamed: 0")
_COMMENT = "#"


class SeriesFile(NamedTuple):
    """What a file holds.

    Attributes:
        values: float64 [frames, regions] of a table; of ``.npy`` [regions, frames], turned to
            [frames, regions].
        names: of the regions, if the file names them.
        by_row: whether rows of the file are regions (``.npy``), for messages.
    """

    values: np.ndarray
    names: tuple[str, ...] | None
    by_row: bool = False


def read_series_file(path: Path) -> SeriesFile:
    """Read one scan.

    Raises:
        UserInputError: not there, of another kind, damaged, not a matrix of numbers.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise UserInputError(
            f"{path}: expected the series of one scan ({', '.join(READERS)}), or a 4D NIfTI file "
            f"with --atlas."
        )
    try:
        found = READERS[suffix](path)
    except OSError as error:
        raise UserInputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if found.values.ndim != 2 or not found.values.size:
        raise UserInputError(
            f"{path}: holds numbers of shape {found.values.shape}, expected the matrix of one scan."
        )
    return found


def _table(path: Path, separator: str | None) -> SeriesFile:
    """Read lines of numbers, the first of which may be names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserInputError(f"{path}: is no text file.") from None
    lines = [
        line
        for line in text.splitlines()
        if line.strip() and not line.lstrip().startswith(_COMMENT)
    ]
    if separator is None:
        rows = [line.split() for line in lines]
    else:
        rows = list(csv.reader(lines, delimiter=separator))
    if not rows:
        raise UserInputError(f"{path}: holds no numbers.")
    names: tuple[str, ...] | None = None
    if any(number(cell) is None for cell in rows[0]):
        names, rows = tuple(cell.strip() for cell in rows[0]), rows[1:]
    return _numbers(path, rows, names, first=2 if names else 1)


def _numbers(
    path: Path, rows: Sequence[Sequence[str]], names: tuple[str, ...] | None, first: int
) -> SeriesFile:
    width = len(rows[0]) if names is None and rows else len(names or ())
    values = np.empty((len(rows), width))
    for place, row in enumerate(rows):
        cells = [number(cell) for cell in row]
        if len(cells) != width or any(cell is None for cell in cells):
            bad = next((cell for cell in row if number(cell) is None), f"{len(row)} cells")
            raise UserInputError(
                f"{path}: line {place + first} has '{bad}', expected {width} numbers, one per "
                f"region."
            )
        values[place] = cells
    return _without_counter(values, names)


def _without_counter(values: np.ndarray, names: tuple[str, ...] | None) -> SeriesFile:
    """Leave out a first column that counts frames."""
    if names and names[0].lower() in NO_REGION:
        return SeriesFile(values[:, 1:], names[1:])
    return SeriesFile(values, names)


def _npy(path: Path) -> SeriesFile:
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserInputError(
            f"{path}: cannot be read as an array of numbers ({str(error).split('.')[0]}). Files of "
            f"Python objects are for neuromamba regions train; save one scan's matrix."
        ) from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
        raise UserInputError(f"{path}: holds no array of real numbers.")
    return SeriesFile(found.astype(np.float64).T, None, by_row=True)


def _parquet(path: Path) -> SeriesFile:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        columns = [column.to_numpy(zero_copy_only=False) for column in table.columns]
        values = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        first = str(error).split("\n")[0]
        raise UserInputError(f"{path}: no table of numbers ({first}).") from None
    return _without_counter(values, tuple(table.column_names))


READERS: Mapping[str, Callable[[Path], SeriesFile]] = {
    ".csv": lambda path: _table(path, ","),
    ".tsv": lambda path: _table(path, "\t"),
    ".1d": lambda path: _table(path, None),
    ".npy": _npy,
    ".parquet": _parquet,
}
