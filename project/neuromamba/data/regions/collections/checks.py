"""Scans of a collection, read and checked: axes, regions, finite values, constant regions."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from neuromamba.common.errors import UserInputError, see
from neuromamba.common.text import some_of
from neuromamba.data.regions.axes import is_symmetric, looks_turned
from neuromamba.data.regions.collections.found import Collection, FoundScan
from neuromamba.data.regions.scan import constant_regions
from neuromamba.data.regions.series_files import SeriesFile

_FEWEST_FRAMES = 8  # as of neuromamba regions extract
_MOST_ABSENT = 0.5  # of the regions: a scan that lacks more is of another atlas


@dataclass(frozen=True, kw_only=True)
class ReadScan:
    """A scan that can be used.

    Attributes:
        found: whose it is.
        series: float32 [N, T].
        constant: bool [N], regions without signal.
    """

    found: FoundScan
    series: np.ndarray
    constant: np.ndarray


@dataclass(frozen=True)
class ReadScans:
    """The scans of a collection.

    Attributes:
        scans: those that can be used, with the same regions in the same order.
        refused: name of each other scan -> why.
        regions: names, or numbers from 1 on.
        named: whether the collection names them.
        notes: what a user should know, a sentence each.
    """

    scans: list[ReadScan]
    refused: dict[str, str]
    regions: tuple[str, ...]
    named: bool
    notes: list[str]


def read_all(collection: Collection, orientation: str) -> ReadScans:
    """Read all scans of a collection; each that cannot be used has one line that says why.

    Args:
        collection: found by ``formats.find_collection``.
        orientation: of ``ROI_ORIENTATIONS``: what the axes of the matrices are, as they lie in the
            files; "auto" takes tables as time x regions and ``.npy`` as regions x time, and refuses
            what looks otherwise.

    Raises:
        UserInputError: no scan can be used, or matrices look turned.
    """
    if collection.fixed_axes and orientation != "auto":
        raise UserInputError(
            f"--orientation: the format {collection.format} says itself which axis is time. Leave "
            f"the flag out."
        )
    read: dict[int, SeriesFile] = {}
    refused: dict[str, str] = {}
    quiet = collection.fixed_axes or not sys.stderr.isatty()
    for place, scan in enumerate(tqdm(collection.scans, unit="scan", disable=quiet)):
        try:
            read[place] = _checked(_turned(scan.read(), orientation), scan)
        except UserInputError as error:
            refused[scan.name] = str(error)
        except Exception as error:  # one odd file must not end the import of a thousand
            refused[scan.name] = f"{scan.source}: unexpected {type(error).__name__}: {error}"
    notes: list[str] = []
    if orientation == "auto" and not collection.fixed_axes:
        for by_row in (False, True):
            _check_axes([one for one in read.values() if one.by_row is by_row], collection)
    regions, named = _regions(read.values(), notes)
    scans = []
    for place, one in list(read.items()):
        scan = collection.scans[place]
        if why := _why_other(one, regions, named):
            refused[scan.name] = f"{scan.source}: {why}"
            continue
        scans.append(_aligned(scan, one, regions, named, refused))
        del read[place]  # two copies of everything need not be in memory
    return ReadScans([one for one in scans if one is not None], refused, regions, named, notes)


def _turned(file: SeriesFile, orientation: str) -> SeriesFile:
    """The series as [frames, regions] after ``--orientation``, which speaks of the file's axes."""
    as_it_is = "regions_by_time" if file.by_row else "time_by_regions"
    if orientation in ("auto", as_it_is):
        return file
    return SeriesFile(file.values.T, None, file.by_row)


def _checked(file: SeriesFile, scan: FoundScan) -> SeriesFile:
    """Refuse what is no series of a scan."""
    frames, regions = file.values.shape
    if frames == regions and is_symmetric(np.nan_to_num(file.values)):
        raise UserInputError(
            f"{scan.source}: a symmetric matrix of {frames} x {regions}: correlations, and not the "
            f"series of a scan."
        )
    if frames < _FEWEST_FRAMES:
        raise UserInputError(
            f"{scan.source}: {frames} frames of {regions} regions, expected {_FEWEST_FRAMES} "
            f"frames or more."
        )
    with np.errstate(over="ignore"):  # infinite then
        values = file.values.astype(np.float32) if file.values.itemsize > 4 else file.values
    if np.isinf(values).any():
        bad = np.flatnonzero(np.isinf(values).any(axis=0))
        raise UserInputError(f"{scan.source}: {_not_finite(file.names, bad)}")
    return file._replace(values=values)


def _not_finite(names: Sequence[str] | None, columns: np.ndarray) -> str:
    """Say which regions have values that are not finite; without names they count from 1."""
    regions = (names[int(i)] if names else i + 1 for i in columns)
    return f"values that are not finite in {len(columns)} regions ({some_of(regions, 5)})."


