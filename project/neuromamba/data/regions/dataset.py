"""A data set of ROI time series in memory: read, oriented, labelled and checked.

Shapes: N regions, T frames.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.registry import DatasetDetails
from neuromamba.data.regions.scan_files import RawScan, ScanFile, read_scans, some
from neuromamba.data.regions.subjects import (
    families,
    known_subjects,
    labelled,
    scan_names,
    subject_table,
)


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
    file = ScanFile(data_file, "--data_file") if data_file else ScanFile(data_dir / details.file)
    table = subject_table(details, data_dir, group_column)
    notes: list[str] = []
    raw = read_scans(file, None if table is None else table.index)
    if table is not None:
        raw = known_subjects(raw, table, details, file, notes)
    raw, label_of = labelled(raw, table, details, file, notes)
    group_of = families(raw, table, group_column)
    classes = details.classes or tuple(sorted(set(label_of)))
    if len(classes) < 2:
        raise UserInputError(
            f"--target: '{file.path}' has the classes '{details.target}' {list(classes)}; a "
            f"classification needs two."
        )
    rois = details.rois or _common_rois(raw, file)
    scans, bad = [], []
    names = scan_names(raw, label_of)
    for item, label, scan in zip(raw, label_of, names, strict=True):
        series = _oriented(item.series, rois, scan, file)
        if not np.isfinite(series).all():
            bad.append(scan)
            continue
        scans.append(Scan(item.subject, scan, classes.index(label), series, group_of[item.subject]))
    if bad and not drop_bad_scans:
        raise file.error(
            f"has values that are not finite in single precision in {len(bad)} scans "
            f"({some(bad)}). Mend them, or leave them out with --drop_bad_scans."
        )
    if bad:
        notes.append(f"{len(bad)} scans with values that are not finite were left out: {bad}.")
    if not scans:
        raise file.error("has no scan that can be used.")
    notes += _copies(scans, file)
    other = [s.scan for s in scans if details.frames and s.series.shape[1] not in details.frames]
    if other:
        usual = " or ".join(map(str, details.frames))
        notes.append(f"{len(other)} scans do not have the usual {usual} frames ({some(other)}).")
    notes += _constant_regions(scans)
    if details.rois is None and all(rois > scan.series.shape[1] for scan in scans):
        notes.append(f"{rois} regions and fewer frames: matrices must be regions x time.")
    return Cohort(name, replace(details, classes=classes), tuple(scans), tuple(notes))


def _common_rois(raw: Sequence[RawScan], file: ScanFile) -> int:
    """The number of regions, where the data set does not say: the first dimension of all scans.

    Scans that are turned cannot be told from scans of another atlas, so none is turned here.
    """
    for item in raw:
        _matrix(item.series, item.subject, file)
    counts = Counter(np.shape(item.series)[0] for item in raw)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        other = [item.subject for item in raw if np.shape(item.series)[0] != usual]
        raise file.error(
            f"has scans of {some(sorted(counts))} rows; {some(other)} differ. Expected regions x "
            f"time, with the same regions in all of them; turn matrices that are time x regions."
        )
    return int(next(iter(counts)))


def _matrix(series: Any, name: str, file: ScanFile) -> np.ndarray:
    """Refuse what is not one, of numbers."""
    try:
        found = np.asarray(series)
    except ValueError:  # rows of different lengths
        found = np.empty(0, dtype=object)
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise file.error(
            f"holds as scan {name} {found.dtype} of shape {found.shape}, expected a matrix of "
            f"numbers, regions x time."
        )
    return found


def _oriented(series: Any, rois: int, scan: str, file: ScanFile) -> np.ndarray:
    """float32 [N, T]; time x regions is turned, and a square matrix is regions x time."""
    found = _matrix(series, scan, file)
    as_it_is, turned = found.shape[0] == rois, found.shape[1] == rois
    if not as_it_is and not turned:
        raise file.error(
            f"holds as scan {scan} {found.shape[0]} x {found.shape[1]} numbers, expected {rois} "
            f"regions x time. Is it of another atlas?"
        )
    with np.errstate(over="ignore"):  # infinite then, and told of as such
        return np.array(found if as_it_is else found.T, dtype=np.float32, order="C")


def _copies(scans: Sequence[Scan], file: ScanFile) -> list[str]:
    """Scans of the same values; in two groups they would be trained on and tested.

    Raises:
        UserInputError: there are such in two groups.
    """
    first: dict[bytes, Scan] = {}
    copies = []
    for scan in scans:
        if not np.ptp(scan.series):
            continue  # nothing but one value: reported as constant
        other = first.setdefault(hashlib.blake2b(scan.series.tobytes()).digest(), scan)
        if other.group != scan.group:
            raise file.error(
                f"has the same values in scans {other.scan} and {scan.scan}. One of them would be "
                f"trained on and the other tested; remove one."
            )
        if other is not scan:
            copies.append(scan.scan)
    return [f"{len(copies)} scans are copies of others ({some(copies)})."] if copies else []


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
