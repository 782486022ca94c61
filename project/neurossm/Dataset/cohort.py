"""A data set of ROI time series in memory: read, oriented, labelled and checked.

Shapes: N regions, T frames.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from project.module.config import UserInputError
from project.neurossm.Dataset.datasetDetails import DatasetDetails
from project.neurossm.Dataset.safe_loading import load_objects

SUBJECT_COLUMNS = ("Subject", "subjectId", "subject", "participant_id", "Subj")
_MISSING = ("n/a", "nan")  # a cell without a value; n/a is BIDS's


class Scan(NamedTuple):
    """A scan.

    Attributes:
        subject: name.
        scan: name, no other scan has it.
        label: index of its class.
        series: float32 [N, T], as it stands in the file.
        group: what may not be split: the subject, or its family.
    """

    subject: str
    scan: str
    label: int
    series: np.ndarray
    group: str


@dataclass(frozen=True)
class Cohort:
    """A data set.

    Attributes:
        name: ``--dataset``.
        details: its entry, classes filled in.
        scans: all of them.
        notes: what a user should know of them, a sentence each.
    """

    name: str
    details: DatasetDetails
    scans: tuple[Scan, ...]
    notes: tuple[str, ...] = ()

    @property
    def rois(self) -> int:
        """N."""
        return self.scans[0].series.shape[0]

    @property
    def labels(self) -> np.ndarray:
        """int [scans]."""
        return np.array([scan.label for scan in self.scans])

    @property
    def groups(self) -> np.ndarray:
        """str [scans]."""
        return np.array([scan.group for scan in self.scans])

    @property
    def hash(self) -> str:
        """Of all that training and testing see."""
        digest = hashlib.blake2b(digest_size=16)
        for scan in self.scans:
            digest.update(repr((*scan[:3], scan.group, scan.series.shape)).encode())
            digest.update(scan.series.tobytes())
        return digest.hexdigest()


class _Raw(NamedTuple):
    """A scan before anything is known about it: as its file has it."""

    subject: str
    pheno: Mapping[str, Any]
    series: Any


def load_cohort(
    name: str,
    details: DatasetDetails,
    data_dir: Path,
    data_file: Path | None = None,
    group_column: str | None = None,
    drop_bad_scans: bool = False,
) -> Cohort:
    """Read a data set.

    Args:
        name: ``--dataset``.
        details: its entry.
        data_dir: ``--data_dir``.
        data_file: ``--data_file``, in place of the entry's.
        group_column: column of the subject table, or key of ``pheno`` where there is none, whose
            values are not split (families).
        drop_bad_scans: leave out scans with values that are not finite, instead of refusing.

    Raises:
        UserInputError: names file, scan or column, and what was expected there.
    """
    path = data_file or data_dir / details.file
    table = _subject_table(details, data_dir, group_column)
    notes: list[str] = []
    raw = _read_columns(path, table) if path.suffix == ".npz" else _read_list(path)
    if table is not None:
        raw = _known_subjects(raw, table, details, path, notes)
    raw, label_of = _labelled(raw, table, details, path, notes)
    groups = _groups(raw, table, group_column)
    classes = details.classes or tuple(sorted(set(label_of)))
    if len(classes) < 2:
        raise UserInputError(
            f"--target: all scans of '{path}' have '{details.target}' {classes}; a classification "
            f"needs two classes."
        )
    rois = details.rois or _common_rois(raw, path)
    names = _scan_names(raw, label_of)
    scans, bad = [], []
    for item, label, scan in zip(raw, label_of, names, strict=True):
        series = _oriented(item.series, rois, f"'{path}', scan {scan}")
        if not np.isfinite(series).all():
            bad.append(scan)
            continue
        scans.append(Scan(item.subject, scan, classes.index(label), series, groups[item.subject]))
    if bad and not drop_bad_scans:
        raise UserInputError(
            f"--data_dir: '{path}' has values that are not finite in {len(bad)} scans "
            f"({_some(bad)}). Mend them, or leave them out with --drop_bad_scans."
        )
    if bad:
        notes.append(f"{len(bad)} scans with values that are not finite were left out: {bad}.")
    if not scans:
        raise UserInputError(f"--data_dir: '{path}' has no scan that can be used.")
    other = [s.scan for s in scans if details.frames and s.series.shape[1] not in details.frames]
    if other:
        usual = " or ".join(map(str, details.frames))
        notes.append(f"{len(other)} scans do not have the usual {usual} frames ({_some(other)}).")
    notes += _constant_regions(scans)
    if details.rois is None and all(rois > scan.series.shape[1] for scan in scans):
        notes.append(f"{rois} regions and fewer frames: matrices must be regions x time.")
    return Cohort(name, replace(details, classes=classes), tuple(scans), tuple(notes))


# ------------------------------------------------------------------------------ files


def _read_list(path: Path) -> list[_Raw]:
    """A list of ``{"roiTimeseries": ..., "pheno": {...}}``, or ``{id: array}``."""
    found = load_objects(path, "--data_dir")
    if isinstance(found, Mapping):
        return [_Raw(str(key), {}, value) for key, value in found.items()]
    if not isinstance(found, Sequence | np.ndarray) or not len(found):
        raise UserInputError(
            f"--data_dir: '{path}' holds {type(found).__name__}, expected a list of scans."
        )
    raw = []
    for number, item in enumerate(found):
        known = isinstance(item, Mapping) and "roiTimeseries" in item
        pheno = item.get("pheno") if known else None
        if not isinstance(pheno, Mapping) or not _spelling(pheno.get("subjectId")):
            raise UserInputError(
                f"--data_dir: '{path}', scan {number + 1}: expected "
                f'{{"roiTimeseries": array, "pheno": {{"subjectId": ...}}}}, got '
                f"{sorted(map(str, item)) if isinstance(item, Mapping) else type(item).__name__}."
            )
        raw.append(_Raw(str(pheno["subjectId"]), pheno, item["roiTimeseries"]))
    return raw


def _read_columns(path: Path, table: pd.DataFrame | None) -> list[_Raw]:
    """The layout of ``cni_roi``: all scans' frames in one array, subjects as in the table."""
    if not path.is_file():
        raise UserInputError(f"--data_dir: '{path}' does not exist.")
    with np.load(path, allow_pickle=False) as archive:
        missing = {"aal", "length"} - set(archive)
        if missing or table is None:
            raise UserInputError(
                f"--data_dir: '{path}' lacks {', '.join(sorted(missing)) or 'its subject table'}."
            )
        series, lengths = archive["aal"], archive["length"]
    if len(lengths) != len(table) or lengths.sum() != len(series):
        raise UserInputError(
            f"--data_dir: '{path}' has {len(lengths)} scans with {lengths.sum()} frames, expected "
            f"{len(table)} as in its table and {len(series)} as in its array."
        )
    parts = np.split(series, np.cumsum(lengths)[:-1])
    return [_Raw(name, {}, part) for name, part in zip(table.index, parts, strict=True)]


