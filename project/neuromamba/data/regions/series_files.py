"""One scan's series of regions from a file of numbers: CSV, TSV, AFNI's 1D, Parquet, .npy.

Tables have one row per frame and one column per region, and may name the regions in their first
line; ``.npy`` arrays are regions x time, as the files of ``neuromamba regions train``. The headers
of the Preprocessed Connectomes Project (``#1 #2``) and of AFNI's 3dROIstats (ADHD-200) are known.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import number
from neuromamba.data.cohorts.tables import ABSENT

# Columns that count frames and are no region, in lower case.
NO_REGION = ("", "time", "frame", "frames", "volume", "tr", "index", "t", "unnamed: 0")
_COMMENT = "#"
_STATISTICS = re.compile(r"\ufeff?File\tSub-brick\t")  # first line of AFNI's 3dROIstats


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


def read_series_file(path: Path, absent: bool = False) -> SeriesFile:
    """Read one scan.

    Args:
        path: the file.
        absent: whether cells of a table may be NaN, n/a or empty, which gives NaN; else refused.

    Raises:
        UserInputError: not there, of another kind, damaged, not a matrix of numbers.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise UserInputError(
            f"{path}: expected the series of one scan ({', '.join(READERS)}), or a 4D NIfTI file "
            f"with --atlas."
        )
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserInputError(f"{path}: is no file, expected the series of one scan.")
    try:
        found = READERS[suffix](path, absent)
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise UserInputError(f"{path}: cannot be read ({reason}).") from None
    except csv.Error as error:
        raise UserInputError(f"{path}: no table of numbers ({error}).") from None
    except MemoryError:
        raise UserInputError(
            f"{path}: is larger than the memory of this machine, or damaged."
        ) from None
    if found.values.ndim != 2 or not found.values.size:
        raise UserInputError(
            f"{path}: holds numbers of shape {found.values.shape}, expected the matrix of one scan."
        )
    return found


def _table(path: Path, separator: str | None, absent: bool) -> SeriesFile:
    """Read lines of numbers, the first of which may be names."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserInputError(f"{path}: is no text file.") from None
    comments: list[str] = []
    lines: list[str] = []
    for one in text.splitlines():
        if one.lstrip().startswith(_COMMENT) and not lines:
            comments.append(one)
        elif one.strip() and not one.lstrip().startswith(_COMMENT):
            lines.append(one)
    if not lines:
        raise UserInputError(f"{path}: holds no numbers.")
    if _STATISTICS.match(lines[0]):
        return _region_statistics(path, lines, absent)
    first = _cells(lines[0], separator)
    names: tuple[str, ...] | None = None
    line = len(comments) + 1  # of the first frame, for messages
    if any(number(cell) is None for cell in first) or _are_labels(first, lines[1:2], separator):
        names, lines, line = tuple(cell.strip() for cell in first), lines[1:], line + 1
    elif separator is None:
        names = _labels(comments, len(first))
    width = len(first)
    values = _parsed(lines, separator, width)
    if values is None:
        rows = [_cells(one, separator) for one in lines]
        values = _numbers(path, rows, width, line, absent)
    return _without_counter(values, names)


def _cells(line: str, separator: str | None) -> list[str]:
    return line.split() if separator is None else next(csv.reader([line], delimiter=separator))


def _are_labels(first: Sequence[str], second: Sequence[str], separator: str | None) -> bool:
    """Whether a line of numbers is no frame: labels of an atlas, or pandas' count of columns.

    Such a line holds increasing integers, and the first frame holds other numbers, too.
    """
    cells = [cell.strip() for cell in first]
    if len(cells) < 3 or not all(cell.isdecimal() for cell in cells):
        return False
    labels = [int(cell) for cell in cells]
    below = [cell.strip() for line in second for cell in _cells(line, separator)]
    increase = all(one < other for one, other in pairwise(labels))
    return increase and not all(cell.isdecimal() for cell in below)


def _labels(comments: Sequence[str], width: int) -> tuple[str, ...] | None:
    """Labels of regions in a comment such as ``#1 #2 #3``, of the Preprocessed Connectomes."""
    for line in reversed(comments):
        found = line.split()
        if len(found) == width and all(re.fullmatch(r"#\S+", cell) for cell in found):
            return tuple(cell[1:] for cell in found)
    return None


