"""The HDF5 store: one file per run with its brain voxels only; the one module that writes HDF5.

    <image_path>/hdf5/<subject>[_ses-..][_task-..][_run-..].h5
    <image_path>/manifest.csv

A file (format version 1) holds, with T frames and N brain voxels,

    /bold   <i2 [T, N]  one row per frame; y = bold * scale + offset. Contiguous and unfiltered, or
                        Bitshuffle-LZ4 in chunks of 4 frames
    /vox    <i4 [N]     sorted flat C-order indices into the target grid: it is the brain mask
    /voxel_mean, /voxel_std  <f4 [N]  optional: statistics of every voxel over the frames

and the fields of ``RunHeader`` as attributes. int16 with a scale per run loses at most half of
(max - min) / 65,534; the scaling of the intensities happens when a window is read
(``normalisation.py``), so the file does not depend on it, nor on the patch size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Parallel file systems (Lustre, NFS) often lack locks, and nobody writes a finished file.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import h5py
import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.files import without_leftovers
from neuromamba.data.store.header import (
    CONVERT,
    CONVERT_REFERENCE,
    FORMAT_VERSION,
    Affine,
    RunHeader,
    Triple,
    run_file_name,
    why_no_name,
)
from neuromamba.data.store.no_store import is_a_file, no_runs, no_store
from neuromamba.data.store.own_bytes import why_no_grid, why_not_own
from neuromamba.data.store.raw_run import (
    Identity,
    RawLayout,
    check_frames,
    identity_of,
    unreadable,
)

__all__ = [
    "RunFile",
    "RunHeader",
    "list_runs",
    "read_header",
    "run_file_name",
]


_DATA = ("bold", "vox", "voxel_mean", "voxel_std")
_VALUES_AT_ONCE = 1 << 21  # quantised or hashed at a time, to bound the memory

# Reading and checking a header takes 20 times as long as opening the file, and a training opens
# its files many times.
_headers: OrderedDict[Identity, RunHeader] = OrderedDict()
_REMEMBERED = 10_000  # about 3 kB each
# The clock of a file system ticks every few milliseconds: a file changed later than this may change
# again without its identity showing it. Nanoseconds.
_SETTLED = 2_000_000_000


def triple(value: Any) -> Triple:
    x, y, z = (int(item) for item in np.asarray(value).ravel())
    return x, y, z


def affine_of(value: Any) -> Affine:
    matrix = np.asarray(value, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"expected an affine of 4 x 4, got {matrix.shape}")
    return tuple(tuple(float(item) for item in row) for row in matrix)


# Annotation of a field -> its reader.
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "Triple": triple,
    "Affine": affine_of,
}


def row_blocks(header: RunHeader) -> Iterator[range]:
    """Consecutive frames, so many at a time that memory stays small; whole chunks of 4."""
    rows = max(1, _VALUES_AT_ONCE // header.n_voxels // 4) * 4
    for start in range(0, header.n_frames, rows):
        yield range(start, min(start + rows, header.n_frames))


def sorted_within(vox: np.ndarray, size: int) -> bool:
    return bool(vox[0] >= 0 and vox[-1] < size and np.all(vox[1:] > vox[:-1]))


def reason_of(error: BaseException) -> str:
    """An error in a few words: HDF5 writes paragraphs and repeats the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])  # as text it would come in quotes
    return str(error).split("\n")[0][:200]


