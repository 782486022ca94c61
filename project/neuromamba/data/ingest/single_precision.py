"""Whether single precision, in which runs are handled, holds the signal of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError

_SOME_VOXELS = 4096  # enough for a median
_LOST = 0.05  # of the typical change from frame to frame


class SignalPrecision:
    """The typical change of a run beside the step of single precision, which has 24 bits.

    Args:
        dtype: of the values in the file; those of at most 24 bits are not looked at.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        narrow = dtype.itemsize <= 2 or dtype == np.float32
        self._kept: slice | None = None if narrow else slice(None)
        self._last: np.ndarray | None = None
        self._changes: list[float] = []
        self.largest = 0.0

    def add(self, raw: np.ndarray) -> None:
        """Add the values of a frame as they are in the file."""
        if self._kept is None:
            return
        values = raw[:: max(1, raw.size // _SOME_VOXELS)].astype(np.float64)
        with np.errstate(invalid="ignore"):
            self.largest = max(self.largest, float(np.nanmax(np.abs(values), initial=0)))
            if self._last is not None:
                change = np.abs(values - self._last)
                changed = change[change > 0]
                if changed.size:
                    self._changes.append(float(np.median(changed)))
        self._last = values

    @property
    def typical_change(self) -> float:
        """Median over frames of the typical change of the voxels that change; 0 without any."""
        return float(np.median(self._changes)) if self._changes else 0.0

    @property
    def step(self) -> float:
        """Distance of neighbouring numbers of single precision at the largest value."""
        return float(np.spacing(np.float32(self.largest)))

    @property
    def lost(self) -> bool:
        """Whether the step is not small beside the typical change."""
        if not np.isfinite(self.largest) or self.largest > np.finfo(np.float32).max:
            return False  # told as infinite values
        return self.step > _LOST * self.typical_change > 0

    def check(self, path: Path) -> None:
        """Refuse a run whose signal is lost.

        Raises:
            UserInputError: names the file, the values and a remedy.
        """
        if self.lost:
            raise UserInputError(
                f"{path}: values up to {self.largest:.4g} change by {self.typical_change:.3g} from "
                f"frame to frame, which single precision cannot hold (its step there is "
                f"{self.step:.3g}). Subtract a constant from all values first (fslmaths -dt "
                f"double IN -sub {self.largest:.4g} OUT -odt double)."
            )
