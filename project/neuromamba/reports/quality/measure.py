"""Numbers that tell a healthy run of a store from a broken one; one pass over its frames.

Frames are read in blocks, so memory holds a few megabytes of them whatever the length of the run.
Letters in shapes: T frames that are read, t frames of a block, N brain voxels, G groups of voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from neuromamba.common.errors import UserInputError
from neuromamba.data.store.header import Triple
from neuromamba.data.store.normalisation import Scaling, scaling_of
from neuromamba.data.store.reader import RunFile

VERSION = 1  # of the numbers and pictures: another one makes caches void
CARPET_ROWS = 40
HISTOGRAM_FRAMES = 32  # frames in the histogram, at most
REDUCED_SIDE = 40  # longest side of the mean image that is compared between runs, voxels

_VALUES_AT_ONCE = 1 << 21
_ROWS_AT_ONCE = 64  # float32 sums over so many rows lose nothing that matters
_CODES = 1 << 16
_CLIP = 2.5  # standard deviations; neither bright vessels nor the edge must decide a correlation


@dataclass(frozen=True)
class QualityOptions:
    """What to measure.

    Attributes:
        frames: evenly spaced frames to read at most; 0 reads all.
        patch_size: X, Y, Z of a patch.
        scaling: one of ``RUN_SCALINGS``, for the histogram.
    """

    frames: int = 0
    patch_size: Triple = (6, 6, 6)
    scaling: str = "znorm_minback"


@dataclass(frozen=True, kw_only=True)
class RunNumbers:
    """What is measured of one run; None where it is not defined.

    Attributes:
        frames_read: frames that the numbers come from; frame_step: their distance.
        kept_patches, patches: spatial patches with a brain voxel, and all of them; None if the
            patch size does not divide the grid.
        mean_std_ratio: mean over standard deviation of all intensities, from the header.
        tsnr: temporal signal-to-noise ratio, |mean| / standard deviation over time, median of the
            voxels that vary.
        jump: largest root-mean-square difference of two consecutive frames over the median one.
        jump_frame: the later one of these two, counted from 0.
        repeated_frames: frames equal to the one before.
        constant_voxels: voxels that never change; zero_voxels: those of them that are 0.
        background: level outside the mask after scaling.
        unscalable: why the run cannot be scaled, or "".
    """

    frames_read: int
    frame_step: int
    kept_patches: int | None
    patches: int | None
    mean_std_ratio: float | None
    tsnr: float | None
    jump: float | None
    jump_frame: int | None
    repeated_frames: int
    constant_voxels: int
    zero_voxels: int
    background: float | None
    unscalable: str

    @property
    def kept_fraction(self) -> float | None:
        """Share of the tokens that are kept."""
        if self.kept_patches is None or self.patches is None:
            return None
        return self.kept_patches / self.patches


class FrameStatistics(NamedTuple):
    """What one pass over the frames gives, in the units of the source unless stated.

    Attributes:
        mean, std: [N] float64, of every voxel over time (population standard deviation).
        global_signal: [T] mean over the voxels.
        difference: [T - 1] root-mean-square difference from the frame before.
        carpet: [G, T] mean of each group of voxels.
        codes: [65536] how often each stored integer occurs, from -32768 up, in some of the frames.
    """

    mean: np.ndarray
    std: np.ndarray
    global_signal: np.ndarray
    difference: np.ndarray
    carpet: np.ndarray
    codes: np.ndarray


class Histogram(NamedTuple):
    """Share of the values [bins] of a run after scaling; the end bins hold what lies outside."""

    low: float
    high: float
    shares: np.ndarray


class RunMeasured(NamedTuple):
    """Everything that is measured of a run; ``mean`` and ``std`` [X, Y, Z] are 0 off the mask.

    ``reduced`` is the mean image for the comparison between runs (``reduced_image``), ``kept`` the
    patches that hold brain, bool [gx, gy, gz], or None.
    """

    numbers: RunNumbers
    frames: range
    statistics: FrameStatistics
    histogram: Histogram | None
    mask: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    kept: np.ndarray | None
    reduced: np.ndarray


def frames_to_read(n_frames: int, limit: int) -> range:
    """Choose at most ``limit`` evenly spaced frames of a run, from the first; 0 takes all."""
    step = math.ceil(n_frames / limit) if limit else 1
    return range(0, n_frames, step)


def depth_groups(mask: np.ndarray, groups: int = CARPET_ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Sort the voxels of a mask by their distance from its edge and cut them into equal groups.

    Args:
        mask: bool [X, Y, Z].

    Returns:
        Order [N] of the voxels (edge first), and where each group starts in it.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1][mask]
    starts = np.linspace(0, depth.size, min(groups, depth.size), endpoint=False).astype(np.int64)
    return np.argsort(depth, kind="stable"), starts


def _blocks(frames: range, n_voxels: int) -> Iterator[range]:
    rows = min(max(1, _VALUES_AT_ONCE // n_voxels), _ROWS_AT_ONCE)
    for start in range(0, len(frames), rows):
        yield frames[start : start + rows]


def frame_statistics(
    run: RunFile, frames: range, groups: tuple[np.ndarray, np.ndarray]
) -> FrameStatistics:
    """Read frames block after block and accumulate; ``groups`` are those of ``depth_groups``."""
    header = run.header
    order, starts = groups
    sizes = np.diff([*starts, order.size])
    mean, squares = np.zeros((2, header.n_voxels))
    codes = np.zeros(_CODES, dtype=np.int64)
    every = math.ceil(len(frames) / HISTOGRAM_FRAMES)
    carpet: list[np.ndarray] = []
    difference: list[np.ndarray] = []
    last: np.ndarray | None = None
    done = 0
    for block in _blocks(frames, header.n_voxels):
        stored = run.read(block)
        values = stored.astype(np.float32)
        chosen = stored[-done % every :: every].astype(np.int64)
        codes += np.bincount((chosen + _CODES // 2).ravel(), minlength=_CODES)
        carpet.append(np.add.reduceat(values[:, order], starts, axis=1, dtype=np.float64).T)
        before = values[:-1] if last is None else np.concatenate([last, values[:-1]])
        step = values[len(values) - len(before) :] - before
        np.square(step, out=step)
        difference.append(np.sqrt(step.mean(axis=1, dtype=np.float64)))
        last = values[-1:].copy()
        # Merge sums of squares about the means (Chan, Golub and LeVeque 1979).
        centre = values.mean(axis=0, dtype=np.float64)
        values -= centre.astype(np.float32)
        added, total = len(values), done + len(values)
        shift = centre - mean
        squares += np.einsum("tn,tn->n", values, values)
        squares += shift * shift * (done * added / total)
        mean += shift * (added / total)
        done = total
    scale, offset = header.scale, header.offset
    sums = np.concatenate(carpet, axis=1)
    return FrameStatistics(
        mean=mean * scale + offset,
        std=np.sqrt(squares / done) * scale,
        global_signal=sums.sum(axis=0) / order.size * scale + offset,
        difference=np.concatenate(difference) * scale,
        carpet=sums / sizes[:, None] * scale + offset,
        codes=codes,
    )


def scaled_histogram(codes: np.ndarray, scaling: Scaling, method: str) -> Histogram:
    """Histogram after scaling, on a range that all runs of a store share."""
    low, high, bins = (-9.0, 6.0, 60) if method.startswith("znorm") else (-0.2, 1.0, 60)
    used = np.flatnonzero(codes)
    scaled = (used - _CODES // 2) * scaling.gain + scaling.shift
    place = np.floor((scaled - low) / (high - low) * bins).astype(np.int64).clip(0, bins - 1)
    counts = np.bincount(place, weights=codes[used], minlength=bins)
    return Histogram(low, high, counts / counts.sum())


def reduced_image(mean: np.ndarray, mask: np.ndarray, background: float) -> np.ndarray:
    """A mean image for comparison between runs: standardised in the mask, block-averaged.

    Args:
        mean: [X, Y, Z], any units; only voxels of the mask count.
        mask: bool [X, Y, Z].
        background: level outside the mask, in the units of ``mean``.

    Returns:
        float16, no side longer than 40; zeros if the mean image is constant. Values are clipped
        at 2.5 standard deviations. Sides that the factor does not divide are padded.
    """
    inside = mean[mask]
    spread = float(inside.std())
    if not spread > 0:
        full = np.zeros(mean.shape)
    else:
        full = (np.where(mask, mean, background) - inside.mean()) / spread
        full = full.clip(-_CLIP, _CLIP)
    factor = math.ceil(max(mean.shape) / REDUCED_SIDE)
    sides: list[int] = [-(-length // factor) for length in mean.shape]
    missing = [n * factor - length for n, length in zip(sides, mean.shape, strict=True)]
    full = np.pad(full, [(0, n) for n in missing], mode="edge")
    x, y, z = sides
    return full.reshape(x, factor, y, factor, z, factor).mean(axis=(1, 3, 5)).astype(np.float16)


def patches_with_brain(mask: np.ndarray, patch: Triple) -> np.ndarray | None:
    """Which patches hold a voxel of the mask, bool [gx, gy, gz]; None if they do not fit."""
    if any(side % size for side, size in zip(mask.shape, patch, strict=True)):
        return None
    x, y, z = (side // size for side, size in zip(mask.shape, patch, strict=True))
    cut = mask.reshape(x, patch[0], y, patch[1], z, patch[2])
    return np.asarray(cut.any(axis=(1, 3, 5)))


def measure_run(run: RunFile, options: QualityOptions) -> RunMeasured:
    """Read a run once and measure it.

    Raises:
        UserInputError, OSError, RuntimeError: the file cannot be read.
    """
    header = run.header
    mask = np.zeros(header.grid, dtype=bool)
    mask.flat[run.vox] = True
    frames = frames_to_read(header.n_frames, options.frames)
    found = frame_statistics(run, frames, depth_groups(mask))
    mean, std = np.zeros((2, *header.grid))
    mean[mask], std[mask] = found.mean, found.std
    kept = patches_with_brain(mask, options.patch_size)
    histogram, background, unscalable = None, None, ""
    try:
        scaling = scaling_of(header, options.scaling)
    except UserInputError as error:
        unscalable = str(error)
    else:
        histogram = scaled_histogram(found.codes, scaling, options.scaling)
        background = scaling.background
    varies = found.std > 0
    # Half a step of the stored integers is what zero may be off by.
    zero = ~varies & (np.abs(found.mean) <= 0.501 * header.scale)
    snr = np.abs(found.mean[varies]) / found.std[varies]
    difference = found.difference
    usual = float(np.median(difference)) if difference.size else 0.0
    worst = int(difference.argmax()) if usual > 0 else None
    numbers = RunNumbers(
        frames_read=len(frames),
        frame_step=frames.step,
        kept_patches=None if kept is None else int(kept.sum()),
        patches=None if kept is None else kept.size,
        mean_std_ratio=header.mean / header.std if header.std > 0 else None,
        tsnr=float(np.median(snr)) if snr.size else None,
        jump=None if worst is None else float(difference[worst]) / usual,
        jump_frame=None if worst is None else frames[worst + 1],
        repeated_frames=int((difference == 0).sum()),
        constant_voxels=int((~varies).sum()),
        zero_voxels=int(zero.sum()),
        background=background,
        unscalable=unscalable,
    )
    reduced = reduced_image(mean, mask, min(0.0, float(found.mean.min())))
    return RunMeasured(numbers, frames, found, histogram, mask, mean, std, kept, reduced)
