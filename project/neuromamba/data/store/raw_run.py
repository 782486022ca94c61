"""Reads an unfiltered run past HDF5: positioned reads straight into memory that is there already.

HDF5 says once where the arrays are in the file (``RunFile.raw_layout``). Opening the file again
then takes microseconds instead of milliseconds, which a cohort of more runs than stay open needs
at nearly every window.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError

Identity = tuple[int, int, int, int]


class RawLayout(NamedTuple):
    """Byte offsets of a file's arrays, their sizes, and what identifies the file."""

    bold: int
    vox: int
    n_frames: int
    n_voxels: int
    identity: Identity


def consecutive(frames: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Frames that follow each other as one: row in the result, first frame, number of frames."""
    if frames.size:
        starts = np.flatnonzero(np.diff(frames, prepend=frames[0] - 2) != 1)
        counts = np.diff(starts, append=len(frames))
        yield from zip(starts.tolist(), frames[starts].tolist(), counts.tolist(), strict=True)


def check_frames(path: Path, frames: np.ndarray, n_frames: int) -> None:
    """Refuse indices outside a run.

    Raises:
        IndexError: names the file.
    """
    if frames.size and (frames.min() < 0 or frames.max() >= n_frames):
        raise IndexError(f"{path}: frames {frames.min()}..{frames.max()} of {n_frames}")


def unreadable(path: Path, reason: str) -> UserInputError:
    """What to say of a file that was there and cannot be read any more."""
    return UserInputError(
        f"{path}: cannot be read any more ({reason}). Look whether it was changed during the run "
        f"and whether its disk works; convert the run again if it is damaged."
    )


def identity_of(file: Path | int) -> Identity:
    """Device, number, size and time of the last change (ns) of a file or file descriptor."""
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class RawRun:
    """An open run.

    Args:
        path: of the ``.h5`` file.
        layout: from ``RunFile.raw_layout``.

    Raises:
        FileChangedError: it is not the file of the layout any more.
        UserInputError: it cannot be opened or read.
    """

    def __init__(self, path: Path, layout: RawLayout) -> None:
        self.path, self._layout = path, layout
        self._descriptor = -1
        try:
            if identity_of(path) != layout.identity:
                raise FileChangedError(path)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(path, error.strerror or str(error)) from None
        self.vox = np.empty(layout.n_voxels, dtype=np.int32)
        self._read(self.vox, layout.vox)
        self.vox.flags.writeable = False

    def read_into(self, frames: np.ndarray, out: np.ndarray) -> None:
        """Read frames into an array; see ``RunFile.read_into``."""
        check_frames(self.path, frames, self._layout.n_frames)
        for row, first, count in consecutive(frames):
            offset = self._layout.bold + 2 * first * self._layout.n_voxels
            self._read(out[row : row + count], offset)

    def _read(self, out: np.ndarray, offset: int) -> None:
        rest = out.data.cast("B")
        try:
            while rest:
                count = os.preadv(self._descriptor, [rest], offset)
                if not count:
                    raise unreadable(self.path, f"it ends {len(rest):,} bytes too early")
                rest, offset = rest[count:], offset + count
        except OSError as error:
            raise unreadable(self.path, error.strerror or str(error)) from None

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FileChangedError(Exception):
    """A file is not the one whose layout is known."""
