"""Bring a scan to what a model was trained on, step by step; every step is listed.

The converter of stores does the reading, orientation, mask and placement, so a scan that is
prepared here has the values that a store of the training would hold. Then come the repetition time
and the length, and the scaling when a window is read.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import sentence
from neuromamba.data.ingest.convert import convert_run
from neuromamba.data.ingest.nifti import file_sha256
from neuromamba.data.ingest.options import ConversionOptions
from neuromamba.data.ingest.repetition_time import SAME_TR, differs, nearest_tr
from neuromamba.data.ingest.space import voxel_sizes, whole_voxel_offset
from neuromamba.data.store.header import RunHeader, RunSource
from neuromamba.data.store.reader import RunFile, read_header
from neuromamba.data.store.writer import write_run
from neuromamba.data.windows.dataset import WindowDataset
from neuromamba.inference.contract import InputContract
from neuromamba.inference.prepared import (
    PreparedScan,
    Problem,
    TemporaryFolder,
    identity_of,
    refuse_doubts,
)
from neuromamba.inference.range_check import compare_with_training, coverage_problems
from neuromamba.inference.sources import ScanFile
from neuromamba.inference.time_resampling import resample_time

_NOT_RAW = 0.05  # of the standard deviation over voxels and frames: a mean of nothing
_REMEDY = (
    "The model was trained on images in MNI space: normalise the scan first (docs/preprocessing.md "
    "has the commands for fMRIPrep, FSL and ANTs)."
)


def prepare_scan(
    scan: ScanFile,
    contract: InputContract,
    *,
    tr: float | None = None,
    mask: str | Path | None = None,
    strict: bool = False,
) -> PreparedScan:
    """Prepare a scan for a model.

    Args:
        scan: a NIfTI file or a run of a store.
        contract: of the model.
        tr: repetition time in seconds; None takes that of the JSON file beside the scan, or of its
            header.
        mask: mask image on the scan's grid, "nonzero" or "computed"; None takes the one beside the
            scan, else what the converter finds.
        strict: refuse a scan that would have to be resampled or padded, or about which there is
            any doubt.

    Raises:
        UserInputError: the scan cannot be used; the message names file, reason and remedy.
    """
    if scan.error:
        raise UserInputError(scan.error)
    temporary = None
    actions: list[str] = []
    problems: list[Problem] = []
    if scan.source is None:
        path, header = scan.path, read_header(scan.path)
        _check_grid(scan, header, contract)
        digest = header.source_sha256
        refuse_for_a_store(scan, tr, mask)
        actions.append("read from a store")
    else:
        temporary = TemporaryFolder()
        path, header = _convert(scan, contract, tr, mask, temporary.path, actions, problems)
        digest = header.source_sha256 or file_sha256(scan.path)
    problems += _problems_of_values(header, contract)
    known = header.content_sha256 and int(header.content_sha256[:15], 16) in contract.contents
    timed = _in_time(path, header, contract, temporary, actions, problems)
    path, header, temporary = timed.path, timed.header, timed.temporary
    actions.append(f"intensities: {contract.scaling}")
    windows = WindowDataset([path], contract.data, headers=[header])
    if known and contract.supervised:
        problems.append(
            Problem(
                "the model was trained on these very values, so this is no test of it.",
                "Judge it by scans that it has not seen.",
            )
        )
    elif known:
        actions.append("note: among the scans of the pre-training (no labels were used)")
    problems += coverage_problems(windows, contract.inputs, contract.model, native=contract.native)
    prepared = PreparedScan(
        **identity_of(scan),
        header=header,
        windows=windows,
        actions=tuple(actions),
        problems=tuple(problems),
        measures=compare_with_training(windows, contract.inputs, contract.model),
        sha256=digest,
        mirrored=timed.mirrored,
        resampled=timed.resampled,
        trained_on=bool(known),
        temporary=temporary,
    )
    if strict:
        refuse_doubts(prepared)
    return prepared


def _check_grid(scan: ScanFile, header: RunHeader, contract: InputContract) -> None:
    """Refuse a run of a store that lies on another grid than the model's."""
    if tuple(header.grid) != tuple(contract.data.grid):
        found, expected = (" ".join(map(str, g)) for g in (header.grid, contract.data.grid))
        raise UserInputError(
            f"{scan.path}: a run on the grid {found}, the model expects {expected}. Give the NIfTI "
            f"file instead, or convert it with --img_size {expected}."
        )
    native = header.space == "native"
    if native != contract.native:
        kinds = ("native", "standard") if native else ("standard", "native")
        raise UserInputError(
            f"{scan.path}: a run in {kinds[0]} space, the model is of {kinds[1]} space, so "
            f"positions differ. Give a scan in {kinds[1]} space."
        )
    if contract.grid_affine is not None and not native:
        offset = whole_voxel_offset(np.asarray(header.affine), np.asarray(contract.grid_affine))
        if offset != (0, 0, 0):
            beside = "differ from those of the training in size, direction or by part of a voxel"
            if offset is not None:
                beside = f"lie {' '.join(map(str, offset))} voxels beside those of the training"
            raise UserInputError(
                f"{scan.path}: its voxels {beside}, so positions differ. Give the NIfTI file "
                f"instead."
            )


