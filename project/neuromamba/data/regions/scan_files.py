"""Files of scans, read without changes: lists, dictionaries, tables, or the columns of CNI."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.common.text import spelling
from neuromamba.data.regions.concatenated import read_concatenated
from neuromamba.data.regions.safe_loading import load_objects
from neuromamba.data.regions.scan_tables import SUFFIXES, read_scan_folder, read_scan_table

logger = logging.getLogger(__name__)
# Names of the arrays of a dictionary; "timeseires" is how a widely used script spells it.
_SERIES = ("timeseries", "time_series", "timeseires", "roitimeseries", "series")
_SUBJECTS = ("subject", "subjectid", "subject_id", "sub_id", "id")


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

    @property
    def truth(self) -> Path:
        """What ``neuromamba regions synthetic`` planted into the scans, if it wrote them."""
        return self.path.with_name(f"{self.path.name}.truth.json")

    @property
    def synthetic_frames(self) -> tuple[int, ...]:
        """The frames of synthetic scans, which are as many as were asked for; () of real ones."""
        try:
            return (int(parse_json(self.truth.read_text(encoding="utf-8"))["synthetic"]["frames"]),)
        except (OSError, ValueError, KeyError, TypeError):
            return ()


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
    if file.path.is_dir():
        return [RawScan(*scan) for scan in read_scan_folder(file.path, file.flag)]
    if file.path.suffix.lower() in SUFFIXES:
        return [RawScan(*scan) for scan in read_scan_table(file.path, file.flag)]
    if file.path.suffix == ".npz":
        return _read_columns(file, subjects)
    return _read_list(file)


def _read_list(file: ScanFile) -> list[RawScan]:
    """A list of ``{"roiTimeseries": ..., "pheno": {...}}``, ``{id: matrix}``, or arrays."""
    found = load_objects(file.path, file.flag)
    if not isinstance(found, Mapping | Sequence | np.ndarray) or isinstance(found, str | bytes):
        raise file.error(f"holds {type(found).__name__}, expected a list of scans.")
    if not len(found):
        raise file.error("holds no scan.")
    if isinstance(found, Mapping) and (name := _name_of(found, _SERIES)) is not None:
        return _read_arrays(file, found, name)
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


def _name_of(found: Mapping[Any, Any], names: Iterable[str]) -> Any:
    """The key that is one of ``names``, without regard to case; None if there is none."""
    lower = {str(key).lower(): key for key in found}
    return next((lower[name] for name in names if name in lower), None)


def _read_arrays(file: ScanFile, found: Mapping[Any, Any], name: Any) -> list[RawScan]:
    """``{"timeseries": [S, regions, frames], "label": [S], ...}``, an array for each quantity."""
    series = found[name]
    count = len(series) if isinstance(series, Sequence | np.ndarray) else 0
    if not count:
        raise file.error(f"holds no scan under '{name}'.")
    pheno: dict[str, Sequence[Any]] = {}
    for key, values in found.items():
        flat = isinstance(values, Sequence | np.ndarray) and np.ndim(values[:1]) == 1
        if key == name or not flat or isinstance(values, str | bytes):
            continue  # other matrices, such as correlations
        if len(values) != count:
            raise file.error(
                f"holds {count} scans under '{name}' and {len(values)} values under '{key}', "
                f"expected as many."
            )
        pheno[str(key)] = values.tolist() if isinstance(values, np.ndarray) else values
    subject = _name_of(pheno, _SUBJECTS)
    if subject is None:
        logger.warning(
            "warning: %s: '%s' does not say whose scans they are; each counts as another person, "
            "and two scans of one may be trained on and tested. Add an array 'subject'.",
            file.flag,
            file.path,
        )
    rows = []
    for i in range(count):
        who = str(i + 1) if subject is None else str(pheno[subject][i])
        row = {key: values[i] for key, values in pheno.items()}
        rows.append(RawScan(who, {**row, "subjectId": who}, series[i]))
    return rows


def _read_columns(file: ScanFile, subjects: Iterable[str] | None) -> list[RawScan]:
    """The layout of ``cni_roi``: all scans' frames in one array, subjects as in the table."""
    if subjects is None:
        raise file.error("has no table of subjects; expected .npy or .pickle.")
    found = read_concatenated(file.path, file.flag, "aal")
    names = list(subjects)
    if len(found.lengths) != len(names):
        raise file.error(f"has {len(found.lengths)} scans, expected {len(names)} as in its table.")
    return [RawScan(name, {}, one) for name, one in zip(names, found.scans(), strict=True)]
