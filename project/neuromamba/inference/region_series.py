"""Scans as series of regions: found, read, and brought to what a model of regions expects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import some_of
from neuromamba.data.ingest.filenames import name_run
from neuromamba.data.ingest.nifti import file_sha256
from neuromamba.data.ingest.repetition_time import check_tr
from neuromamba.data.ingest.sources import SUFFIXES, PassedOver, stem_of
from neuromamba.data.regions.atlases import Atlas
from neuromamba.data.regions.series_files import READERS, SeriesFile, read_series_file
from neuromamba.data.regions.series_measures import MEASURES, measures_of_series
from neuromamba.inference.prepared import Prepared, Problem, identity_of, refuse_doubts
from neuromamba.inference.range_check import compare
from neuromamba.inference.sources import (
    Places,
    ScanFile,
    listed,
    run_of,
    source_of_file,
    with_unique_names,
)
from neuromamba.inference.time_resampling import resample_time

_TR_TOLERANCE = 0.1  # of the training's; as for volumes
_SYMMETRIC = 1e-6
_TURNED = 0.2  # lag-1 autocorrelation that the other axis must have more


class SourceGrid(NamedTuple):
    """The voxels of a NIfTI file that series come from.

    Attributes:
        shape: of a frame.
        affine: [4, 4], voxel indices -> mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray


@dataclass(frozen=True, kw_only=True, repr=False)
class PreparedSeries(Prepared):
    """A scan as a model of regions takes it; see ``Prepared`` for the other attributes.

    Attributes:
        series: float32 [N, T], in the order of the model's regions, before z-scoring.
        tr: seconds; NaN if unknown.
        grid: of a NIfTI file; None of a file of series.
    """

    series: np.ndarray
    tr: float
    grid: SourceGrid | None = None

    @property
    def windows(self) -> range:
        """One: a scan is taken as a whole."""
        return range(1)

    def record(self) -> dict[str, Any]:
        """What was found and done, in plain containers."""
        return self.record_of(frames=self.series.shape[1], tr=self.tr, windows=1)


def find_series(places: Places) -> tuple[list[ScanFile], list[PassedOver]]:
    """List the scans that files and folders hold, each once, in the order given.

    Args:
        places: files of series (``READERS``) or 4D NIfTI files, or folders of them. One, or a list.

    Raises:
        UserInputError: a folder without any.
    """
    scans: dict[Path, ScanFile] = {}
    for place in listed(places):
        files = [place]
        if place.is_dir():
            files = [path for path in sorted(place.rglob("*")) if _is_scan(path)]
            if not files:
                raise UserInputError(
                    f"BOLD: no file of series ({', '.join(READERS)}) and no NIfTI file in "
                    f"'{place}' or below."
                )
        for path in files:
            scans.setdefault(path.resolve(), _scan_of(path))
    return with_unique_names(list(scans.values())), []


def _is_scan(path: Path) -> bool:
    kind = path.suffix.lower() in READERS or path.name.endswith(SUFFIXES)
    return kind and path.is_file() and not path.name.startswith(".")


def _scan_of(path: Path) -> ScanFile:
    volume = path.name.endswith(SUFFIXES)
    stem = stem_of(path) if volume else path.stem
    name = name_run(stem)
    error = "" if path.is_file() else f"{path}: no such file."
    return ScanFile(
        path=path,
        name=stem,
        subject=name.subject,
        session=name.session,
        run=run_of(name.task, name.run),
        source=source_of_file(path) if volume and not error else None,
        error=error,
    )


def prepare_series(
    scan: ScanFile,
    metadata: Mapping[str, Any],
    *,
    atlas: Atlas | None = None,
    tr: float | None = None,
    strict: bool = False,
) -> PreparedSeries:
    """Read a scan and bring it to what a model expects.

    Args:
        scan: file of series, or 4D NIfTI file.
        metadata: of the model (``neurossm.model_file``).
        atlas: regions of a NIfTI file.
        tr: repetition time in seconds, of a file of series; in place of a NIfTI file's.
        strict: refuse a scan with any problem.

    Raises:
        UserInputError: it cannot be used; names the reason and a remedy.
    """
    if scan.error:
        raise UserInputError(scan.error)
    check_tr(tr)
    actions: list[str] = []
    problems: list[Problem] = []
    grid = None
    if scan.source is not None:
        frames_TN, seconds, grid = _extracted(scan, metadata, atlas, tr, actions)
    else:
        frames_TN = _ordered(scan, read_series_file(scan.path), metadata, actions, problems)
        seconds = float("nan") if tr is None else tr
    return prepared_of(
        frames_TN,
        scan,
        metadata,
        tr=seconds,
        actions=actions,
        problems=problems,
        strict=strict,
        grid=grid,
    )


