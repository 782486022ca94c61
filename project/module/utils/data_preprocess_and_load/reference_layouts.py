"""Reads the layouts of the reference: a file per frame, or HDF5 with a data set per frame.

    img/<subject>/frame_<t>.pt, global_stats.pt    torch tensors [X, Y, Z] or [X, Y, Z, 1]
    hdf5/<subject>.h5                              data sets <prefix><t> of that shape,
                                                   or one data set [X, Y, Z, T] or [T, X, Y, Z]

Neither holds TR, orientation or affine. Beside the store (``hdf5_store.py``) this is the one module
that imports h5py; it only reads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from project.module.config import UserInputError
from project.module.utils.data_preprocess_and_load.nifti import file_sha256
from project.module.utils.data_preprocess_and_load.run_header import Triple
from project.module.utils.data_preprocess_and_load.sources import Source, name_sources

__all__ = ["TIME_AXES", "FrameFile", "FrameFolder", "ReferenceRun", "find_runs", "open_run"]

TIME_AXES = ("first", "last")
STATISTICS = ("valid_voxels", "global_mean", "global_std", "global_max")

_FRAME = re.compile(r"frame_(\d+)\.pt")
_NUMBERED = re.compile(r"(.*?)(\d+)")
_HDF5_SUFFIXES = (".h5", ".hdf5")
_VALUES_AT_ONCE = 1 << 24  # of a data set whose last axis is time, read at a time


class ReferenceRun(Protocol):
    """A run in one of the layouts.

    Attributes:
        path: folder of the frames, or the HDF5 file.
        shape: X, Y, Z of a frame.  n_frames: T.
    """

    path: Path
    shape: Triple
    n_frames: int

    def frames(self, first: int = 0) -> Iterator[np.ndarray]:
        """Frames from ``first`` on, float32 [X, Y, Z].

        Raises:
            UserInputError: a damaged frame, or one of another shape.
        """

    def sha256(self) -> str:
        """Hash of the bytes of the frames' files."""

    def statistics(self) -> dict[str, float]:
        """Those of ``STATISTICS`` that the reference has stored.

        Raises:
            UserInputError: their file cannot be read.
        """


def find_runs(folder: str | Path, store: str | Path) -> list[Source]:
    """All runs of the reference's layouts below a folder, sorted by path.

    Args:
        folder: searched recursively for folders with ``frame_<t>.pt``, and for ``*.h5``.
        store: the run files of the store to write; its own files are no input.

    Raises:
        UserInputError: no such folder, nothing in it, or the store would replace the input.
    """
    root, own = Path(folder), Path(store).resolve()
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise UserInputError(f"--input: '{root}' {found}; expected a folder of the reference's.")
    stems: dict[Path, str] = {}
    for parent, folders, files in os.walk(root):
        folders.sort()
        here = Path(parent)
        if any(map(_FRAME.fullmatch, files)):
            stems[here] = here.absolute().name
        for name in sorted(files):
            if name.startswith(".") or not name.endswith(_HDF5_SUFFIXES):
                continue
            if here.resolve() != own:
                stems[here / name] = here.joinpath(name).stem
            elif not is_store_file(here / name):
                raise UserInputError(
                    f"--output: '{here}' holds the input '{name}', whose place the store's file "
                    f"would take. Choose another folder."
                )
    if not stems:
        raise UserInputError(
            f"--input: neither folders with frame_<t>.pt nor *.h5 in '{root}' or below. NIfTI "
            f"files are converted by preprocessing.py."
        )
    if root in stems:  # it is one run itself; a Source is named relative to a folder above it
        stems = {path.absolute(): stem for path, stem in stems.items()}
        root = root.absolute().parent
    return name_sources(dict(sorted(stems.items())), root)


