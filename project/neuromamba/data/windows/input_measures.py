"""Measures of what a model sees of a run, by which a new scan is compared with those of a training.

All are medians over brain voxels or shares, so that a few odd voxels do not matter, and are taken
over the frames of a window, so that runs of different length can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuromamba.data.store.reader import RunFile
from neuromamba.data.windows.dataset import WindowDataset

# Measure -> what it is, for tables.
MEASURES = {
    "kept_tokens": "share of the grid's patches with brain",
    "tsnr": "temporal signal-to-noise ratio, median over voxels",
    "temporal_sd": "standard deviation over time of the model's input, median over voxels",
    "low": "1st percentile of the model's input",
    "median": "median of the model's input",
    "high": "99th percentile of the model's input",
    "lag1": "lag-1 autocorrelation, median over voxels",
    "tr": "repetition time, seconds",
}
_WINDOWS = 2  # of a run, evenly spaced
_VOXELS = 20_000  # of a window, evenly spaced


def measures_of_run(
    dataset: WindowDataset, run: int, patch_size: Sequence[int]
) -> dict[str, float]:
    """Measure a run of a data set; see ``MEASURES``.

    Args:
        dataset: its windows, scaled as the model has them.
        run: number of the run in it.
        patch_size: px, py, pz ... of the model.

    Returns:
        Measure -> value, NaN where it is not defined (a temporal SNR without any change).

    Raises:
        UserInputError: the run cannot be read.
    """
    header = dataset.headers[run]
    numbers = [i for i, window in enumerate(dataset.windows) if window.run == run]
    chosen = sorted({numbers[round(k)] for k in np.linspace(0, len(numbers) - 1, _WINDOWS)})
    file = RunFile(dataset.paths[run])  # opened once: in small runs that takes most of the time
    found = [_of_window(dataset, number, file) for number in chosen]
    measures = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    measures["kept_tokens"] = float(kept_patches(file.vox, header.grid, patch_size).mean())
    file.close()
    return measures | {"tr": header.tr}


def _of_window(dataset: WindowDataset, number: int, file: RunFile) -> dict[str, float]:
    window, item = dataset.windows[number], dataset[number]
    header = dataset.headers[window.run]
    some = slice(None, None, max(1, header.n_voxels // _VOXELS))
    stored = file.read(np.sort(dataset.frames_of(window)))[:, some]
    raw = stored * np.float64(header.scale) + header.offset
    deviation = raw.std(axis=0)
    moves = deviation > 0
    centred = (raw - raw.mean(axis=0))[:, moves]
    scaled = item["bold"].numpy()[:, some] * item["gain"] + item["shift"]
    low, median, high = np.percentile(scaled, (1, 50, 99))
    return {
        "tsnr": _median(raw.mean(axis=0)[moves] / deviation[moves]),
        "temporal_sd": _median(scaled.std(axis=0)),
        "low": float(low),
        "median": float(median),
        "high": float(high),
        "lag1": _median((centred[1:] * centred[:-1]).sum(0) / np.square(centred).sum(0)),
    }


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else float("nan")


def kept_patches(vox: np.ndarray, grid: Sequence[int], patch_size: Sequence[int]) -> np.ndarray:
    """Whether each spatial patch holds a brain voxel: bool [S], in raster order.

    Args:
        vox: [N] flat C-order indices into the grid.
        grid: X, Y, Z.
        patch_size: px, py, pz ...
    """
    return patch_sums(np.ones(len(vox)), vox, grid, patch_size)[1] > 0


def patch_sums(
    values: np.ndarray, vox: np.ndarray, grid: Sequence[int], patch_size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum values [N] of brain voxels in each spatial patch; sums and counts of voxels, [S] each."""
    place = np.unravel_index(vox, tuple(grid))
    patch = [axis // size for axis, size in zip(place, patch_size, strict=False)]
    patches = [edge // size for edge, size in zip(grid, patch_size, strict=False)]
    flat = np.ravel_multi_index(patch, patches)
    total = int(np.prod(patches))
    return np.bincount(flat, values, total), np.bincount(flat, minlength=total)


def mirror_correlations(
    image: np.ndarray, mean: np.ndarray, grid: Sequence[int]
) -> tuple[float, tuple[float, float, float]]:
    """Correlate an image, and its mirror image along each axis, with a mean image.

    Args:
        image, mean: [S] spatial patches in raster order, 0 outside the brain.
        grid: patches along x, y and z.

    Returns:
        Correlation of the image itself, and of it mirrored along x, y and z; 0 if not defined.
        Mirrored is about the middle of the patches with brain, so that the brain keeps its place.
    """
    own, other = image.reshape(tuple(grid)), mean.reshape(tuple(grid))
    x, y, z = (_correlation(_mirror_image(own, axis), other) for axis in range(3))
    return _correlation(own, other), (x, y, z)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _mirror_image(image: np.ndarray, axis: int) -> np.ndarray:
    there = np.flatnonzero(image.any(axis=tuple({0, 1, 2} - {axis})))
    index = [slice(None)] * 3
    index[axis] = slice(there[0], there[-1] + 1)
    mirrored = np.zeros_like(image)
    mirrored[tuple(index)] = np.flip(image[tuple(index)], axis)
    return mirrored