def checked_tr(tr: float | None) -> float:
    """The repetition time of an array in seconds; NaN if it is not known.

    Raises:
        UserInputError: it is no positive number.
    """
    if tr is None:
        return math.nan
    if not (math.isfinite(tr) and tr > 0):
        raise UserInputError(f"prepare: tr is {tr}, expected seconds above 0, or None.")
    return tr


def prepared_of(
    frames_TN: np.ndarray,
    scan: ScanFile,
    metadata: Mapping[str, Any],
    *,
    tr: float,
    actions: list[str],
    problems: list[Problem],
    strict: bool,
    grid: SourceGrid | None = None,
) -> PreparedSeries:
    """Check the values of a scan, bring its repetition time to the model's, and compare it.

    Args:
        frames_TN: [T, N], regions in the model's order.
        scan: where they come from.
        metadata: of the model.
        tr: seconds; NaN if unknown.
        actions, problems: so far; they are added to.
        strict: refuse a scan with any problem.
        grid: of a NIfTI file.

    Raises:
        UserInputError: values that are not finite, too few frames, or a problem with ``strict``.
    """
    if not np.isfinite(frames_TN).all():
        raise UserInputError(
            f"{scan.path}: {int((~np.isfinite(frames_TN)).sum())} values are not finite. Correct "
            f"or interpolate them first."
        )
    frames_TN, tr = _in_time(frames_TN, tr, metadata, actions, problems)
    if len(frames_TN) < metadata["shortest"]:
        raise UserInputError(
            f"{scan.path}: {len(frames_TN)} frames, the model needs {metadata['shortest']} or more."
        )
    if len(frames_TN) < metadata["crop"]:
        actions.append(
            f"shorter than a crop of the training ({metadata['crop']} frames): taken as it is"
        )
    with np.errstate(over="ignore"):
        series = np.ascontiguousarray(frames_TN.T, dtype=np.float32)
    if not np.isfinite(series).all():
        raise UserInputError(f"{scan.path}: values too large for single precision.")
    constant = int((np.ptp(series, axis=1) == 0).sum())
    if constant == len(series):
        raise UserInputError(f"{scan.path}: all regions are constant, there is no signal.")
    if constant:
        actions.append(f"{constant} regions without signal enter as zeros")
    actions.append(f"normalisation: {metadata['normalisation']}")
    training = metadata["training"]
    values = measures_of_series(series)
    measures = tuple(
        compare((name, MEASURES[name]), values[name], ends, training["measured"])
        for name, ends in training["measures"].items()
        if name in values and None not in ends
    )
    prepared = PreparedSeries(
        **identity_of(scan),
        series=series,
        tr=tr,
        actions=tuple(actions),
        problems=tuple(problems),
        measures=measures,
        sha256=file_sha256(scan.path) if scan.path.is_file() else "",
        grid=grid,
    )
    if strict:
        refuse_doubts(prepared)
    return prepared


def _extracted(
    scan: ScanFile,
    metadata: Mapping[str, Any],
    atlas: Atlas | None,
    tr: float | None,
    actions: list[str],
) -> tuple[np.ndarray, float, SourceGrid]:
    """Series [T, N] of a NIfTI file, its TR and its voxels."""
    if atlas is None:
        named = f" ({metadata['atlas']})" if metadata["atlas"] else ""
        raise UserInputError(
            f"{scan.path}: a NIfTI file needs --atlas, the atlas of the training{named}."
        )
    # Imported here: nilearn takes seconds to load.
    from neuromamba.data.regions.extraction import Extraction, extract

    assert scan.source is not None
    if scan.source.error:
        raise UserInputError(scan.source.error)
    cleaning = dict(metadata["extraction"] or {})
    cleaned = cleaning.get("confounds", "none") != "none" or cleaning.get("low_pass")
    # Nothing is lost without confounds and filters: then the model says how many frames it needs.
    least = Extraction.min_dof if cleaned or cleaning.get("high_pass") else 1.0
    found = extract(scan.source, atlas, Extraction(tr=tr, min_dof=least, **cleaning))
    actions.append(
        f"mean over each of the {len(atlas.ids)} regions of {atlas.name}; "
        + cleaning_of(metadata["extraction"])
    )
    actions += found.notes
    return found.series.T, found.tr, SourceGrid(found.shape, found.affine)


def cleaning_of(extraction: Mapping[str, Any] | None) -> str:
    """Describe what was done to the series of the training, and is done to NIfTI files."""
    if extraction is None:
        return "not cleaned (it is not recorded whether those of the training were)"
    low, high = extraction["low_pass"], extraction["high_pass"]
    band = "no filter"
    if low or high:
        band = f"{f'{high:g}' if high else '0'} to {f'{low:g} Hz' if low else 'the highest'}"
    return f"confounds {extraction['confounds']}, {band}"