def is_store_file(path: Path) -> bool:
    """Whether an HDF5 file is one of our store."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return "format_version" in file.attrs
    except OSError:
        return False


def open_run(path: Path, time_axis: str | None = None, grid: Triple | None = None) -> ReferenceRun:
    """The run in a folder of frames or in an HDF5 file; see the classes."""
    return FrameFolder(path) if path.is_dir() else FrameFile(path, time_axis, grid)


def _in_order(numbers: Iterable[int], path: Path) -> None:
    """Refuse a run with frames missing or there twice.

    Raises:
        UserInputError: no frames, gaps, a count from neither 0 nor 1, duplicates.
    """
    found = sorted(numbers)
    if not found:
        raise UserInputError(f"{path}: there are no frames.")
    twice = sorted({a for a, b in pairwise(found) if a == b})
    if twice:
        raise UserInputError(
            f"{path}: frame(s) {_ranges(twice)} are there twice under different names. Remove the "
            f"wrong ones."
        )
    missing = sorted(set(range(min(found[0], 1), found[-1] + 1)) - set(found))
    if missing:
        raise UserInputError(
            f"{path}: frame(s) {_ranges(missing)} are missing, expected all up to {found[-1]}. "
            f"Copy the run again from its origin."
        )


def _ranges(numbers: Sequence[int], shown: int = 8) -> str:
    """Sorted numbers as "3, 7-9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    names = [str(a) if a == b else f"{a}-{b}" for a, b in parts]
    more = f" and {len(names) - shown} more ranges" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _volume_shape(shape: Sequence[int]) -> Triple | None:
    """X, Y, Z of a frame [X, Y, Z] or [X, Y, Z, 1]; None for anything else."""
    if len(shape) not in (3, 4) or 0 in shape or tuple(shape[3:]) not in ((), (1,)):
        return None
    return int(shape[0]), int(shape[1]), int(shape[2])


class FrameFolder:
    """``<subject>/frame_<t>.pt``; only the first frame is read yet.

    Raises:
        UserInputError: gaps in t, no frames, a first frame that is damaged or none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            names = [match for item in path.iterdir() if (match := _FRAME.fullmatch(item.name))]
        except OSError as error:
            raise _damaged(path, error) from None
        names.sort(key=lambda match: int(match[1]))  # by number: frame_2 before frame_10
        _in_order([int(match[1]) for match in names], path)
        self._files = [path / match[0] for match in names]
        self.n_frames = len(names)
        frame = _load_frame(self._files[0])
        self.shape: Triple = (frame.shape[0], frame.shape[1], frame.shape[2])

    def frames(self, first: int = 0) -> Iterator[np.ndarray]:
        """See ``ReferenceRun``."""
        for file in self._files[first:]:
            frame = _load_frame(file)
            if frame.shape != self.shape:
                raise UserInputError(
                    f"{file}: a frame of {_size(frame.shape)}, expected {_size(self.shape)} as in "
                    f"{self._files[0].name}. Write the run's frames again."
                )
            yield frame

    def sha256(self) -> str:
        """See ``ReferenceRun``; the files in the order of t."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(bytes.fromhex(file_sha256(file)))
        return digest.hexdigest()

    def statistics(self) -> dict[str, float]:
        """See ``ReferenceRun``; of ``global_stats.pt``."""
        file = self.path / "global_stats.pt"
        if not file.is_file():
            return {}
        values = _load_pt(file)
        if not isinstance(values, Mapping):
            raise UserInputError(f"{file}: a {type(values).__name__}, expected a dict of numbers.")
        return _numbers(values)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The known statistics among these, each a number or a 0-d array."""
    found = {}
    for name in STATISTICS:
        try:
            found[name] = float(values[name])
        except (KeyError, TypeError, ValueError, RuntimeError):
            continue
    return found


def _load_pt(path: Path) -> Any:
    """Tensors and plain containers of a file; nothing else is unpickled.

    Raises:
        UserInputError: a damaged file, or one that would run code.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints; what matters is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        offender = re.search(r"GLOBAL (\w[\w.]*)", str(error))
        if offender is None:
            raise _damaged(path, ValueError("not a file of torch.save")) from None
        raise UserInputError(
            f"{path}: holds an object of type {offender[1]}, and loading it would run code from "
            f"the file. Only tensors are read; write the file again with torch.save(tensor, ...)."
        ) from None
    except Exception as error:  # damaged bytes make the reader raise nearly anything
        raise _damaged(path, error) from None


