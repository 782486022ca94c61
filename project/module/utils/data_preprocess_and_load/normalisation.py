"""Run statistics, and the four scalings as one affine map from the stored integers.

The store keeps raw BOLD as int16 q with y = q * scale + offset and the statistics of y over the
brain voxels of the run. Every ``--input_scaling_method`` is affine in y, hence affine in q, so one
file serves them all and scaling costs one multiply-add on the device:

    znorm_*    z = (y - mean) / std
    minmax_*   z = y / max
    *_minback  voxels outside the mask get min(0, run minimum), scaled as above
    *_zeroback voxels outside the mask get 0 after scaling

The raw background is 0. Scaled, it is the lowest value of a positive run; a run with negative
values (demeaned data) takes its own minimum instead, so that background stays the lowest value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from project.module.config import SCALING_METHODS, UserInputError, look_up
from project.module.utils.data_preprocess_and_load.run_header import RunHeader


@dataclass(frozen=True)
class RunStatistics:
    """Mean, population standard deviation, minimum and maximum of a run, in BOLD units."""

    mean: float
    std: float
    min: float
    max: float


def run_statistics(frames: np.ndarray) -> RunStatistics:
    """Statistics over all brain voxels and frames, accumulated in float64.

    Args:
        frames: [T, N], any real dtype; neither T nor N may be 0.

    Returns:
        The statistics; any of them is NaN or infinite if ``frames`` holds such a value. The
        standard deviation divides by T * N.
    """
    if frames.ndim != 2 or frames.size == 0:
        raise ValueError(f"expected frames [T, N] with T, N >= 1, got shape {frames.shape}")
    # Frame by frame: bounded memory, and two passes because E[y^2] - E[y]^2 cancels.
    mean = math.fsum(float(frame.sum(dtype=np.float64)) for frame in frames) / frames.size
    squares = math.fsum(
        float(np.square(np.subtract(frame, mean, dtype=np.float64)).sum()) for frame in frames
    )
    return RunStatistics(
        mean=mean,
        std=math.sqrt(squares / frames.size),
        min=float(frames.min()),
        max=float(frames.max()),
    )


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
            below -1 where the run's minimum is larger in size than its maximum.

    Raises:
        UserInputError: an unknown method; a run that cannot be scaled so, because it is constant
            (znorm) or because its maximum is not positive (minmax).
    """
    look_up(method, SCALING_METHODS, "--input_scaling_method")
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
