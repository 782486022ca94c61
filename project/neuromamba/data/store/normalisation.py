"""Run statistics, and the scalings as one affine map from the stored integers.

The store keeps raw BOLD as int16 q with y = q * scale + offset and the statistics of y over the
brain voxels of the run. Every ``--input_scaling_method`` is affine in y, hence affine in q, so one
file serves them all and scaling costs one multiply-add on the device:

    znorm_*    z = (y - mean) / std
    minmax_*   z = y / max
    *_minback  voxels outside the mask get min(0, run minimum), scaled as above
    *_zeroback voxels outside the mask get 0 after scaling

The raw background is 0. Scaled, it is the lowest value of a positive run; a run with negative
values (demeaned data) takes its own minimum instead, so that background stays the lowest value.

Two scalings differ from voxel to voxel, ``voxelnorm_zeroback`` and ``demean_zeroback``; see
``voxel_scaling``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.names import SCALING_METHODS, VOXEL_SCALINGS
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.voxel_scaling import step_of


@dataclass(frozen=True, kw_only=True)
class RunStatistics:
    """Mean, population standard deviation, minimum and maximum of a run, in BOLD units."""

    mean: float
    std: float
    min: float
    max: float


_SOME_VOXELS = 4096  # enough for a median; all would take as long as everything else


class StatisticsOfFrames:
    """Statistics of a run whose frames come one after the other, accumulated in float64.

    The sums of squares of the frames about their own means are merged (Chan, Golub and LeVeque
    1979), because E[y^2] - E[y]^2 cancels.

    Args:
        per_voxel: also keep the mean and standard deviation of every voxel over the frames.
    """

    def __init__(self, per_voxel: bool = False) -> None:
        self.n_frames = self.n_voxels = 0
        self._mean = self._squares = 0.0
        self._min, self._max = math.inf, -math.inf
        self._per_voxel = per_voxel
        self._last: np.ndarray = np.empty(0)  # some voxels of the frame before
        self._changes: list[float] = []
        self._voxel_mean: np.ndarray = np.empty(0)
        self._voxel_squares: np.ndarray = np.empty(0)

    def add(self, frame: np.ndarray) -> None:
        """Add a frame [N] of any real dtype."""
        if frame.ndim != 1 or not frame.size or self.n_voxels not in (0, frame.size):
            raise ValueError(f"expected frames [N] of one size, got {frame.shape}")
        if not self.n_frames:
            self.n_voxels = frame.size
            if self._per_voxel:
                self._voxel_mean, self._voxel_squares = np.zeros((2, frame.size))
        values = frame.astype(np.float64)
        some = values[:: max(1, frame.size // _SOME_VOXELS)].copy()
        if self.n_frames:
            self._changes.append(float(np.median(np.abs(some - self._last))))
        self._last = some
        # A NaN must show in the result, which Python's min and max would not do.
        self._min = float(np.minimum(self._min, values.min()))
        self._max = float(np.maximum(self._max, values.max()))
        mean = float(values.mean())
        step = mean - self._mean
        self.n_frames += 1
        if self._per_voxel:
            deviation = values - self._voxel_mean
            self._voxel_mean += deviation / self.n_frames
            self._voxel_squares += deviation * (values - self._voxel_mean)
        values -= mean
        self._squares += float(np.dot(values, values))
        self._squares += step * step * self.n_voxels * (self.n_frames - 1) / self.n_frames
        self._mean += step / self.n_frames

    @property
    def typical_change(self) -> float:
        """Median over frames and (some) voxels of the change from frame to frame; NaN for one."""
        return float(np.median(self._changes)) if self._changes else math.nan

    def result(self) -> RunStatistics:
        """The statistics over all frames and voxels."""
        if not self.n_frames:
            raise ValueError("no frames were added")
        variance = self._squares / (self.n_frames * self.n_voxels)
        return RunStatistics(mean=self._mean, std=math.sqrt(variance), min=self._min, max=self._max)

    def of_voxels(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and population standard deviation of each voxel over the frames, float64 [N]."""
        return self._voxel_mean, np.sqrt(self._voxel_squares / self.n_frames)


def run_statistics(frames: np.ndarray) -> RunStatistics:
    """Statistics over all brain voxels and frames.

    Args:
        frames: [T, N], any real dtype; neither T nor N may be 0.

    Returns:
        The statistics; any of them is NaN or infinite if ``frames`` holds such a value. The
        standard deviation divides by T * N.
    """
    if frames.ndim != 2 or frames.size == 0:
        raise ValueError(f"expected frames [T, N] with T, N >= 1, got shape {frames.shape}")
    statistics = StatisticsOfFrames()
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, as promised
        for frame in frames:
            statistics.add(frame)
    return statistics.result()


@dataclass(frozen=True)
class Scaling:
    """z = q * gain + shift for the stored int16 q; ``background`` is z outside the mask."""

    gain: float
    shift: float
    background: float


def scaling_of(header: RunHeader, method: str) -> Scaling:
    """The scaling of a run.

    Args:
        header: of the run.
        method: one of ``SCALING_METHODS``. ``minmax_*`` only divides by the maximum (as the
            reference does): positive data land in [0, 1]; negative values stay negative and go
            below -1 where the run's minimum is larger in size than its maximum. That of
            ``VOXEL_SCALINGS`` is for integers that ``voxel_scaling`` has made.

    Raises:
        UserInputError: an unknown method; a run that cannot be scaled so, because it is constant
            (znorm) or because its maximum is not positive (minmax).
    """
    look_up(method, SCALING_METHODS, "--input_scaling_method")
    if method in VOXEL_SCALINGS:
        return Scaling(gain=step_of(header, method), shift=0.0, background=0.0)
    centring, background = method.split("_")
    if centring == "znorm":
        if not (math.isfinite(header.std) and header.std > 0):
            raise UserInputError(
                f"--input_scaling_method {method}: the run '{header.label}' has the standard "
                f"deviation {header.std:g}, expected a positive one. Exclude the run with "
                f"--bad_subj_path FILE, or check its source '{header.source}'."
            )
        centre, spread = header.mean, header.std
    else:
        if not (math.isfinite(header.max) and header.max > 0):
            raise UserInputError(
                f"--input_scaling_method {method}: the run '{header.label}' has the maximum "
                f"{header.max:g}, expected a positive one. Use znorm_minback or znorm_zeroback "
                f"for demeaned data."
            )
        centre, spread = 0.0, header.max
    return Scaling(
        gain=header.scale / spread,
        shift=(header.offset - centre) / spread,
        background=(min(0.0, header.min) - centre) / spread if background == "minback" else 0.0,
    )