def _subject_table(
    details: DatasetDetails, data_dir: Path, group_column: str | None
) -> pd.DataFrame | None:
    """The table of subjects, indexed by their names; None if the data set has none."""
    if details.pheno_file is None:
        return None
    path = data_dir / details.pheno_file
    if not path.is_file():
        raise UserInputError(
            f"--data_dir: '{path}' does not exist; it has the columns "
            f"{', '.join(_wanted_columns(details, group_column))}. docs/neurossm.md says where it "
            f"comes from."
        )
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    subject = next((name for name in SUBJECT_COLUMNS if name in table), None)
    absent = [name for name in _wanted_columns(details, group_column)[1:] if name not in table]
    if subject is None or absent:
        raise UserInputError(
            f"--data_dir: '{path}' has no column {', '.join(absent) or SUBJECT_COLUMNS[0]}; its "
            f"columns are {', '.join(table.columns[:12])}."
        )
    doubled = table[subject][table[subject].duplicated()]
    if len(doubled):
        raise UserInputError(f"--data_dir: '{path}' has {_some(doubled)} more than once.")
    return table.set_index(subject)


def _wanted_columns(details: DatasetDetails, group_column: str | None) -> list[str]:
    wanted = [SUBJECT_COLUMNS[0], *details.pheno_keep]
    wanted += [name for name in (details.pheno_target, group_column) if name]
    return wanted


def _known_subjects(
    raw: list[_Raw], table: pd.DataFrame, details: DatasetDetails, path: Path, notes: list[str]
) -> list[_Raw]:
    """Scans of the subjects that stand in the table and are to be kept."""
    unknown = sorted({item.subject for item in raw} - set(table.index))
    if len(unknown) == len({item.subject for item in raw}):
        raise UserInputError(
            f"--data_dir: no subject of '{path}' ({_some(unknown)}) is in '{details.pheno_file}' "
            f"({_some(table.index)}); are they written in the same way?"
        )
    if unknown:
        notes.append(f"{len(unknown)} subjects are not in the table and were left out: {unknown}.")
    kept = table
    for column, value in details.pheno_keep.items():
        kept = kept[kept[column] == value]
    found = [item for item in raw if item.subject in kept.index]
    if details.pheno_keep:
        wanted = ", ".join(f"{key} {value}" for key, value in details.pheno_keep.items())
        if not found:
            raise UserInputError(
                f"--data_dir: no subject of '{path}' has {wanted} in '{details.pheno_file}'."
            )
        notes.append(f"kept the {len(found)} of {len(raw)} scans of subjects with {wanted}.")
    return found


