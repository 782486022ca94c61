"""The scaling of a rollout: with which statistics, there and back.

Training scales a window by statistics of its whole run (or of the whole window). A rollout that did
the same would tell the model something of the frames that it is to predict: with a voxel-wise
scaling each voxel's mean over the run is 0, so a prediction of 0 would already know it. Statistics
of the prompt alone have no such leak, at the price that they are less exact than those of training.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.names import ROLLOUT_STATISTICS, VOXEL_SCALINGS
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.normalisation import run_statistics, scaling_of
from neuromamba.data.store.voxel_scaling import (
    ANATOMY_STEP,
    anatomy_of,
    step_of,
    voxel_scaling_of,
)
from neuromamba.data.store.voxel_statistics import voxel_statistics_of


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameScaling:
    """Scaled values z = q * gain + shift of the stored integers q, voxel by voxel.

    Attributes:
        method: ``--input_scaling_method`` of the model.
        statistics: "prompt" or "run", what the statistics are over.
        gain, shift: float32 [N]; the gain of a voxel that never changes is 0 under the voxel-wise
            scalings.
        background: z outside the mask.
        mean: float32 [N], of each voxel over the frames of the statistics, in the source's units.
        unit: (scale, offset) of the file: intensity = q * scale + offset.
    """

    method: str
    statistics: str
    gain: np.ndarray
    shift: np.ndarray
    background: float
    mean: np.ndarray
    unit: tuple[float, float]

    @property
    def scaled_mean(self) -> np.ndarray:
        """``mean`` in scaled units, float32 [N]: what the scaling knows of each voxel's level."""
        scale, offset = self.unit
        return self.apply((self.mean - offset) / scale)

    @property
    def anatomy(self) -> np.ndarray:
        """The mean image as ``--channels anatomy dynamics`` takes it, float32 [N]."""
        return anatomy_of(self.mean) * np.float32(ANATOMY_STEP)

    def apply(self, stored_TN: np.ndarray) -> np.ndarray:
        """Stored integers [T, N] -> scaled float32 [T, N], without rounding and limits."""
        return stored_TN * self.gain + self.shift

    def restore(self, scaled_TN: np.ndarray) -> np.ndarray:
        """Scaled values [T, N] -> float32 [T, N] in the intensity units of the source file.

        A voxel that never changes in the frames of the statistics gets its mean.
        """
        scale, offset = self.unit
        changes = self.gain != 0
        stored = (scaled_TN - self.shift) / np.where(changes, self.gain, 1)
        return np.where(changes, stored * scale + offset, self.mean).astype(np.float32)


def frame_scaling(
    path: Path, header: RunHeader, prompt: np.ndarray, method: str, statistics: str = "prompt"
) -> FrameScaling:
    """Make the scaling of a rollout.

    Args:
        path, header: of the run.
        prompt: int16 [P, N] stored frames of the prompt.
        method: ``--input_scaling_method`` of the model.
        statistics: of ``ROLLOUT_STATISTICS``.

    Raises:
        UserInputError: an unknown name; a prompt (or run) that cannot be scaled so.
    """
    look_up(statistics, ROLLOUT_STATISTICS, "--statistics")
    frames = prompt.astype(np.float64) * header.scale + header.offset
    mean, std = frames.mean(0), frames.std(0)
    if statistics == "run":
        mean, std = voxel_statistics_of(path)
    if method in VOXEL_SCALINGS:
        if statistics == "prompt" and len(prompt) < 2:
            raise UserInputError(
                f"--prompt: got {len(prompt)} frame, and {method} needs the change of each voxel "
                f"over the prompt. Give more frames, or --statistics run."
            )
        step = step_of(header, method)
        of_voxels = voxel_scaling_of(header, method, mean, std)
        gain, shift, background = of_voxels.gain * step, of_voxels.shift * step, 0.0
    else:
        if statistics == "prompt":
            found = dataclasses.asdict(run_statistics(frames))
            header = dataclasses.replace(header, **found)
        whole = scaling_of(header, method)
        gain, shift = (np.full(prompt.shape[1], one) for one in (whole.gain, whole.shift))
        background = whole.background
    return FrameScaling(
        method=method,
        statistics=statistics,
        gain=gain.astype(np.float32),
        shift=shift.astype(np.float32),
        background=float(background),
        mean=mean.astype(np.float32),
        unit=(header.scale, header.offset),
    )
