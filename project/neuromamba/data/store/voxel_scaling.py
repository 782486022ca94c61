"""Scalings that differ from voxel to voxel: they take the anatomy out and leave the dynamics.

    voxelnorm_zeroback  z = (y - mean of the voxel) / max(std of the voxel, floor)
    demean_zeroback     z = (y - mean of the voxel) / spread

The background is 0. Mean and standard deviation are over the frames of the run or, with
``--scaling_statistics window``, of the window. ``spread`` is one number for all voxels, the root
mean square of their standard deviations, so that z has variance 1 over all of them.

The floor keeps voxels stable that hardly change: at the edge of the mask, or where there is no
signal, dividing by the standard deviation would blow quantisation noise up to variance 1. It is
the larger of 5 % of the median standard deviation of the voxels that change and one step of the
stored integers. A voxel that never changes is 0.

The mean image that they take out is scaled by ``anatomy_of``, for ``--channels anatomy dynamics``:

    a = (mean of the voxel - mean over the brain) / standard deviation over the brain

The z are rounded to integers of their own when a window is read, so that a window is int16 with one
gain and one shift under every scaling; ``step_of`` is the gain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.voxel_statistics import moments

FLOOR = 0.05  # of the median standard deviation
# Largest |z| of demean_zeroback: a voxel may vary far more than the others.
DEMEANED_LIMIT = 128.0
_LARGEST = 32767
# Largest |a| of the mean image, and the a that one of its integers stands for.
ANATOMY_LIMIT = 32.0
ANATOMY_STEP = ANATOMY_LIMIT / _LARGEST


def step_of(header: RunHeader, method: str) -> float:
    """The z that one integer stands for.

    The z-score of a voxel over T frames lies within sqrt(T - 1), so with ``voxelnorm_zeroback`` the
    rounding is at most sqrt(T) / 65,534 standard deviations: 5e-4 for 1,200 frames. That of
    ``demean_zeroback`` is 2e-3; values beyond ``DEMEANED_LIMIT`` are limited to it.
    """
    limit = DEMEANED_LIMIT if method.startswith("demean") else math.sqrt(header.n_frames)
    return limit / _LARGEST


@dataclass(frozen=True)
class VoxelScaling:
    """Integers of z: rint(q * gain + shift) for the stored q, [N] each, float32."""

    gain: np.ndarray
    shift: np.ndarray

    def apply(self, frames_TN: np.ndarray) -> None:
        """Replace the stored integers of a window, int16 [T, N]."""
        for frame in frames_TN:  # one by one: the floats stay in the cache
            z = frame * self.gain
            z += self.shift
            np.rint(z, out=z)
            frame[:] = np.clip(z, -_LARGEST, _LARGEST, out=z)


@dataclass(frozen=True)
class WindowVoxelScaling:
    """The scaling of a window by its own statistics.

    Args:
        header: of the run.
        method: one of ``VOXEL_SCALINGS``.
    """

    header: RunHeader
    method: str

    def apply(self, frames_TN: np.ndarray) -> None:
        """Replace the stored integers of a window, int16 [T, N]."""
        total, squares = np.zeros((2, frames_TN.shape[1]), np.int64)
        for frame in frames_TN:
            values = frame.astype(np.int64)
            total += values
            squares += values * values
        mean, std = moments(total, squares, len(frames_TN))
        scale, offset = self.header.scale, self.header.offset
        voxel_scaling_of(self.header, self.method, offset + scale * mean, scale * std).apply(
            frames_TN
        )


def voxel_scaling_of(
    header: RunHeader, method: str, mean: np.ndarray, std: np.ndarray
) -> VoxelScaling:
    """The scaling from statistics.

    Args:
        header: of the run.
        method: one of ``VOXEL_SCALINGS``.
        mean, std: [N], of the voxels over the frames, in BOLD units.
    """
    changing = std > 0
    spread = np.ones(std.shape)
    if changing.any() and method.startswith("demean"):
        spread[:] = math.sqrt(np.square(std, dtype=np.float64).mean())
    elif changing.any():
        floor = max(FLOOR * float(np.median(std[changing])), header.scale)
        spread = np.maximum(std.astype(np.float64), floor)
    rate = np.where(changing, 1 / (spread * step_of(header, method)), 0)
    return VoxelScaling(
        (header.scale * rate).astype(np.float32),
        ((header.offset - mean.astype(np.float64)) * rate).astype(np.float32),
    )


def anatomy_of(mean: np.ndarray) -> np.ndarray:
    """The mean image of a run or window, standardised over the brain's voxels, as integers.

    Args:
        mean: [N], of each voxel over the frames, in any unit that grows with the signal.

    Returns:
        int16 [N], to be multiplied by ``ANATOMY_STEP``; values beyond ``ANATOMY_LIMIT`` are limited
        to it. All 0 if the voxels do not differ.
    """
    centred = mean.astype(np.float64) - mean.mean(dtype=np.float64)
    spread = math.sqrt(np.square(centred).mean())
    if not spread > 0:
        return np.zeros(mean.shape, np.int16)
    steps = np.rint(centred / (spread * ANATOMY_STEP))
    return np.clip(steps, -_LARGEST, _LARGEST).astype(np.int16)
