"""Mean and standard deviation of every voxel over a run, from wherever they are.

They are in the run's file if it was converted with ``--voxel_norm``. Of other files they are
computed from the frames when they are first needed, and kept in ``<store>/voxel_statistics/`` if
that can be written, so that no store has to be converted again.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import numpy as np

from neuromamba.common.atomic_files import atomic_path
from neuromamba.data.store.raw_run import identity_of
from neuromamba.data.store.reader import RunFile, row_blocks

logger = logging.getLogger(__name__)

FOLDER = "voxel_statistics"
Statistics = tuple[np.ndarray, np.ndarray]
_warned: set[Path] = set()  # folders that cannot be written


def voxel_statistics_of(path: Path) -> Statistics:
    """Mean and population standard deviation of each voxel over the frames, float32 [N] each.

    Computed ones are of the stored integers, so they differ from those of ``--voxel_norm`` by at
    most half a step of the quantisation.

    Args:
        path: of the ``.h5`` file.

    Raises:
        UserInputError: the file cannot be read.
    """
    file = RunFile(path)
    try:
        stored = file.voxel_statistics()
        if stored is not None:
            return stored
        beside, content = kept_at(path), file.header.content_sha256 or str(identity_of(path))
        found = _read(beside, content, file.header.n_voxels)
        if found is None:
            found = computed_statistics(file)
            _keep(beside, content, found)
        return found
    finally:
        file.close()


def kept_at(path: Path) -> Path:
    """Where computed statistics of a run are kept."""
    store = path.parent.parent if path.parent.name == "hdf5" else path.parent
    return store / FOLDER / f"{path.stem}.npz"


def computed_statistics(file: RunFile) -> Statistics:
    """Statistics from all frames of a run; sums are of integers, hence exact in any order."""
    header = file.header
    total, squares = np.zeros((2, header.n_voxels), np.int64)
    for rows in row_blocks(header):
        for frame in file.read(rows):
            values = frame.astype(np.int64)
            total += values
            squares += values * values
    mean, std = moments(total, squares, header.n_frames)
    return (
        (header.offset + header.scale * mean).astype(np.float32),
        (header.scale * std).astype(np.float32),
    )


def moments(total: np.ndarray, squares: np.ndarray, count: int) -> Statistics:
    """Mean and population standard deviation, float64, from exact sums of ``count`` integers.

    The variance is a difference of integers: it is exactly 0 for a constant voxel. int64 holds
    the terms of 92,000 frames.
    """
    variance = (count * squares - total * total) / float(count) ** 2
    return total / count, np.sqrt(variance)


def _read(path: Path, content: str, n_voxels: int) -> Statistics | None:
    """What is kept of a run; None if there is nothing, or of other content, or it is damaged."""
    try:
        # Opened here: NumPy leaves a damaged file open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as kept:
            mean, std = kept["mean"], kept["std"]
            same = str(kept["content"]) == content
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    sound = all(a.shape == (n_voxels,) and a.dtype == np.float32 for a in (mean, std))
    return (mean, std) if same and sound and np.isfinite([mean, std]).all() else None


def _keep(path: Path, content: str, found: Statistics) -> None:
    """Write the file atomically; a folder that cannot be written is reported once."""
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, mean=found[0], std=found[1], content=np.array(content))
    except OSError as error:
        if path.parent not in _warned:
            _warned.add(path.parent)
            logger.warning(
                "warning: '%s' cannot be written (%s): the statistics of voxels are computed again "
                "whenever a run is opened. Make it writable, convert with --voxel_norm, or use "
                "--scaling_statistics window.",
                path.parent,
                error.strerror,
            )
