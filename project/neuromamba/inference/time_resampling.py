"""Resampling of a run to another repetition time, by a windowed sinc.

A new value is a weighted mean of old ones: the weights are sinc(2 f (t - t_i)), with f the cutoff
frequency, times a Kaiser window (beta 6) over ``LOBES`` zero crossings on each side, and add up to
1 (Oppenheim and Schafer, Discrete-Time Signal Processing, chapters 4 and 7).

The cutoff is 0.9 of the lower of the two Nyquist frequencies, 1 / (2 TR). Gain in units of that
Nyquist frequency, far from the ends of the run: within 0.5 % up to 0.7, 0.5 at 0.9, 0.13 at 1 and
below 0.01 from 1.1 on. So next to nothing that the longer of the two TRs cannot represent is folded
into lower frequencies, and those between 0.7 and 1 are weakened. At the first and last frames the
window is cut off.

Slices of a frame are taken to be of one time, as after slice-time correction or with multiband.
"""

from __future__ import annotations

import numpy as np

LOBES = 8
CUTOFF = 0.9  # of the lower Nyquist frequency
_BETA = 6.0
_VOXELS_AT_ONCE = 1 << 15


def resampled_count(frames: int, tr: float, new_tr: float) -> int:
    """Frames after the resampling: the first at the time of the first, none after the last."""
    return int(np.floor((frames - 1) * tr / new_tr + 1e-6)) + 1


def weights(frames: int, tr: float, new_tr: float) -> np.ndarray:
    """Weight of each old frame in each new one, float64 [new, old]; rows add up to 1.

    Args:
        frames: of the run.
        tr, new_tr: seconds.
    """
    rate = CUTOFF / max(tr, new_tr)  # 2 f, per second
    old = np.arange(frames) * tr
    new = np.arange(resampled_count(frames, tr, new_tr)) * new_tr
    distance = (new[:, None] - old[None, :]) * rate
    inside = np.abs(distance) < LOBES
    ratio = np.clip(1 - np.square(distance / LOBES), 0, None)
    kernel = np.where(inside, np.sinc(distance) * np.i0(_BETA * np.sqrt(ratio)), 0)
    return kernel / kernel.sum(axis=1, keepdims=True)


def resample_time(frames_TN: np.ndarray, tr: float, new_tr: float) -> np.ndarray:
    """Resample a run.

    Args:
        frames_TN: [T, N] of any real type.
        tr, new_tr: repetition times, seconds.

    Returns:
        float32 [T', N], see ``resampled_count``.
    """
    matrix = weights(len(frames_TN), tr, new_tr)
    out = np.empty((len(matrix), frames_TN.shape[1]), np.float32)
    for begin in range(0, frames_TN.shape[1], _VOXELS_AT_ONCE):
        part = slice(begin, begin + _VOXELS_AT_ONCE)
        out[:, part] = matrix @ frames_TN[:, part].astype(np.float64)
    return out
