"""Files of scans, read without changes: a list, ``{id: matrix}``, or the columns of CNI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import category
from neuromamba.data.cohorts.tables import ABSENT
from neuromamba.data.regions.safe_loading import load_objects


class ScanFile(NamedTuple):
    """A file of scans.

    Attributes:
        path: of it.
        flag: what named it, or the folder it is in.
    """

    path: Path
    flag: str = "--data_dir"

    def error(self, what: str) -> UserInputError:
        """``--data_dir: '/path/to/file' what``."""
        return UserInputError(f"{self.flag}: '{self.path}' {what}")


class RawScan(NamedTuple):
    """A scan before anything is known about it.

    Attributes:
        subject: name.
        pheno: what the file says of it.
        series: not checked yet; should be a matrix.
    """

    subject: str
    pheno: Mapping[str, Any]
    series: Any


def read_scans(file: ScanFile, subjects: Iterable[str] | None) -> list[RawScan]:
    """All scans of a file.

    Args:
        file: the file.
        subjects: of the table, which are those of the columns of CNI; None where there is none.

    Raises:
        UserInputError: there is no such file, it is damaged, or holds something else.
    """
    if file.path.suffix == ".npz":
        return _read_columns(file, subjects)
    return _read_list(file)


def _read_list(file: ScanFile) -> list[RawScan]:
    """A list of ``{"roiTimeseries": ..., "pheno": {...}}``, or ``{id: array}``."""
    found = load_objects(file.path, file.flag)
    if not isinstance(found, Mapping | Sequence | np.ndarray) or isinstance(found, str | bytes):
        raise file.error(f"holds {type(found).__name__}, expected a list of scans.")
    if not len(found):
        raise file.error("holds no scan.")
    if isinstance(found, Mapping):
        return [RawScan(str(key), {}, value) for key, value in found.items()]
    raw = []
    for number, item in enumerate(found):
        known = isinstance(item, Mapping) and "roiTimeseries" in item
        pheno = item.get("pheno") if known else None
        if not isinstance(pheno, Mapping) or not spelling(pheno.get("subjectId")):
            got = sorted(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
            raise file.error(
                f"holds as scan {number + 1} {got}, expected "
                f'{{"roiTimeseries": array, "pheno": {{"subjectId": ...}}}}.'
            )
        raw.append(RawScan(str(pheno["subjectId"]), pheno, item["roiTimeseries"]))
    return raw


def _read_columns(file: ScanFile, subjects: Iterable[str] | None) -> list[RawScan]:
    """The layout of ``cni_roi``: all scans' frames in one array, subjects as in the table."""
    if subjects is None:
        raise file.error("has no table of subjects; expected .npy or .pickle.")
    try:
        with np.load(file.path, allow_pickle=False) as archive:
            missing = {"aal", "length"} - set(archive)
            if missing:
                raise file.error(f"lacks {', '.join(sorted(missing))}.")
            series, lengths = archive["aal"], archive["length"]
    except FileNotFoundError:
        raise file.error("does not exist.") from None
    except (OSError, ValueError, EOFError) as error:
        raise file.error(f"cannot be read ({' '.join(str(error).split())}).") from None
    names = list(subjects)
    if len(lengths) != len(names) or lengths.sum() != len(series):
        raise file.error(
            f"has {len(lengths)} scans with {lengths.sum()} frames, expected {len(names)} as in "
            f"its table and {len(series)} as in its array."
        )
    parts = np.split(series, np.cumsum(lengths)[:-1])
    return [RawScan(name, {}, part) for name, part in zip(names, parts, strict=True)]


def spelling(value: Any) -> str:
    """Return the text of a cell, where 1.0 is 1; "" if it is missing."""
    found = "" if value is None else category(str(value).strip())
    return "" if found.lower() in ABSENT else found


def some_of(values: Iterable[Any], most: int = 5) -> str:
    """A few of them, for a message."""
    found = list(map(str, values))
    return ", ".join(found[:most]) + (" ..." if len(found) > most else "")
