"""Read a data set of ROI time series: oriented, labelled and checked.

Shapes: N regions, T frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import some_of
from neuromamba.data.regions.axes import check_axes
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.leaks import FAMILY_COLUMNS, check_copies, check_spellings
from neuromamba.data.regions.registry import DatasetDetails
from neuromamba.data.regions.row_filter import conditions, kept_rows
from neuromamba.data.regions.scan import Scan, constant_regions, number_matrix
from neuromamba.data.regions.scan_files import RawScan, ScanFile, read_scans
from neuromamba.data.regions.subjects import (
    confound_values,
    families,
    known_subjects,
    labelled,
    scan_names,
    subject_table,
)


def load_cohort(
    name: str,
    details: DatasetDetails,
    data_dir: Path,
    *,
    data_file: Path | None = None,
    file_flag: str = "--data_file",
    group_column: str | None = None,
    confounds: Sequence[str] = (),
    drop_bad_scans: bool = False,
    missing_codes: Sequence[str] = (),
    orientation: str = "auto",
    keep: Sequence[str] = (),
) -> Cohort:
    """Read a data set, and check it for leaks.

    Args:
        name: ``--dataset``.
        details: its entry.
        data_dir: ``--data_dir``.
        data_file: in place of the entry's file.
        file_flag: that named it.
        group_column: column of the subject table, or key of ``pheno`` where there is none, whose
            values are not split (families).
        confounds: columns, or keys, that are kept for a comparison with the scores.
        drop_bad_scans: leave out scans with values that are not finite, instead of refusing.
        missing_codes: labels that mean "not recorded"; their scans are left out.
        orientation: of ``ROI_ORIENTATIONS``: which axis of a matrix is time; "auto" takes regions x
            time, and refuses what looks otherwise.
        keep: conditions on columns that scans must meet, see ``row_filter``.

    Raises:
        UserInputError: names file, scan or column, and what was expected there.
    """
    file = ScanFile(data_file, file_flag) if data_file else ScanFile(data_dir / details.file)
    table = subject_table(details, data_dir, group_column)
    notes: list[str] = []
    raw = read_scans(file, None if table is None else table.index)
    if table is not None:
        raw = known_subjects(raw, table, details, file, notes)
    raw, label_of = labelled(raw, table, details, file, notes, missing_codes)
    if keep:
        columns_of = [
            {**item.pheno, **({} if table is None else table.loc[item.subject].to_dict())}
            for item in raw
        ]
        chosen, said = kept_rows(columns_of, conditions(keep), f"'{file.path}'")
        raw, label_of = [raw[i] for i in chosen], [label_of[i] for i in chosen]
        notes += said
    group_of = families(raw, table, group_column)
    classes: tuple[str, ...] = ()
    if not details.is_regression:
        classes = details.classes or tuple(sorted(set(label_of)))
    if classes and (unknown := sorted(set(label_of) - set(classes))):
        raise file.error(
            f"has the classes {some_of(unknown)} of '{details.target}', expected those of the data "
            f"set: {', '.join(classes)}."
        )
    if len(classes) < 2 and not details.is_regression:
        raise UserInputError(
            f"--target: '{file.path}' has the classes '{details.target}' {list(classes)}; a "
            f"classification needs two."
        )
    if orientation == "time_by_regions":
        raw = [item._replace(series=_matrix(item.series, item.subject, file).T) for item in raw]
    rois = details.rois or _common_rois(raw, file)
    scans, rows, bad = [], [], []
    names = scan_names(raw, label_of if classes else [""] * len(raw))
    for item, label, scan in zip(raw, label_of, names, strict=True):
        series = _oriented(item.series, rois, scan, file)
        if not np.isfinite(series).all():
            bad.append(scan)
            continue
        target = classes.index(label) if classes else float(label)
        scans.append(Scan(item.subject, scan, target, series, group_of[item.subject]))
        rows.append({**item.pheno, **({} if table is None else table.loc[item.subject].to_dict())})
    if bad and not drop_bad_scans:
        raise file.error(
            f"has values that are not finite in single precision in {len(bad)} scans "
            f"({some_of(bad)}). Correct them, or leave them out with --drop_bad_scans."
        )
    if bad:
        notes.append(f"{len(bad)} scans with values that are not finite were left out: {bad}.")
    if not scans:
        raise file.error("has no scan that can be used.")
    check_spellings(scans, file)
    check_axes(scans, file, told=orientation != "auto")
    notes.append(_of_labels(scans, replace(details, classes=classes)))
    notes += check_copies(scans, file)
    columns = {*(() if table is None else table.columns), *(key for r in raw for key in r.pheno)}
    if group_column is None and (found := [name for name in FAMILY_COLUMNS if name in columns]):
        notes.append(
            f"there is a column '{found[0]}', but families may be split; --group_column {found[0]} "
            f"keeps them together."
        )
    expected = details.frames and (*details.frames, *file.synthetic_frames)
    other = [s.scan for s in scans if expected and s.series.shape[1] not in expected]
    if other:
        usual = " or ".join(map(str, details.frames))
        notes.append(f"{len(other)} scans do not have the usual {usual} frames ({some_of(other)}).")
    notes += _constant_regions(scans)
    if details.rois is None and all(rois > scan.series.shape[1] for scan in scans):
        notes.append(f"{rois} regions and fewer frames: matrices must be regions x time.")
    kept = {scan.subject for scan in scans}
    return Cohort(
        name,
        replace(details, classes=classes),
        tuple(scans),
        tuple(notes),
        group_column,
        confound_values([r for r in raw if r.subject in kept], table, details, confounds),
        tuple(rows),
    )


def _of_labels(scans: Sequence[Scan], details: DatasetDetails) -> str:
    """Scans of each class, or the range of the values."""
    if details.is_regression:
        values = [scan.label for scan in scans]
        unit = f" {details.unit}" if details.unit else ""
        return (
            f"{details.target}: {min(values):.4g} to {max(values):.4g}{unit}, median "
            f"{np.median(values):.4g}{unit}."
        )
    counts = Counter(scan.label for scan in scans)
    named = (f"{counts[label]} {name}" for label, name in enumerate(details.classes))
    return f"{details.target}: {', '.join(named)} (scans)."


def _common_rois(raw: Sequence[RawScan], file: ScanFile) -> int:
    """The number of regions, where the data set does not say: the first dimension of all scans.

    Transposed scans are not distinguishable from scans of another atlas, so none is transposed.
    """
    for item in raw:
        _matrix(item.series, item.subject, file)
    counts = Counter(np.shape(item.series)[0] for item in raw)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        other = [item.subject for item in raw if np.shape(item.series)[0] != usual]
        raise file.error(
            f"has scans of {some_of(sorted(counts))} rows; {some_of(other)} differ. Expected "
            f"regions x time, with the same regions in all of them; turn "
            f"matrices that are time x regions."
        )
    return int(next(iter(counts)))


def _matrix(series: Any, name: str, file: ScanFile) -> np.ndarray:
    """Refuse what is not one, of numbers."""
    return number_matrix(series, f"{file.flag}: '{file.path}' holds as scan {name}")


def _oriented(series: Any, rois: int, scan: str, file: ScanFile) -> np.ndarray:
    """float32 [N, T]; time x regions is turned, and a square matrix is regions x time."""
    found = _matrix(series, scan, file)
    as_it_is, turned = found.shape[0] == rois, found.shape[1] == rois
    if not as_it_is and not turned:
        raise file.error(
            f"holds as scan {scan} {found.shape[0]} x {found.shape[1]} numbers, expected {rois} "
            f"regions x time. Is it of another atlas?"
        )
    with np.errstate(over="ignore"):  # infinite then, and reported
        return np.array(found if as_it_is else found.T, dtype=np.float32, order="C")


def _constant_regions(scans: Iterable[Scan]) -> list[str]:
    """Regions without signal: parcels that a field of view or a coarse grid has emptied."""
    count: Counter[int] = Counter()
    total = 0
    for scan in scans:
        count.update(np.flatnonzero(constant_regions(scan.series)).tolist())
        total += 1
    if not count:
        return []
    everywhere = sorted(region + 1 for region, scans_with in count.items() if scans_with == total)
    note = f"{len(count)} regions are constant in some scans and enter as zeros"
    return [f"{note}; in all scans: {everywhere}." if everywhere else f"{note}."]