def _region_statistics(path: Path, lines: Sequence[str], absent: bool) -> SeriesFile:
    """Read what AFNI's 3dROIstats writes: file, sub-brick, and ``Mean_<label>`` of each region."""
    head = [cell.strip() for cell in lines[0].split("\t")]
    for kind in ("Mean_", "NZMean_"):
        if columns := [i for i, cell in enumerate(head) if cell.startswith(kind)]:
            break
    else:
        raise UserInputError(f"{path}: has no column 'Mean_...', the means of regions.")
    names = tuple(head[i].removeprefix(kind) for i in columns)
    rows = [line.split("\t") for line in lines[1:]]
    if any(len(row) <= columns[-1] for row in rows):
        short = next(i for i, row in enumerate(rows) if len(row) <= columns[-1])
        raise UserInputError(
            f"{path}: line {short + 2} has {len(rows[short])} cells, expected {len(head)}."
        )
    picked = [[row[i].strip() for i in columns] for row in rows]
    values = _parsed(["\t".join(row) for row in picked], "\t", len(columns))
    if values is None:
        values = _numbers(path, picked, len(columns), 2, absent)
    return SeriesFile(values, names)


def _parsed(lines: Sequence[str], separator: str | None, width: int) -> np.ndarray | None:
    """Parse lines by numpy, which is fast; None if one is not as it should be."""
    if not lines:
        return np.empty((0, width))
    try:
        values = np.loadtxt(lines, delimiter=separator, ndmin=2, comments=None)
    except ValueError:
        return None
    return values if values.shape[1] == width and np.isfinite(values).all() else None


def _numbers(
    path: Path, rows: Sequence[Sequence[str]], width: int, first: int, absent: bool
) -> np.ndarray:
    """Parse cells one by one; slow, and names the line that is wrong."""
    values = np.empty((len(rows), width))
    for place, row in enumerate(rows):
        cells = [number(cell) for cell in row]
        if absent:
            known = zip(row, cells, strict=True)
            cells = [np.nan if cell.strip().lower() in ABSENT else one for cell, one in known]
        if len(cells) != width or any(cell is None for cell in cells):
            bad = next((cell for cell in row if number(cell) is None), f"{len(row)} cells")
            raise UserInputError(
                f"{path}: line {place + first} has '{_short(bad)}', expected {width} "
                f"number{'' if width == 1 else 's'}, one per region.{_separator_hint(bad)}"
            )
        values[place] = cells
    return values


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _separator_hint(cell: str) -> str:
    """The remedy of a table whose cells are not separated by what its name says; or ""."""
    if ";" not in cell:
        return ""
    return " Its cells are separated by ';': write it with ',' (.csv) and decimal points."


def _without_counter(values: np.ndarray, names: tuple[str, ...] | None) -> SeriesFile:
    """Leave out a first column that counts frames, and names that only count the columns."""
    if names and names[0].lower() in NO_REGION:
        values, names = values[:, 1:], names[1:]
    if names == tuple(map(str, range(len(names or ())))):
        names = None
    return SeriesFile(values, names)


def _npy(path: Path, absent: bool) -> SeriesFile:
    del absent  # a matter of texts
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


def _parquet(path: Path, absent: bool) -> SeriesFile:
    del absent
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


READERS: Mapping[str, Callable[[Path, bool], SeriesFile]] = {
    ".csv": lambda path, absent: _table(path, ",", absent),
    ".tsv": lambda path, absent: _table(path, "\t", absent),
    ".1d": lambda path, absent: _table(path, None, absent),
    ".npy": _npy,
    ".parquet": _parquet,
}
