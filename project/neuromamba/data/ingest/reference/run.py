"""What the reader of a reference's layout gives, and what the readers share; free of HDF5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import some_of
from neuromamba.data.store.header import Triple

STATISTICS = ("valid_voxels", "global_mean", "global_std", "global_max")


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


def refuse_gaps(numbers: Iterable[int], path: Path) -> None:
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
            f"{path}: frame(s) {some_of(twice, 8)} appear twice under different names. "
            f"Remove the wrong ones."
        )
    before = 0 if found[0] == 1 else -1
    gaps = [(a + 1, b - 1) for a, b in pairwise([before, *found]) if b - a > 1]
    if gaps:
        missing = some_of((a if a == b else f"{a}-{b}" for a, b in gaps), 8)
        raise UserInputError(
            f"{path}: frame(s) {missing} are missing, expected all up to {found[-1]}. Copy the run "
            f"again from its origin."
        )


def size_of(shape: Sequence[int]) -> str:
    """A shape as "96 x 96 x 96"."""
    return " x ".join(map(str, shape))


def volume_shape(shape: Sequence[int]) -> Triple | None:
    """X, Y, Z of a frame [X, Y, Z] or [X, Y, Z, 1]; None for anything else."""
    if len(shape) not in (3, 4) or 0 in shape or tuple(shape[3:]) not in ((), (1,)):
        return None
    return int(shape[0]), int(shape[1]), int(shape[2])


def known_statistics(values: Mapping[str, Any]) -> dict[str, float]:
    """The known statistics among these, each a number or an array of one."""
    found = {}
    for name in STATISTICS:
        try:
            found[name] = float(np.asarray(values[name], dtype=np.float64).item())
        except (KeyError, TypeError, ValueError, RuntimeError):
            continue
    return found


def damaged_source(path: Path, error: Exception) -> UserInputError:
    """The error to raise for a file of the reference that cannot be read."""
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError):
        return UserInputError(f"{path}: cannot be read ({error.strerror}).")
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return UserInputError(
        f"{path}: truncated or corrupt ({reason}). Copy it again from its origin."
    )
