"""Reads the reference's HDF5 files; beside ``hdf5_store.py`` the one module that imports h5py.

    hdf5/<subject>.h5    data sets <prefix><t> of [X, Y, Z] or [X, Y, Z, 1],
                         or one data set [X, Y, Z, T] or [T, X, Y, Z]

It only reads.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.nifti import file_sha256
from neuromamba.data.ingest.reference.run import (
    STATISTICS,
    damaged_source,
    known_statistics,
    refuse_gaps,
    size_of,
    volume_shape,
)
from neuromamba.data.store.header import Triple
from neuromamba.data.store.own_bytes import why_not_own

_NUMBERED = re.compile(r"(.*?)(\d+)")
_VALUES_AT_ONCE = 1 << 24  # of a data set whose last axis is time, read at a time


def is_store_file(path: Path) -> bool:
    """Whether an HDF5 file is one of our store."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return "format_version" in file.attrs
    except OSError:
        return False


class FrameFile:
    """``<subject>.h5`` of the reference; only its structure is read yet.

    Frames are the data sets of one group (or of the root) whose names are a common prefix and a
    number, at least two of them; else there is one data set of four dimensions.

    Args:
        path: of the file.
        time_axis: "first" or "last", of the four dimensions. None finds it: the other three are
            ``grid``, or are equal.
        grid: the X, Y, Z that the frames may have.

    Raises:
        UserInputError: not HDF5, a file of our store, no frames, several candidates, gaps.
    """

    def __init__(self, path: Path, time_axis: str | None, grid: Triple | None) -> None:
        self.path = path
        self._names: list[str] = []  # data sets in the order of time, or the single one
        self._axis: str | None = None  # of time in the single one
        with self._reading() as file:
            if "format_version" in file.attrs:
                raise UserInputError(
                    f"{path}: already a file of the store; convert the reference's files only."
                )
            series, single = _candidates(file)
            if len(series) + len(single) != 1:
                found = ", ".join([*series, *single]) or "no frames"
                raise UserInputError(
                    f"{path}: found {found}, expected one series of data sets [X, Y, Z] named by "
                    f"number, or one data set of four dimensions. Leave only that in the file."
                )
            if series:
                (numbers,) = series.values()
                refuse_gaps(numbers.values(), path)
                self._names = sorted(numbers, key=numbers.__getitem__)
                self.n_frames = len(numbers)
                shape = volume_shape(file[self._names[0]].shape)
            else:
                self._names = single
                full = _without_channel(file[single[0]].shape)
                self._axis = time_axis or _time_axis(full, grid, f"{path}: {single[0]}")
                self.n_frames = full[0 if self._axis == "first" else -1]
                shape = volume_shape(full[1:] if self._axis == "first" else full[:-1])
        assert shape is not None
        self.shape: Triple = shape

    @contextlib.contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        try:
            if not os.access(self.path, os.R_OK):
                raise PermissionError(errno.EACCES, "no permission")
            with h5py.File(self.path, "r", locking=False) as file:
                yield file
        except (OSError, RuntimeError, KeyError) as error:  # h5py raises them for damaged bytes
            raise damaged_source(self.path, error) from None

    def frames(self, first: int = 0) -> Iterator[np.ndarray]:
        """See ``ReferenceRun``."""
        import hdf5plugin  # noqa: F401  (registers filters that chunks may have)

        with self._reading() as file:
            for name, volume in self._volumes(file, first):
                if volume_shape(volume.shape) != self.shape:
                    raise UserInputError(
                        f"{self.path}: {name} is {size_of(volume.shape)}, expected a frame of "
                        f"{size_of(self.shape)}. Write the file again."
                    )
                with np.errstate(over="ignore"):  # an overflow becomes inf, which is reported
                    values = volume.astype(np.float32)
                yield values.reshape(self.shape)

    def _volumes(self, file: h5py.File, first: int) -> Iterator[tuple[str, np.ndarray]]:
        """(data set, frame) in the order of time, as stored."""
        if self._axis is None:
            for name in self._names[first:]:
                yield name, file[name][()]
            return
        (name,) = self._names
        data = file[name]
        if self._axis == "first":
            for t in range(first, self.n_frames):
                yield name, data[t]
            return
        # Frames are interleaved on disk, and in chunks: as many as memory allows in one read.
        block = max(1, _VALUES_AT_ONCE // math.prod(self.shape))
        if data.chunks:
            block = -(-block // data.chunks[3]) * data.chunks[3]
        for start in range(first, self.n_frames, block):
            several = data[:, :, :, start : min(start + block, self.n_frames)]
            for t in range(several.shape[3]):
                yield name, several[:, :, :, t]

    def sha256(self) -> str:
        """See ``ReferenceRun``; of the whole file."""
        return file_sha256(self.path)

    def statistics(self) -> dict[str, float]:
        """See ``ReferenceRun``; attributes or data sets of the root or of the frames' group."""
        with self._reading() as file:
            found: dict[str, float] = {}
            for place in (file, file[self._names[0]].parent, file[self._names[0]]):
                found |= known_statistics(dict(place.attrs))
                if isinstance(place, h5py.Group):
                    found |= known_statistics(
                        {
                            name: place[name][()]
                            for name in STATISTICS
                            if name in place
                            and not why_not_own(place, name)
                            and isinstance(place[name], h5py.Dataset)
                            and place[name].size == 1
                        }
                    )
            return found


def _candidates(file: h5py.File) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Data sets that may be frames, in the root and its groups.

    Returns:
        Series ("/group/prefix<t>" -> names of two or more frames -> t), and the names of data sets
        of four dimensions.
    """
    series: dict[str, dict[str, int]] = {}
    single = []
    for group in (file, *(item for item in _members(file) if isinstance(item, h5py.Group))):
        for item in _members(group):
            if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "iuf":
                continue
            path = str(item.name)
            if wrong := why_not_own(group, path.rpartition("/")[2]):
                raise damaged_source(Path(file.filename), ValueError(wrong))
            parent, _, name = path.rpartition("/")
            match = _NUMBERED.fullmatch(name)
            if match and volume_shape(item.shape):
                series.setdefault(f"{parent}/{match[1]}<t>", {})[path] = int(match[2])
            elif len(_without_channel(item.shape)) == 4 and 0 not in item.shape:
                single.append(path)
    return {key: frames for key, frames in series.items() if len(frames) > 1}, single


def _members(group: h5py.Group) -> list[Any]:
    """What lies in a group itself; links to elsewhere are left out."""
    return [
        group[name] for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)
    ]


def _without_channel(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape of five dimensions without the last one, if that is 1."""
    return tuple(shape[:4]) if len(shape) == 5 and shape[4] == 1 else tuple(shape)


def _time_axis(shape: Sequence[int], grid: Triple | None, what: str) -> str:
    """Find the time axis of four dimensions: "first" or "last"."""
    others = {"first": tuple(shape[1:]), "last": tuple(shape[:3])}
    for fits in (lambda rest: rest == grid, lambda rest: len(set(rest)) == 1):
        found = [axis for axis, rest in others.items() if fits(rest)]
        if len(found) == 1:
            return found[0]
    raise UserInputError(
        f"{what} is {size_of(shape)}, and time may be its first or its last axis. Give --time_axis "
        f"first or --time_axis last."
    )