def _labelled(
    raw: Sequence[_Raw],
    table: pd.DataFrame | None,
    details: DatasetDetails,
    path: Path,
    notes: list[str],
) -> tuple[list[_Raw], list[str]]:
    """Scans with a label, and the class of each by name."""
    kept, found, without = [], [], []
    for item in raw:
        if details.pheno_target is not None and table is not None:
            value: Any = table.loc[item.subject, details.pheno_target]
        elif details.target in item.pheno:
            value = item.pheno[details.target]
        else:
            raise UserInputError(
                f"--target: a scan of {item.subject} in '{path}' has no '{details.target}' in its "
                f"pheno ({', '.join(map(str, item.pheno)) or 'it has none'})."
            )
        spelling = _spelling(value)
        if not spelling:
            without.append(item.subject)
            continue
        label = details.labels.get(spelling.lower()) if details.labels else spelling
        if not label:
            raise UserInputError(
                f"--target: '{details.target}' of {item.subject} is '{spelling}', expected one of "
                f"{', '.join(sorted(details.labels))}."
            )
        kept.append(item)
        found.append(label)
    if without:
        notes.append(
            f"{len(without)} scans without a '{details.target}' were left out ({_some(without)})."
        )
    return kept, found


def _spelling(value: Any) -> str:
    """Of a cell; "" if it is missing."""
    found = "" if value is None else str(value).strip()
    return "" if found.lower() in _MISSING else found


def _groups(raw: Iterable[_Raw], table: pd.DataFrame | None, column: str | None) -> dict[str, str]:
    """Subject -> what may not be split: the subject, or its family where that is known."""
    found: dict[str, str] = {}
    for item in raw:
        row = item.pheno if table is None else table.loc[item.subject]
        if column is not None and column not in row:
            raise UserInputError(
                f"--group_column: a scan of {item.subject} has no '{column}' in its pheno "
                f"({', '.join(map(str, row)) or 'it has none'})."
            )
        value = "" if column is None else _spelling(row[column])
        group = f"{column} {value}" if value else item.subject
        if found.setdefault(item.subject, group) != group:
            raise UserInputError(
                f"--group_column: scans of {item.subject} differ in '{column}'; a subject has one "
                f"family."
            )
    return found


# ------------------------------------------------------------------------------ series


def _common_rois(raw: Sequence[_Raw], path: Path) -> int:
    """The number of regions, where the data set does not say: the first dimension of all scans.

    Scans that are turned cannot be told from scans of another atlas, so none is turned here.
    """
    shapes = [np.shape(item.series) for item in raw]
    if any(len(shape) != 2 for shape in shapes):
        raise UserInputError(f"--data_file: '{path}' has scans that are not matrices.")
    counts = Counter(shape[0] for shape in shapes)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        other = [i.subject for i, shape in zip(raw, shapes, strict=True) if shape[0] != usual]
        raise UserInputError(
            f"--data_file: scans of '{path}' have {_some(sorted(counts))} rows; {_some(other)} "
            f"differ. Expected regions x time, with the same regions in all of them; turn matrices "
            f"that are time x regions."
        )
    return int(next(iter(counts)))


def _oriented(series: Any, rois: int, where: str) -> np.ndarray:
    """float32 [N, T]; time x regions is turned, and a square matrix is regions x time."""
    found = np.asarray(series)
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise UserInputError(
            f"--data_dir: {where}: expected a matrix of numbers, regions x time, got "
            f"{found.dtype} of shape {found.shape}."
        )
    as_it_is, turned = found.shape[0] == rois, found.shape[1] == rois
    if not as_it_is and not turned:
        raise UserInputError(
            f"--data_dir: {where}: got {found.shape[0]} x {found.shape[1]}, expected {rois} "
            f"regions x time. Is it of another atlas?"
        )
    return np.array(found if as_it_is else found.T, dtype=np.float32, order="C")


def _constant_regions(scans: Iterable[Scan]) -> list[str]:
    """Regions without signal: parcels that a field of view or a coarse grid has emptied."""
    count: Counter[int] = Counter()
    total = 0
    for scan in scans:
        count.update(np.flatnonzero(np.ptp(scan.series, axis=1) == 0).tolist())
        total += 1
    if not count:
        return []
    everywhere = sorted(region + 1 for region, scans_with in count.items() if scans_with == total)
    note = f"{len(count)} regions are constant in some scans and enter as zeros"
    return [f"{note}; in all scans: {everywhere}." if everywhere else f"{note}."]


def _scan_names(raw: Sequence[_Raw], labels: Sequence[str]) -> list[str]:
    """``subject``, or ``subject_label`` or ``subject_2`` ... where there are several."""
    subjects = Counter(item.subject for item in raw)
    pairs = Counter((item.subject, label) for item, label in zip(raw, labels, strict=True))
    seen: Counter[tuple[str, str]] = Counter()
    names = []
    for item, label in zip(raw, labels, strict=True):
        key = (item.subject, label)
        seen[key] += 1
        name = item.subject
        if subjects[item.subject] > pairs[key]:
            name += f"_{label}"
        if pairs[key] > 1:
            name += f"_{seen[key]}"
        names.append(name)
    return names


def _some(values: Iterable[Any], most: int = 5) -> str:
    """A few of them, for a message."""
    found = list(map(str, values))
    return ", ".join(found[:most]) + (" ..." if len(found) > most else "")
