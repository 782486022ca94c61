"""Scans in one ``.npz`` file: the frames of all of them in one array, one scan after the other.

The arrays of a file are recognised by their shapes: S scans, T frames of all scans together, R
regions. ``ts`` [T, R] (there may be several, one for each atlas), ``length`` [S], which sums to T,
texts or numbers [S] that say whose scans they are (``file_id``, or ``subject`` and ``session``),
and ``roi`` [R], the labels of the regions.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import some_of
from neuromamba.data.regions.checked_pickle import check_characters
from neuromamba.data.regions.safe_loading import read_array_header

_DEFLATED = 1100  # the most that the compression of .npz files saves, times
_LENGTHS = ("length", "lengths", "n_frames", "frames")
_LABELS = ("roi", "rois", "roi_id", "roi_ids", "label", "labels", "region", "regions")


class Concatenated(NamedTuple):
    """A file's content.

    Attributes:
        array: name of the array that was taken.
        series: float [T, R], of all scans.
        lengths: int [S], frames of each scan.
        columns: other arrays [S]: name -> texts.
        labels: of the regions; None if there is no array of them.
    """

    array: str
    series: np.ndarray
    lengths: np.ndarray
    columns: Mapping[str, tuple[str, ...]]
    labels: tuple[str, ...] | None

    def scans(self) -> list[np.ndarray]:
        """The series of each scan, [frames, R]; views."""
        return np.split(self.series, np.cumsum(self.lengths)[:-1])


def read_concatenated(path: Path, flag: str, array: str | None = None) -> Concatenated:
    """Read a file.

    Args:
        path: of it.
        flag: what named it.
        array: name of the array of series; None takes the only one.

    Raises:
        UserInputError: damaged, other arrays than expected, several arrays of series, or lengths
            that do not sum to their frames.
    """
    place = f"{flag}: '{path}'"
    try:
        with zipfile.ZipFile(path) as archive:
            return _content(archive, place, array)
    except FileNotFoundError:
        raise UserInputError(f"{place} does not exist.") from None
    except MemoryError:
        raise UserInputError(f"{place} is larger than the memory.") from None
    except UserInputError:
        raise
    except Exception as error:  # a damaged archive can fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserInputError(
            f"{place} is damaged, or no .npz file of numpy ({reason}). Copy or write it again."
        ) from None


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of numbers or texts; its size is checked before memory is taken for it."""
    if member.file_size > _DEFLATED * member.compress_size + 1024:
        raise ValueError(f"{member.filename} promises {member.file_size} bytes")
    with archive.open(member) as stream:
        shape, dtype = read_array_header(stream)
        if dtype.kind not in "biufSU" or dtype.subdtype is not None:
            raise ValueError(f"{member.filename} is an array of {dtype}")
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} promises an array of {shape}")
    with archive.open(member) as stream:
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    check_characters(array)
    return array


def _content(archive: zipfile.ZipFile, place: str, wanted: str | None) -> Concatenated:
    members = {
        one.filename.removesuffix(".npy"): one
        for one in archive.infolist()
        if one.filename.endswith(".npy")
    }
    names = list(members)
    length = next((name for name in _LENGTHS if name in names), None)
    if length is None:
        raise UserInputError(
            f"{place} lacks the array 'length', the frames of each scan; it has {some_of(names)}."
        )
    arrays = {name: _read_array(archive, member) for name, member in members.items()}
    lengths = arrays.pop(length)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not lengths.size:
        raise UserInputError(
            f"{place} has '{length}' {lengths.dtype} of shape {lengths.shape}, expected a whole "
            f"number of frames for each scan."
        )
    lengths = lengths.astype(np.int64)
    if (lengths < 1).any():
        raise UserInputError(f"{place} has a scan of {lengths.min()} frames in '{length}'.")
    frames = int(lengths.sum())
    series = {
        name: one for name, one in arrays.items() if one.ndim == 2 and one.dtype.kind in "fiu"
    }
    name = _choose(series, place, wanted)
    found = series[name]
    if found.shape[0] != frames and found.shape[1] == frames:
        found = found.T
    if found.shape[0] != frames:
        raise UserInputError(
            f"{place} has {len(lengths)} scans with {frames} frames in '{length}', and '{name}' "
            f"has {found.shape[0]}; expected as many."
        )
    flat = {key: one for key, one in arrays.items() if one.ndim == 1 and one.dtype.kind in "iufUSb"}
    labels = next(
        (key for key in _LABELS if key in flat and len(flat[key]) == found.shape[1]), None
    )
    columns = {
        key: _texts(one) for key, one in flat.items() if len(one) == len(lengths) and key != labels
    }
    return Concatenated(
        name, found, lengths, columns, None if labels is None else _texts(flat[labels])
    )


def _choose(series: Mapping[str, np.ndarray], place: str, wanted: str | None) -> str:
    if wanted is not None and wanted in series:
        return wanted
    if len(series) == 1 and (wanted is None or "ts" in series):
        return next(iter(series))  # ts: the name of the file says which atlas it is
    if not series:
        raise UserInputError(f"{place} has no array of series, frames x regions.")
    sizes = some_of(f"{name} ({one.shape[1]} regions)" for name, one in series.items())
    what = "has several arrays of series" if wanted is None else f"has no array '{wanted}'"
    raise UserInputError(f"{place} {what}: {sizes}. Name one with --atlas.")


def _texts(values: np.ndarray) -> tuple[str, ...]:
    if values.dtype.kind == "S":
        return tuple(value.decode("utf-8", "replace").strip() for value in values.tolist())
    return tuple(str(value).strip() for value in values.tolist())