def _check_axes(files: Sequence[SeriesFile], collection: Collection) -> None:
    """Refuse matrices that look turned.

    Args:
        files: with the same axes by convention (``by_row``); frames x regions by now.
        collection: for messages.

    Raises:
        UserInputError: says why, and gives the flag.
    """
    if not files:
        return
    by_row = files[0].by_row
    usual, other = "time_by_regions", "regions_by_time"
    if by_row:
        usual, other = other, usual
    why = ""
    # Columns that are named may be regions of which some scans lack a few.
    unnamed = [one.values.shape for one in files if one.names is None]
    rows, columns = {rows for rows, _ in unnamed}, {columns for _, columns in unnamed}
    if len(rows) == 1 and len(columns) > 2:
        why = (
            f"all of them have {rows.pop()} along the axis that would be time, and {min(columns)} "
            f"to {max(columns)} along that of the regions, which do not differ between scans"
        )
    elif turned := looks_turned([np.nan_to_num(one.values.T) for one in files]):
        why = (
            f"neighbouring values are more alike along the axis that would be the regions "
            f"(correlation {turned.regions:.2f}) than along that of time ({turned.time:.2f}) in "
            f"{turned.share:.0%} of the scans, and time series are smooth in time"
        )
    if why:
        raise UserInputError(
            f"--orientation: the matrices of '{collection.root}' look like {other} (rows x "
            f"columns): {why}. Give --orientation {other}, or {usual} if that is right. "
            f"{see('turned-matrices')}"
        )


def _regions(files: Iterable[SeriesFile], notes: list[str]) -> tuple[tuple[str, ...], bool]:
    """The regions of the collection, and whether they have names of their own.

    A program may leave out regions that a scan does not cover, so that of names the union is taken,
    without scans that share less than half of the usual ones.
    """
    listed = list(files)
    if not listed:
        return (), False
    names = Counter(one.names for one in listed if one.names is not None)
    unique = {key: n for key, n in names.items() if len(set(key)) == len(key)}
    if not unique or 2 * sum(unique.values()) < len(listed):
        width = Counter(one.values.shape[1] for one in listed).most_common(1)[0][0]
        return tuple(str(i + 1) for i in range(width)), False
    usual = max(unique, key=lambda key: (unique[key], len(key)))
    found = dict.fromkeys(usual)
    for key in unique:
        if len(set(usual) & set(key)) >= _MOST_ABSENT * len(usual):
            found |= dict.fromkeys(key)
    regions = list(found)
    if all(name.isdecimal() for name in regions):
        regions.sort(key=int)
    if unnamed := sum(one.names is None for one in listed):
        notes.append(
            f"{unnamed} scans do not name their regions, and are taken to have them in the order "
            f"of the others."
        )
    return tuple(regions), True


def _why_other(file: SeriesFile, regions: Sequence[str], named: bool) -> str:
    """Why a scan is not of the collection's regions; "" if it is."""
    own = set(file.names or ())
    if named and len(own) == file.values.shape[1]:
        shared = len(own & set(regions))
        if shared >= _MOST_ABSENT * len(regions) and shared == len(own):
            return ""
        return f"has {shared} of the usual {len(regions)} regions. Is it of another atlas?"
    if file.values.shape[1] == len(regions):
        return ""
    rows, columns = file.values.shape
    what = "Is it turned?" if rows == len(regions) else "Is it of another atlas?"
    return f"has {columns} regions and {rows} frames, expected {len(regions)} regions. {what}"


def _aligned(
    scan: FoundScan, file: SeriesFile, regions: Sequence[str], named: bool, refused: dict[str, str]
) -> ReadScan | None:
    """A scan with all regions in the common order; None, with a reason, if it is not finite."""
    values = file.values
    if named and file.names is not None and file.names != tuple(regions):
        place = {name: column for column, name in enumerate(file.names)}
        empty = np.zeros(len(values), dtype=values.dtype)
        values = np.stack([values[:, place[n]] if n in place else empty for n in regions], axis=1)
    series = np.array(values.T, dtype=np.float32, order="C")
    # A region without coverage is NaN throughout in the tables of some programs (XCP-D).
    series[np.isnan(series).all(axis=1)] = 0
    if not np.isfinite(series).all():
        bad = np.flatnonzero(~np.isfinite(series).all(axis=1))
        refused[scan.name] = f"{scan.source}: {_not_finite(regions, bad)}"
        return None
    if not np.ptp(series, axis=1).any():
        refused[scan.name] = f"{scan.source}: no region changes over time."
        return None
    return ReadScan(found=scan, series=series, constant=constant_regions(series))