def refuse_for_a_store(scan: ScanFile, tr: float | None, mask: str | Path | None) -> None:
    """Refuse flags that a run of a store cannot take.

    Raises:
        UserInputError: one is given.
    """
    if mask is not None or tr is not None:
        raise UserInputError(
            f"{'--mask' if mask is not None else '--tr'}: {scan.path} is a run of a store, which "
            f"has its own. Give the NIfTI file instead."
        )


def _convert(
    scan: ScanFile,
    contract: InputContract,
    tr: float | None,
    mask: str | Path | None,
    folder: str,
    actions: list[str],
    problems: list[Problem],
) -> tuple[Path, RunHeader]:
    """Convert a NIfTI file into a temporary store, placed by its affine where that is known."""
    assert scan.source is not None
    options = ConversionOptions(
        img_size=_triple(contract.data.grid),
        mask=str(mask) if mask is not None else "auto",
        tr=tr,
        onto=contract.grid_affine,
        space="native" if contract.native else "",
    )
    source = dataclasses.replace(scan.source, remedy=scan.source.remedy or _REMEDY)
    outcome = convert_run(source, Path(folder), options)
    if outcome.header is None:
        raise UserInputError(outcome.message)
    header = outcome.header
    axes = "".join(str(code) for code in nibabel.aff2axcodes(np.asarray(header.source_affine)))
    if axes != header.orientation:
        actions.append(f"axes: {axes} to {header.orientation}")
    actions.append(_placement(header, contract))
    actions.append(f"mask: {header.mask_source} ({header.n_voxels} voxels)")
    for note in outcome.notes:
        if note.startswith("oblique") or "bytes after" in note:
            actions.append(note)
        else:
            problems.append(Problem(sentence(note)))
    if contract.grid_affine is None and not contract.native:
        size = " x ".join(f"{edge:.3g}" for edge in voxel_sizes(np.asarray(header.affine)))
        problems.append(
            Problem(
                f"the checkpoint does not say where its grid lies, so the scan ({size} mm) was "
                f"centred on it.",
                "Make sure that the model was trained on voxels of this size.",
            )
        )
    return Path(folder) / source.output, header


def _placement(header: RunHeader, contract: InputContract) -> str:
    grid = " x ".join(map(str, header.grid))
    source = " x ".join(map(str, header.source_shape))
    if contract.grid_affine is None:
        return f"grid: {source} centred on {grid}"
    ends = np.asarray(header.affine), np.asarray(header.source_affine)
    here, there = (sorted(voxel_sizes(affine)) for affine in ends)
    exact = header.crop_offset != (0, 0, 0) or source == grid
    if exact and np.allclose(here, there, rtol=0.01):
        offset = " ".join(map(str, header.crop_offset))
        return f"grid: {source} cropped or padded to {grid} (offset {offset})"
    old, new = (" x ".join(f"{edge:.3g}" for edge in voxel_sizes(one)) for one in ends[::-1])
    return f"grid: {source} of {old} mm resampled to {grid} of {new} mm, linearly, by the affine"


