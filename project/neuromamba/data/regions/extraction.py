"""Extraction of the time series of an atlas's regions from a NIfTI run.

Confounds are regressed out and filters applied by nilearn, which makes the confounds orthogonal to
the filter. Both cost degrees of freedom: with many confounds and a narrow band a short run keeps
next to none, and what comes out looks like a signal and is noise. So they are counted, and a run
with too few is refused. Shapes: N regions, T frames.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.image.resampling import BoundingBoxError

from neuromamba.common.errors import UserInputError
from neuromamba.config.names import CONFOUND_SETS
from neuromamba.data.ingest.nifti import NiftiRun
from neuromamba.data.ingest.repetition_time import check_tr, read_sidecar_tr, resolve_tr
from neuromamba.data.ingest.sources import Source
from neuromamba.data.ingest.space import space_of_run
from neuromamba.data.regions.atlases import Atlas

# Name -> arguments of nilearn's ``load_confounds`` (fMRIPrep); the cosines are its high-pass.
CONFOUNDS: dict[str, dict[str, Any]] = {
    "none": {},
    "basic": {
        "strategy": ("motion", "wm_csf", "high_pass"),
        "motion": "basic",
        "wm_csf": "basic",
    },
    "full": {
        "strategy": ("motion", "wm_csf", "high_pass"),
        "motion": "full",
        "wm_csf": "full",
    },
}
assert tuple(CONFOUNDS) == CONFOUND_SETS
FEW_FRAMES = 8


@dataclass(frozen=True)
class Extraction:
    """The way runs are read.

    Attributes:
        confounds: key of ``CONFOUNDS``.
        low_pass, high_pass: Hz; None for no filter.
        tr: seconds, in place of what the files say.
        min_dof: fewest residual degrees of freedom.
        space: of ``--space``; "" for MNI.

    Raises:
        UserInputError: values that make no filter, or no limit.
    """

    confounds: str = "none"
    low_pass: float | None = None
    high_pass: float | None = None
    tr: float | None = None
    min_dof: float = 40.0
    space: str = ""

    def __post_init__(self) -> None:
        check_tr(self.tr)
        if not (math.isfinite(self.min_dof) and self.min_dof >= 1):
            raise UserInputError(f"--min_dof: got {self.min_dof:g}, expected a number from 1 on.")
        for flag in ("low_pass", "high_pass"):
            value = getattr(self, flag)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserInputError(f"--{flag}: got {value}, expected a number above 0.")
        if self.low_pass and self.high_pass and self.high_pass >= self.low_pass:
            raise UserInputError(
                f"--high_pass: got {self.high_pass:g}, expected less than --low_pass "
                f"{self.low_pass:g}."
            )

    @property
    def filtered(self) -> bool:
        """Whether a filter needs the TR."""
        return self.low_pass is not None or self.high_pass is not None

    def check_filter(self, name: str, tr: float, note: str) -> None:
        """Refuse a filter that a run of this TR cannot have; ``note`` says why there is no TR.

        Raises:
            UserInputError: no TR, or a frequency that it does not resolve.
        """
        if not self.filtered:
            return
        if not math.isfinite(tr):
            raise UserInputError(f"--tr: '{name}': a filter needs the TR ({note}).")
        for flag in ("low_pass", "high_pass"):
            value = getattr(self, flag)
            if value is not None and value >= 1 / (2 * tr):
                raise UserInputError(
                    f"--{flag}: got {value:g} Hz; a TR of {tr:g} s ('{name}') resolves frequencies "
                    f"below {1 / (2 * tr):.4g} Hz only. Leave the filter out, or correct the TR."
                )


class Extracted(NamedTuple):
    """A run.

    Attributes:
        source: its file.
        series: float32 [N, T]; a region without signal is 0.
        coverage: [N] share of the region's voxels that have signal.
        tr: seconds; NaN if it is unknown.
        confounds: columns regressed out, the mean not counted.
        dof: residual degrees of freedom.
        notes: what a user should know, a sentence each.
        shape: voxels of a frame.
        affine: [4, 4] of the file, voxel indices -> mm.
    """

    source: Source
    series: np.ndarray
    coverage: np.ndarray
    tr: float
    confounds: int
    dof: float
    notes: tuple[str, ...]
    shape: tuple[int, int, int]
    affine: np.ndarray


def residual_dof(frames: int, confounds: int, tr: float, extraction: Extraction) -> float:
    """Frames, less what filter and confounds take: the mean and a column each.

    A filter leaves the share of the spectrum (0 to 1 / (2 TR)) that it lets pass.
    """
    share = 1.0
    if extraction.filtered:
        top = 1 / (2 * tr)
        high = min(extraction.low_pass or top, top)
        share = max(0.0, high - (extraction.high_pass or 0.0)) / top
    return frames * share - confounds - 1


def extract(source: Source, atlas: Atlas, extraction: Extraction) -> Extracted:
    """Read a run.

    Raises:
        UserInputError: it cannot be read, is not in the space of the atlas, lacks its confounds or
            its TR, or keeps too few degrees of freedom.
    """
    name = source.path.name
    run = NiftiRun(source.path)
    frames = run.n_frames
    if frames < FEW_FRAMES:
        raise UserInputError(f"{source.path}: {frames} frames, expected {FEW_FRAMES} or more.")
    # Regions are found through the affine, which straightens tilted axes.
    _, _, notes = space_of_run(run, source.space, extraction.space, source.remedy, resampled=True)
    tr, _, tr_note = resolve_tr(
        run.header_tr,
        run.time_unit,
        read_sidecar_tr(source.sidecar),
        extraction.tr,
        source.layout_tr,
    )
    notes += [tr_note] if tr_note else []
    extraction.check_filter(name, tr, tr_note)
    confounds = load_confounds(source.path, extraction.confounds)
    columns = 0 if confounds is None else int(np.linalg.matrix_rank(confounds.to_numpy()))
    if confounds is not None and len(confounds) != frames:
        raise UserInputError(
            f"--confounds: '{name}' has {frames} frames, its table of confounds {len(confounds)}."
        )
    dof = residual_dof(frames, columns, tr, extraction)
    if dof < extraction.min_dof:
        remedy = "Take a longer run, or lower --min_dof knowingly."
        if columns or extraction.filtered:
            remedy = (
                "Take fewer confounds (--confounds basic, none) or no filter, or lower --min_dof "
                "knowingly."
            )
        raise UserInputError(
            f"--min_dof: '{name}' keeps {dof:.0f} of {frames} degrees of freedom after {columns} "
            f"confounds{' and the filter' if extraction.filtered else ''}, expected "
            f"{extraction.min_dof:g} or more; its series would be noise. {remedy}"
        )
    try:
        series, coverage = _regions(_image(run), atlas, confounds, extraction, tr)
    except BoundingBoxError:
        coverage = np.zeros(len(atlas.ids))
    if not coverage.any():
        raise UserInputError(
            f"--atlas: '{name}' has no signal in any region of '{atlas.name}'. Is the run in MNI "
            f"space?"
        )
    empty = [atlas.regions[i] for i in np.flatnonzero(coverage == 0)]
    if empty:
        notes.append(f"{len(empty)} regions without signal: {', '.join(empty[:5])}")
    x, y, z = run.shape
    return Extracted(
        source, series, coverage, tr, columns, dof, tuple(notes), (x, y, z), run.affine
    )


def _image(run: NiftiRun) -> Any:
    """A run in memory, float32 [X, Y, Z, T]."""
    flat = np.empty((int(np.prod(run.shape)), run.n_frames), dtype=np.float32, order="F")
    for t, frame in enumerate(run.frames()):
        flat[:, t] = frame
    return nib.Nifti1Image(flat.reshape((*run.shape, run.n_frames), order="F"), run.affine)


def load_confounds(path: Path, name: str) -> pd.DataFrame | None:
    """[T, columns] of fMRIPrep's table beside a run; None for ``none``.

    Raises:
        UserInputError: there is none, or it lacks columns.
    """
    if name == "none":
        return None
    from nilearn.interfaces.fmriprep import load_confounds as load

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, _ = load(str(path), **CONFOUNDS[name])
    except Exception as error:  # nilearn raises several of its own
        raise UserInputError(
            f"--confounds {name}: no usable table of confounds for '{path.name}' "
            f"({' '.join(str(error).split())[:200]}). Expected fMRIPrep's "
            f"*_desc-confounds_timeseries.tsv beside it, or use --confounds none."
        ) from None
    table = pd.DataFrame(found)
    bad = [str(column) for column in table if not np.isfinite(table[column]).all()]
    if bad:
        raise UserInputError(
            f"--confounds {name}: the table of '{path.name}' lacks values in {', '.join(bad[:5])} "
            f"after the first frame. Correct it, or use --confounds none."
        )
    return table


def labels_on(atlas: Atlas, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """The labels of an atlas on a grid, int32 [X, Y, Z], each voxel that of the nearest.

    Args:
        atlas: to resample.
        shape: of the grid.
        affine: [4, 4], voxel indices -> mm.
    """
    from nilearn.image import resample_img

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = resample_img(
            atlas.image,
            affine,
            shape,
            interpolation="nearest",
            copy_header=True,
            force_resample=True,
        )
    return np.asanyarray(there.dataobj).astype(np.int32)


def _regions(
    image: Any, atlas: Atlas, confounds: pd.DataFrame | None, extraction: Extraction, tr: float
) -> tuple[np.ndarray, np.ndarray]:
    """Series [N, T] and coverage [N]; columns stay where they are, whatever is empty."""
    from nilearn.maskers import NiftiLabelsMasker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = labels_on(atlas, image.shape[:3], image.affine)
        signal = np.ptp(image.get_fdata(dtype=np.float32, caching="unchanged"), axis=3) > 0
        # A voxel outside the field of view is constant and would thin out its region.
        inside = nib.Nifti1Image(np.where(signal, labels, 0), image.affine)
        masker = NiftiLabelsMasker(
            inside,
            standardize=None,
            low_pass=extraction.low_pass,
            high_pass=extraction.high_pass,
            t_r=tr if extraction.filtered else None,
            resampling_target=None,
        )
        found = np.atleast_2d(masker.fit_transform(image, confounds=confounds))
    series = np.zeros((len(atlas.ids), image.shape[3]), dtype=np.float32)
    row = {region: number for number, region in enumerate(atlas.ids)}
    for column, label in masker.region_ids_.items():
        if column != "background" and int(label) in row:
            series[row[int(label)]] = found[:, int(column)]
    most = max(int(labels.max()), *atlas.ids) + 1
    voxels = np.bincount(labels.ravel(), minlength=most)[list(atlas.ids)]
    covered = np.bincount(labels[signal], minlength=most)[list(atlas.ids)]
    return series, np.divide(covered, voxels, out=np.zeros(len(voxels)), where=voxels > 0)