def check_atlas(atlas: Atlas, metadata: Mapping[str, Any]) -> None:
    """Refuse another atlas than the training's.

    Raises:
        UserInputError: other regions.
    """
    count = metadata["model"]["rois"]
    if len(atlas.ids) != count:
        raise UserInputError(
            f"--atlas: '{atlas.name}' has {len(atlas.ids)} regions, the model {count}."
        )
    if metadata["atlas_hash"] is not None and atlas.hash != metadata["atlas_hash"]:
        raise UserInputError(
            f"--atlas: '{atlas.name}' has other voxels or labels than the atlas of the training "
            f"({metadata['atlas']}). Give that one."
        )


def _ordered(
    scan: ScanFile,
    found: SeriesFile,
    metadata: Mapping[str, Any],
    actions: list[str],
    problems: list[Problem],
) -> np.ndarray:
    """Series [T, N] in the order of the model's regions."""
    values, count = found.values, metadata["model"]["rois"]
    shape = " x ".join(map(str, values.T.shape if found.by_row else values.shape))
    axes = "regions x time" if found.by_row else "time x regions (rows are frames)"
    if values.shape[0] == values.shape[1] and _is_correlation(values):
        raise UserInputError(
            f"{scan.path}: a symmetric matrix of {shape}: correlations, not the series of a scan."
        )
    if values.shape[1] != count:
        turned = values.shape[0] == count
        raise UserInputError(
            f"{scan.path}: holds {shape} numbers, expected {axes} with {count} regions. "
            + ("It is transposed: turn it." if turned else "Is it of another atlas?")
        )
    names = metadata["regions"]
    if names and found.names and all(n.isdecimal() for n in found.names):
        # Labels of an atlas (#2001) are no names; they say something to a model that has labels.
        found = found if all(n.isdecimal() for n in names) else found._replace(names=None)
    if found.names is None or names is None:
        if values.shape[0] == count and _lag1(values) + _TURNED < _lag1(values.T):
            raise UserInputError(
                f"{scan.path}: {shape} numbers change more smoothly along the regions than in "
                f"time, so the matrix seems to be transposed. Expected {axes}."
            )
        what = "the file does not name its regions" if names else "the model does not name regions"
        problems.append(
            Problem(
                f"{what}, so only their number ({count}) is checked.",
                "Make sure that they are in the order of the training"
                + (" or name them in the first line of a CSV file." if names else "."),
            )
        )
        return values
    if len(set(names)) == len(names) and set(found.names) == set(names):
        order = [found.names.index(name) for name in names]
        if order != list(range(count)):
            actions.append("regions put into the model's order by their names")
        return values[:, order]
    if tuple(found.names) == tuple(names):
        return values
    absent = [name for name in names if name not in found.names]
    other = [name for name in found.names if name not in names]
    raise UserInputError(
        f"{scan.path}: other regions than the training's: it lacks {some_of(absent, 5) or 'none'}, "
        f"and has {some_of(other, 5) or 'some twice'}. Use the series of the same atlas, or a file "
        f"without names if the names alone differ."
    )


def _is_correlation(values: np.ndarray) -> bool:
    return bool(np.allclose(values, values.T, atol=_SYMMETRIC, equal_nan=True))


def _lag1(frames_TN: np.ndarray) -> float:
    return measures_of_series(frames_TN.T)["lag1"]


def _in_time(
    frames_TN: np.ndarray,
    tr: float,
    metadata: Mapping[str, Any],
    actions: list[str],
    problems: list[Problem],
) -> tuple[np.ndarray, float]:
    """Resample to the training's repetition time where it differs by more than a tenth."""
    known = [one for one in metadata["tr"] if one]
    if not known or not np.isfinite(tr):
        which = "the scan's" if known else "the training's"
        actions.append(f"{which} repetition time is not known: not compared")
        return frames_TN, tr
    nearest = min(known, key=lambda one: abs(one - tr))
    if abs(tr - nearest) <= _TR_TOLERANCE * nearest:
        return frames_TN, tr
    actions.append(f"time: resampled from {tr:g} s to {nearest:g} s (windowed sinc)")
    problems.append(
        Problem(
            f"its repetition time of {tr:g} s is not the training's {nearest:g} s, so it was "
            f"resampled.",
            "Frequencies near the lower Nyquist frequency are weakened; prefer scans of the same "
            "protocol.",
        )
    )
    return resample_time(frames_TN, tr, nearest), nearest