def _triple(values: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = values
    return x, y, z


def _problems_of_values(header: RunHeader, contract: InputContract) -> list[Problem]:
    """Whether the values have lost what the model's scaling needs."""
    if contract.by_voxel and "anatomy" not in contract.data.channels:
        return []  # the temporal mean is taken out anyway
    if abs(header.mean) > _NOT_RAW * header.std:
        return []
    return [
        Problem(
            f"the values have a mean of {header.mean:.3g} and a standard deviation of "
            f"{header.std:.3g}: the scan seems to be z-scored, demeaned or in percent signal "
            f"change already, and the model needs its mean image.",
            "Give the preprocessed BOLD before that step.",
        )
    ]


class _InTime(NamedTuple):
    """A run whose repetition time and length fit; the last three are as in ``PreparedScan``."""

    path: Path
    header: RunHeader
    temporary: TemporaryFolder | None
    mirrored: int = 0
    resampled: bool = False


def _in_time(
    path: Path,
    header: RunHeader,
    contract: InputContract,
    temporary: TemporaryFolder | None,
    actions: list[str],
    problems: list[Problem],
) -> _InTime:
    """Resample to the training's repetition time and pad to a window, if the scan needs it."""
    wanted = _wanted_tr(header, contract, actions, problems)
    frames: np.ndarray | None = None
    if wanted is not None:
        frames = resample_time(_frames(path, header), header.tr, wanted)
        actions.append(
            f"time: {header.n_frames} frames of {header.tr:g} s resampled to {len(frames)} of "
            f"{wanted:g} s (windowed sinc)"
        )
        problems.append(
            Problem(
                f"the repetition time is {header.tr:g} s, in the training {wanted:g} s; the scan "
                f"was resampled.",
                "Trust it less than one of a scan with the training's repetition time.",
            )
        )
    count = header.n_frames if frames is None else len(frames)
    span = contract.data.window_span
    if count < span:
        if 2 * count < span:
            raise UserInputError(
                f"{header.source or path}: {header.n_frames} frames of {header.tr:g} s"
                f"{'' if wanted is None else f', which are {count} of {wanted:g} s as in training'}"
                f", and a window of the model spans {span}; expected at least half of it. Give a "
                f"longer scan."
            )
        frames = _frames(path, header) if frames is None else frames
        frames = np.pad(frames, ((0, span - count), (0, 0)), mode="reflect")
        actions.append(f"length: {count} frames mirrored at the end to the {span} of a window")
        problems.append(
            Problem(
                f"only {count} of the {span} frames of a window; the rest is their mirror image.",
                "Give a longer scan.",
            )
        )
    if frames is None:
        return _InTime(path, header, temporary)
    temporary = temporary or TemporaryFolder()
    path, header = _rewritten(path, header, frames, wanted or header.tr, temporary.path)
    return _InTime(path, header, temporary, len(frames) - count, wanted is not None)


def _wanted_tr(
    header: RunHeader, contract: InputContract, actions: list[str], problems: list[Problem]
) -> float | None:
    """The repetition time to resample to; None to leave the scan alone."""
    if not contract.tr:
        return None
    if not math.isfinite(header.tr):
        problems.append(
            Problem(
                f"the repetition time is unknown; the training's is "
                f"{' or '.join(f'{tr:g}' for tr in contract.tr)} s.",
                "Give it with --tr SECONDS.",
            )
        )
        return None
    nearest = nearest_tr(header.tr, contract.tr)
    if differs(header.tr, nearest):
        return nearest
    if not math.isclose(header.tr, nearest, rel_tol=1e-3):
        actions.append(
            f"time: TR {header.tr:g} s, in the training {nearest:g} s; within {SAME_TR:.0%}, left "
            f"alone"
        )
    return None


def _frames(path: Path, header: RunHeader) -> np.ndarray:
    """All frames of a run in the source's units, float32 [T, N]."""
    file = RunFile(path)
    stored = file.read(range(header.n_frames))
    file.close()
    return stored * np.float32(header.scale) + np.float32(header.offset)


def _rewritten(
    path: Path, header: RunHeader, frames: np.ndarray, tr: float, folder: str
) -> tuple[Path, RunHeader]:
    """The run with other frames, in a file of its own."""
    file = RunFile(path)
    vox = file.vox
    file.close()
    names = {field.name for field in dataclasses.fields(RunSource)}
    kept: dict[str, Any] = {
        name: value for name, value in dataclasses.asdict(header).items() if name in names
    }
    new = Path(folder) / "in_time" / path.name
    new.parent.mkdir()
    header = write_run(
        new,
        frames,
        vox,
        grid=header.grid,
        affine=header.affine,
        source=RunSource(**kept | {"tr": tr}),
    )
    return new, header
