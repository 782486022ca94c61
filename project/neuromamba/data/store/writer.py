"""Writer of a run of the store, quantised to int16; ``reader`` describes the format."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import nibabel
import numpy as np

from neuromamba.common.atomic_files import temporary_beside
from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.names import ORIENTATION
from neuromamba.data.store.header import (
    COMPRESSIONS,
    FORMAT_VERSION,
    RunHeader,
    RunSource,
    WriteOptions,
)
from neuromamba.data.store.normalisation import StatisticsOfFrames
from neuromamba.data.store.reader import (
    affine_of,
    reason_of,
    row_blocks,
    sorted_within,
    triple,
)

_COARSEST = 1.0  # step of the integers, in typical changes from frame to frame
_LARGEST = 32767  # stored integers lie in [-_LARGEST, _LARGEST]
_DEFAULTS = WriteOptions()


def write_run(
    path: str | Path,
    frames: Iterable[np.ndarray],
    voxels: np.ndarray,
    *,
    grid: Sequence[int],
    affine: Any,
    source: RunSource,
    options: WriteOptions = _DEFAULTS,
) -> RunHeader:
    """Quantise a run and write it: whole, under its final name, or not at all.

    The scale is known only after the last frame, so the frames wait in a nameless file in the
    folder of ``path``; memory holds a few of them at a time.

    Args:
        path: of the ``.h5`` file; an older one is replaced at the very end.
        frames: float32 [T, N], or its rows [N] one by one; raw intensities of the brain voxels,
            all finite.
        voxels: [N] flat C-order indices into ``grid``, strictly increasing.
        grid: X, Y, Z of the target grid.
        affine: 4 x 4, voxel indices of the target grid -> mm, in the store's orientation.
        source: whose run it is and where it comes from.
        options: compression, statistics, and what the header says about the conversion.

    Returns:
        The header as written, with the quantisation's scale and offset and the statistics.

    Raises:
        ValueError: arrays or affine that do not fit together (a mistake of the caller).
        UserInputError: non-finite values; outliers that would leave the others no integers; a
            folder that cannot be written or a full disk. Neither
            the temporary file nor half a file is left behind, then or on Ctrl-C.
    """
    path = Path(path)
    compression = look_up(options.compression or "none", COMPRESSIONS, "--compression")
    vox = np.ascontiguousarray(voxels, dtype="<i4")
    if vox.ndim != 1 or not vox.size or not sorted_within(vox, int(np.prod(grid))):
        raise ValueError(f"voxels must be strictly increasing and within the grid {tuple(grid)}")
    orientation = "".join(str(code) for code in nibabel.aff2axcodes(np.asarray(affine)))
    if orientation != ORIENTATION:
        raise ValueError(f"the store is {ORIENTATION}, the affine is {orientation}")
    found = StatisticsOfFrames(options.voxel_statistics)
    temporary = temporary_beside(path)
    try:
        # The operating system removes a nameless file, even if this process is killed.
        with tempfile.TemporaryFile(dir=path.parent) as spool:
            _spool(frames, vox, found, spool)
            header = _header(found, source.source or path, grid, affine, source, options)
            of_voxels = found.of_voxels() if options.voxel_statistics else None
            header = _write_file(temporary, spool, vox, of_voxels, header, compression)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException as error:
        # A path below a file raises NotADirectoryError here too; the first error is the cause.
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # h5py raises both when a disk is full
            raise UserInputError(
                f"{path}: cannot be written ({reason_of(error)}). Check the free space and the "
                f"permissions of the folder; no incomplete file was left."
            ) from error
        raise
    return header


def _header(
    found: StatisticsOfFrames,
    name: str | Path,
    grid: Sequence[int],
    affine: Any,
    source: RunSource,
    options: WriteOptions,
) -> RunHeader:
    """Choose the quantisation's scale and offset; fill in all of the header but the content's hash.

    Raises:
        UserInputError: the values, of the run called ``name``, cannot be quantised.
    """
    statistics = found.result()
    if not (np.isfinite(statistics.min) and np.isfinite(statistics.max)):
        raise UserInputError(f"{name}: NaN or infinite values cannot be stored.")
    # A constant run has no range; any scale will do, and 1 keeps it exact.
    scale = (statistics.max - statistics.min) / (2 * _LARGEST) or 1.0
    if scale > _COARSEST * found.typical_change > 0:
        raise UserInputError(
            f"{name}: the values span {statistics.min:.4g} to {statistics.max:.4g}, so a step of "
            f"the stored int16 is {scale:.3g}, but voxels change by {found.typical_change:.3g} "
            f"from frame to frame: the signal would be lost. Find the outlying values (fslstats "
            f"-R) and correct or clip them."
        )
    sha256 = source.source_sha256
    return RunHeader(
        subject=source.subject,
        session=source.session,
        task=source.task,
        run=source.run,
        dataset=source.dataset,
        grid=triple(grid),
        affine=affine_of(affine),
        orientation=ORIENTATION,
        source_shape=triple(grid if source.source_shape is None else source.source_shape),
        source_affine=affine_of(affine if source.source_affine is None else source.source_affine),
        crop_offset=triple(source.crop_offset),
        cropped_voxels=int(source.cropped_voxels),
        scale=scale,
        offset=(statistics.max + statistics.min) / 2,
        mean=statistics.mean,
        std=statistics.std,
        min=statistics.min,
        max=statistics.max,
        tr=float(source.tr),
        tr_source=source.tr_source,
        n_frames=found.n_frames,
        dropped_frames=int(source.dropped_frames),
        n_voxels=found.n_voxels,
        mask_source=source.mask_source,
        source=source.source,
        source_sha256=sha256 if isinstance(sha256, str) else sha256(),
        options=options.options_digest,
        tool_version=options.tool_version,
        space=source.space,
    )


def _spool(
    frames: Iterable[np.ndarray], vox: np.ndarray, found: StatisticsOfFrames, spool: IO[bytes]
) -> None:
    """Write the frames into a file as float32 and take their statistics."""
    with np.errstate(invalid="ignore"):  # NaN and infinite values are refused after the last frame
        for frame in frames:
            if frame.shape != vox.shape:
                raise ValueError(f"a frame [N] is {frame.shape}, vox [N] is {vox.shape}")
            values = np.ascontiguousarray(frame, dtype=np.float32)
            found.add(values)
            spool.write(values.data)
    if not found.n_frames:
        raise ValueError("there are no frames")


def _write_file(
    path: Path,
    spool: IO[bytes],
    vox: np.ndarray,
    of_voxels: tuple[np.ndarray, np.ndarray] | None,
    header: RunHeader,
    compression: str,
) -> RunHeader:
    """Quantise the spooled frames into a file; returns the header with the content's hash."""
    layout: dict[str, Any] = {}
    if compression == "lz4":
        import hdf5plugin

        rows = min(4, header.n_frames)
        layout = {"chunks": (rows, header.n_voxels), "compression": hdf5plugin.Bitshuffle()}
    content = hashlib.sha256(vox.data)
    spool.seek(0)
    with h5py.File(path, "x") as file:  # new: no link that others have put there is followed
        file.create_dataset("vox", data=vox)
        bold = file.create_dataset("bold", (header.n_frames, header.n_voxels), "<i2", **layout)
        for rows_of in row_blocks(header):
            size = 4 * header.n_voxels * len(rows_of)
            rows_TN = np.frombuffer(spool.read(size), np.float32).astype(np.float64)
            rows_TN -= header.offset
            rows_TN /= header.scale
            stored = np.rint(rows_TN, out=rows_TN).astype("<i2").reshape(-1, header.n_voxels)
            content.update(stored.data)
            bold[rows_of.start : rows_of.stop] = stored
        if of_voxels is not None:
            for name, values in zip(("voxel_mean", "voxel_std"), of_voxels, strict=True):
                file.create_dataset(name, data=values.astype("<f4"))
        header = dataclasses.replace(header, content_sha256=content.hexdigest())
        file.attrs["format_version"] = FORMAT_VERSION
        for field in dataclasses.fields(RunHeader):
            file.attrs[field.name] = getattr(header, field.name)
    return header