def _load_frame(path: Path) -> np.ndarray:
    """A frame as float32 [X, Y, Z]."""
    import torch

    tensor = _load_pt(path)
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise UserInputError(f"{path}: holds a {type(tensor).__name__}, expected a dense tensor.")
    shape = _volume_shape(tensor.shape)
    if shape is None or tensor.is_complex() or tensor.is_quantized:
        raise UserInputError(
            f"{path}: a tensor {_size(tensor.shape)} of {tensor.dtype}, expected a frame of real "
            f"numbers [X, Y, Z] or [X, Y, Z, 1]."
        )
    return np.asarray(tensor.detach().to(torch.float32).reshape(shape).numpy())


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
            groups = [file, *(item for item in _members(file) if isinstance(item, h5py.Group))]
            series: dict[tuple[str, str], dict[str, int]] = {}
            single = []
            for group in groups:
                for item in _members(group):
                    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "iuf":
                        continue
                    name = str(item.name)
                    match = _NUMBERED.fullmatch(name.rsplit("/", 1)[-1])
                    if match and _volume_shape(item.shape):
                        series.setdefault((str(group.name), match[1]), {})[name] = int(match[2])
                    elif len(_without_channel(item.shape)) == 4 and 0 not in item.shape:
                        single.append(name)
            series = {key: frames for key, frames in series.items() if len(frames) > 1}
            if len(series) + len(single) != 1:
                found = [f"{group.rstrip('/')}/{prefix}<t>" for group, prefix in series] + single
                raise UserInputError(
                    f"{path}: found {', '.join(found) if found else 'no frames'}, expected one "
                    f"series of data sets named by number, [X, Y, Z], or one data set of four "
                    f"dimensions. Leave only that in the file."
                )
            if series:
                (numbers,) = series.values()
                _in_order(numbers.values(), path)
                self._names = sorted(numbers, key=numbers.__getitem__)
                self.n_frames = len(numbers)
                shape = _volume_shape(file[self._names[0]].shape)
            else:
                self._names = single
                full = _without_channel(file[single[0]].shape)
                self._axis = time_axis or _time_axis(full, grid, f"{path}: {single[0]}")
                self.n_frames = full[0 if self._axis == "first" else -1]
                shape = _volume_shape(full[1:] if self._axis == "first" else full[:-1])
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
            raise _damaged(self.path, error) from None

    def frames(self, first: int = 0) -> Iterator[np.ndarray]:
        """See ``ReferenceRun``."""
        import hdf5plugin  # noqa: F401  (registers filters that chunks may have)

        with self._reading() as file:
            for name, volume in self._volumes(file, first):
                if _volume_shape(volume.shape) != self.shape:
                    raise UserInputError(
                        f"{self.path}: {name} is {_size(volume.shape)}, expected a frame of "
                        f"{_size(self.shape)}. Write the file again."
                    )
                yield volume.astype(np.float32).reshape(self.shape)

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
                found |= _numbers(dict(place.attrs))
                if isinstance(place, h5py.Group):
                    found |= _numbers(
                        {
                            name: place[name][()]
                            for name in STATISTICS
                            if isinstance(place.get(name), h5py.Dataset) and place[name].size == 1
                        }
                    )
            return found


def _members(group: h5py.Group) -> list[Any]:
    """What lies in a group itself; links to elsewhere are left out."""
    return [
        group[name] for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)
    ]


def _without_channel(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape of five dimensions without the last one, if that is 1."""
    return tuple(shape[:4]) if len(shape) == 5 and shape[4] == 1 else tuple(shape)


def _time_axis(shape: Sequence[int], grid: Triple | None, what: str) -> str:
    """Where time is in four dimensions: "first" or "last"."""
    others = {"first": tuple(shape[1:]), "last": tuple(shape[:3])}
    for fits in (lambda rest: rest == grid, lambda rest: len(set(rest)) == 1):
        found = [axis for axis, rest in others.items() if fits(rest)]
        if len(found) == 1:
            return found[0]
    raise UserInputError(
        f"{what} is {_size(shape)}, and time may be its first or its last axis. Give --time_axis "
        f"first or --time_axis last."
    )


def _damaged(path: Path, error: Exception) -> UserInputError:
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError):
        return UserInputError(f"{path}: cannot be read ({error.strerror}).")
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserInputError(
        f"{path}: truncated or corrupt ({reason}). Copy it again from its origin."
    )