# What h5py raises for damaged bytes depends on where they are: a link, a type, a chunk ...
_DAMAGE = (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever HDF5 says of an open file that it cannot read into one message."""
    try:
        yield
    except UserInputError:
        raise
    except _DAMAGE as error:
        raise unreadable(path, reason_of(error)) from None


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise UserInputError(f"{path}: no such file. Convert the data with {CONVERT}.")
    try:
        return h5py.File(path, "r")
    except _DAMAGE as error:
        raise UserInputError(
            f"{path}: not a readable HDF5 file ({reason_of(error)}). Delete it and convert the run "
            f"again with {CONVERT}."
        ) from None


def _header_of(file: h5py.File, path: Path) -> RunHeader:
    """The header of an open file; that of a file read before and unchanged since is remembered."""
    with _reading(path):
        identity = identity_of(file.id.get_vfd_handle())
        known = _headers.get(identity)
        if known is None:
            known = _checked_header(file, path)
            if time.time_ns() - identity[-1] > _SETTLED:
                _headers[identity] = known
                if len(_headers) > _REMEMBERED:
                    _headers.popitem(last=False)
        return known


def _checked_header(file: h5py.File, path: Path) -> RunHeader:
    again = f"Convert the run again with {CONVERT} --overwrite."
    attributes = file.attrs  # h5py makes a new object at every access
    version = attributes.get("format_version")
    if version is None:
        raise UserInputError(
            f"{path}: not a file of this store (no format_version). {again} The reference's files "
            f"are converted by {CONVERT_REFERENCE}."
        )
    if version != FORMAT_VERSION:
        raise UserInputError(
            f"{path}: format version {version}, expected {FORMAT_VERSION}. {again}"
        )
    fields = dataclasses.fields(RunHeader)
    names = set(attributes)
    present = [field for field in fields if field.name in names]
    missing = [f.name for f in fields if f not in present and f.default is dataclasses.MISSING]
    if missing:
        raise UserInputError(f"{path}: attributes missing: {', '.join(missing)}. {again}")
    try:
        values = {f.name: _READERS[str(f.type)](attributes[f.name]) for f in present}
    except (TypeError, ValueError, OSError) as error:
        raise UserInputError(
            f"{path}: an attribute is damaged ({reason_of(error)}). {again}"
        ) from None
    header = RunHeader(**values)
    lost = [name for name in ("scale", "offset", "mean", "std") if not np.isfinite(values[name])]
    wrong = f"not finite: {', '.join(lost)}" if lost else ""
    wrong = wrong or why_no_name(header.subject, header.session, header.task, header.run)
    if wrong := wrong or why_no_grid(header.grid, header.n_voxels):
        raise UserInputError(f"{path}: an attribute is damaged ({wrong}). {again}")
    for name in _DATA:
        if name in file and (wrong := why_not_own(file, name)):
            raise UserInputError(f"{path}: not a file of this store ({wrong}). {again}")
    expected = {
        "bold": ((header.n_frames, header.n_voxels), np.dtype("<i2")),
        "vox": ((header.n_voxels,), np.dtype("<i4")),
    }
    for name, (shape, dtype) in expected.items():
        data = file.get(name)
        if not isinstance(data, h5py.Dataset) or data.shape != shape or data.dtype != dtype:
            found = f"{data.dtype} {data.shape}" if isinstance(data, h5py.Dataset) else "nothing"
            raise UserInputError(f"{path}: /{name} is {found}, expected {dtype} {shape}. {again}")
    return header


def read_header(path: str | Path) -> RunHeader:
    """Read and check a file's header; the file is closed again.

    Raises:
        UserInputError: no such file, a broken or a foreign one, another format version.
    """
    path = Path(path)
    with _open(path) as file:
        return _header_of(file, path)


class RunFile:
    """A run for reading. Opened at the first access; only the path is pickled.

    A handle must not cross a fork (HDF5 keeps state per process): a child opens the file anew.

    Args:
        path: of the ``.h5`` file; it is not touched yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._forget()

    def _forget(self) -> None:
        self._file: h5py.File | None = None
        self._bold: h5py.Dataset | None = None
        self._header: RunHeader | None = None
        self._vox: np.ndarray | None = None
        self._pid = -1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def _dataset(self) -> h5py.Dataset:
        if self._bold is None or self._pid != os.getpid():
            file = _open(self.path)
            self._header = _header_of(file, self.path)
            with _reading(self.path):
                self._file, self._bold, self._pid = file, file["bold"], os.getpid()
            if self._bold.chunks is not None:
                import hdf5plugin  # noqa: F401  (registers the filter that reads the chunks)
        return self._bold

    @property
    def header(self) -> RunHeader:
        """The run's header."""
        if self._header is None:
            self._dataset()
        assert self._header is not None
        return self._header

    @property
    def vox(self) -> np.ndarray:
        """int32 [N], flat C-order indices of the brain voxels; read-only.

        Raises:
            UserInputError: the indices are not increasing or leave the grid.
        """
        if self._vox is None:
            self._dataset()
            assert self._file is not None
            with _reading(self.path):
                vox = np.asarray(self._file["vox"][:], dtype=np.int32)
            if not sorted_within(vox, int(np.prod(self.header.grid))):
                raise UserInputError(
                    f"{self.path}: /vox is damaged (not increasing within the grid). Convert the "
                    f"run again with {CONVERT} --overwrite."
                )
            vox.flags.writeable = False
            self._vox = vox
        return self._vox

    def voxel_statistics(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and standard deviation of every voxel over the run, float32 [N]; None if absent.

        They are there if the run was converted with ``--voxel_norm``.
        """
        self._dataset()
        assert self._file is not None
        with _reading(self.path):
            if "voxel_mean" not in self._file or "voxel_std" not in self._file:
                return None
            found = self._file["voxel_mean"], self._file["voxel_std"]
            if any(one.shape != self._file["vox"].shape for one in found):
                raise ValueError("statistics of other voxels")
            return found[0][:], found[1][:]

    def content_sha256(self) -> str:
        """The hash of ``RunHeader.content_sha256``, computed from the file as it is now."""
        bold = self._dataset()
        content = hashlib.sha256(np.ascontiguousarray(self.vox, dtype="<i4").data)
        with _reading(self.path):
            for rows in row_blocks(self.header):
                content.update(np.ascontiguousarray(bold[rows.start : rows.stop]).data)
        return content.hexdigest()

    def read(self, frame_indices: Sequence[int] | range | np.ndarray) -> np.ndarray:
        """Read frames as stored, int16 [len(frame_indices), N]; see ``read_into``."""
        frames = np.asarray(frame_indices, dtype=np.int64)
        rows_TN = np.empty((len(frames), self._dataset().shape[1]), dtype=np.int16)
        self.read_into(frames, rows_TN)
        return rows_TN

    def read_into(self, frames: np.ndarray, out: np.ndarray) -> None:
        """Read frames as stored into ``out``, int16 [len(frames), N], contiguous.

        Args:
            frames: indices from 0, in any order. Evenly spaced ones are one read, also when
                shuffled: a filtered file would otherwise unpack its chunks again and again.
            out: is written to.

        Raises:
            IndexError: an index outside the run.
            UserInputError: the file cannot be read any more.
        """
        bold = self._dataset()
        check_frames(self.path, frames, bold.shape[0])
        order = np.argsort(frames)
        steps = np.diff(frames[order])
        with _reading(self.path):
            if frames.size and (steps > 0).all() and (steps == steps[:1]).all():
                step = int(steps[0]) if steps.size else 1
                rows = np.s_[int(frames.min()) : int(frames.max()) + 1 : step]
                if (order[1:] > order[:-1]).all():
                    bold.read_direct(out, rows)
                else:
                    out[order] = bold[rows]
                return
            for row, frame in enumerate(frames.tolist()):
                bold.read_direct(out, np.s_[frame], np.s_[row])

    def raw_layout(self) -> RawLayout | None:
        """Locate frames and voxels in the file; None if they are compressed."""
        bold = self._dataset()
        assert self._file is not None
        with _reading(self.path):
            offsets = [self._file[name].id.get_offset() for name in ("bold", "vox")]
        if None in offsets or not np.dtype("<i2").isnative or not hasattr(os, "preadv"):
            return None
        n_frames, n_voxels = bold.shape
        return RawLayout(offsets[0], offsets[1], n_frames, n_voxels, identity_of(self.path))

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._forget()


def list_runs(image_path: str | Path) -> list[Path]:
    """The run files of a store, sorted by name.

    Args:
        image_path: the store's folder, which holds ``hdf5/``; or that folder itself.

    Raises:
        UserInputError: there is nothing; the message says what was found instead.
    """
    root = Path(image_path)
    if not root.exists():
        raise no_store(root)
    if not root.is_dir():
        raise is_a_file(root)
    folder = root / "hdf5" if (root / "hdf5").is_dir() else root
    # Unlike glob, listdir says that a folder cannot be read.
    if runs := without_leftovers(folder / n for n in os.listdir(folder) if n.endswith(".h5")):
        return runs
    raise no_runs(root, "hdf5/ is empty" if folder != root else "no folder hdf5/")
