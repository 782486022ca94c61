"""What the inputs of a training look like, recorded in its checkpoints.

A new scan is later placed on the same grid and compared with these measures
(``inference.prepare``), so that nobody has to remember them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from neuromamba.config.model import ModelConfig
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.reader import RunFile
from neuromamba.data.windows.dataset import WindowDataset
from neuromamba.data.windows.input_measures import (
    measures_of_run,
    mirror_correlations,
    patch_sums,
)
from neuromamba.data.windows.run_data import RunData

METADATA_KEY = "inputs"  # in the "data" of a checkpoint's metadata
_RUNS = 24  # measured, evenly spaced over the training runs: seconds, whatever the data's size
_BYTE = 255


def training_inputs(data: RunData, model: ModelConfig) -> dict[str, Any]:
    """Describe the inputs of the training runs, in plain containers.

    Args:
        data: of the training; some runs of it are read.
        model: grid and patch size.

    Returns:
        runs: number of runs measured; measures: name -> [lowest, median, highest] over them, null
        where not defined (``data.windows.input_measures``); grid_affine: rows of the affine [4, 4]
        of the target grid of most training runs, null in native space or where runs differ; mean:
        hexadecimal, one byte a spatial patch in raster order, the mean image over the runs, 0
        outside the brain of most of them; mirror_gain: along x, y and z, by how much the mirror
        image of a run resembles that mean more than the run does, the highest over the runs.

    Raises:
        UserInputError: a run cannot be read.
    """
    runs = [
        (windows, run) for windows in data.window_sets("train") for run in _with_windows(windows)
    ]
    chosen = [runs[i] for i in sorted({round(k) for k in np.linspace(0, len(runs) - 1, _RUNS)})]
    found = [measures_of_run(windows, run, model.patch_size) for windows, run in chosen]
    images = [patch_image(windows, run, model) for windows, run in chosen]
    mean = _mean_image(images)
    return {
        "runs": len(found),
        "measures": {name: _range([one[name] for one in found]) for name in found[0]},
        "grid_affine": _common_affine([windows.headers[run] for windows, run in runs]),
        "mean": mean,
        "mirror_gain": _mirror_gain(images, model),
    }


def _with_windows(windows: WindowDataset) -> list[int]:
    return sorted({window.run for window in windows.windows})


def _range(values: list[float]) -> list[float | None]:
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return [None, None, None]
    return [float(f(finite)) for f in (np.min, np.median, np.max)]


def _common_affine(headers: list[RunHeader]) -> list[list[float]] | None:
    if any(header.space == "native" for header in headers):
        return None
    affines = Counter(tuple(np.round(header.affine, 3).ravel().tolist()) for header in headers)
    affine, count = affines.most_common(1)[0]
    if 2 * count < len(headers):
        return None
    return np.reshape(affine, (4, 4)).tolist()


def _mean_image(images: list[np.ndarray]) -> str:
    """Mean of images [S], NaN outside the brain, as hexadecimal bytes."""
    inside = np.isfinite(images).sum(axis=0)
    mean = np.nansum(images, axis=0) / np.maximum(inside, 1)
    mean[2 * inside < len(images)] = 0
    # A patch with brain stays above 0, whatever its intensity.
    steps = np.where(mean != 0, np.clip(np.rint(mean / mean.max() * _BYTE), 1, _BYTE), 0)
    return steps.astype(np.uint8).tobytes().hex()


def _mirror_gain(images: list[np.ndarray], model: ModelConfig) -> list[float]:
    """Measure how much more a mirror image resembles the mean of the other runs, at most.

    The others, because a run is in the mean of all, and a new scan is not.
    """
    gains = [[0.0, 0.0, 0.0]]
    for number, image in enumerate(images):
        others = images[:number] + images[number + 1 :]
        if others:
            mean = patches_of(_mean_image(others))
            own, mirrored = mirror_correlations(np.nan_to_num(image), mean, model.token_grid[:3])
            gains.append([one - own for one in mirrored])
    return [float(gain) for gain in np.max(gains, axis=0)]


def patch_image(windows: WindowDataset, run: int, model: ModelConfig) -> np.ndarray:
    """Mean image of a run's first window on the grid of patches, relative to its mean.

    Returns:
        float64 [S] in raster order, NaN in patches without brain. Intensities count from the
        lowest of the run, so that demeaned data have one too.
    """
    number = next(i for i, window in enumerate(windows.windows) if window.run == run)
    header = windows.headers[run]
    file = RunFile(windows.paths[run])
    frames = file.read(np.sort(windows.frames_of(windows.windows[number])))
    vox = file.vox
    file.close()
    mean = frames.mean(axis=0) * header.scale + header.offset - min(0.0, header.min)
    sums, counts = patch_sums(mean, vox, header.grid, model.patch_size)
    with np.errstate(invalid="ignore", divide="ignore"):
        image = sums / counts
    return image / np.nanmean(image) if np.nanmean(image) > 0 else np.where(counts, 1.0, np.nan)


def patches_of(mean: str) -> np.ndarray:
    """The mean image of ``training_inputs``, float64 [S]; 0 outside the brain."""
    return np.frombuffer(bytes.fromhex(mean), np.uint8) / _BYTE
