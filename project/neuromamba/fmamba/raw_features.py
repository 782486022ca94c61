"""Features of the raw signal, beside which those of a backbone must be seen.

They come from the windows that the backbone sees, but not from its scaling: each run is divided by
one standard deviation, so that the differences between voxels stay (a scaling by voxel sets every
mean to 0 and every standard deviation to 1).

Shapes: T frames of a window, N voxels, P places (spatial patches of the model), S samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neuromamba.config.data import DataConfig
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.probe_rows import Samples
from neuromamba.fmamba.sample_rows import Rows, SampleMeans, windows_of
from neuromamba.fmamba.subject_features import (
    Parcellation,
    atlas_parcellation,
    grid_parcellation,
    regional_series,
    subject_features,
    union_of_masks,
)

AUTOCORRELATION, DEVIATION = "lag1_autocorrelation", "temporal_sd"
CONNECTIVITY, MEAN_IMAGE = "fc", "mean_image"
RAW_SCALING = "znorm_zeroback"


def raw_config(config: DataConfig) -> DataConfig:
    """The same windows, each run scaled by one mean and one standard deviation."""
    return dataclasses.replace(config, input_scaling_method=RAW_SCALING, channels=("dynamics",))


def patch_parcellation(
    grid: Sequence[int], patch: Sequence[int], voxels: np.ndarray
) -> Parcellation:
    """The spatial patches that hold some voxels.

    Args:
        grid: (X, Y, Z).
        patch: size of a patch in voxels; only the first three numbers are used.
        voxels: flat indices of the brain.
    """
    cells = np.stack(np.unravel_index(voxels, tuple(grid))) // np.array(patch[:3])[:, None]
    shape = tuple(-(-n // p) for n, p in zip(grid, patch[:3], strict=True))
    found, place = np.unique(np.ravel_multi_index(tuple(cells), shape), return_inverse=True)
    region = np.full(int(np.prod(grid)), -1, dtype=np.int32)
    region[voxels] = place
    return Parcellation(f"{len(found)} patches", region)


def lag1_autocorrelation(series: np.ndarray) -> np.ndarray:
    """Sum of products of neighbours in time over the sum of squares, about the mean: [T, P] -> [P].

    0 for a constant series. The divisor is that of lag 0 (Box and Jenkins), so it stays within 1.
    """
    centred = series - series.mean(axis=0)
    power = np.square(centred).sum(axis=0)
    products = (centred[1:] * centred[:-1]).sum(axis=0)
    return np.divide(products, power, out=np.zeros_like(power), where=power > 0)


def place_statistics(
    data: RunData, parts: Sequence[str], places: Parcellation
) -> tuple[Samples, Rows]:
    """Temporal standard deviation and lag-1 autocorrelation of the mean signal of each place.

    Both are computed in each window and averaged over the windows of a sample. A place without a
    voxel of the sample's mask has 0.

    Args:
        data: made for a downstream task, with a scaling by run (``raw_config``).
        parts: of "train", "val", "test".
        places: of the grid.

    Returns:
        The samples, and ("raw", name) -> float32 [S, P].
    """
    means = SampleMeans()
    for part in parts:
        for origins, items in windows_of(data, part, 1, "raw signal"):
            (item,) = items
            series = regional_series(item["bold"].numpy(), places, item["vox"].numpy())
            scaled = series.astype(np.float64) * item["gain"]
            rows = {DEVIATION: scaled.std(axis=0), AUTOCORRELATION: lag1_autocorrelation(scaled)}
            means.add(origins, {("raw", name): row[None] for name, row in rows.items()})
    return means.samples, means.rows


def raw_features(
    data: RunData,
    fitted: Sequence[str],
    *,
    patch: Sequence[int],
    atlas: Path | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """All features of the raw signal, of the fitted and of the test samples.

    Which voxels, places and regions are used is decided by the masks of the fitted samples.

    Args:
        data: made for a downstream task, with the scaling of the backbone or any other.
        fitted: parts that probes are fitted on; the test set is the other.
        patch: size of a patch.
        atlas: image of labels for the regions of FC, instead of cubes.

    Returns:
        Name -> ([S, D], [R, D]), samples in the order of ``sample_rows``.

    Raises:
        UserInputError: a run cannot be read, or has no variance.
    """
    raw = RunData(raw_config(data.config), data.task, write_split=False)
    voxels = union_of_masks(raw, fitted)
    grid = raw.config.grid
    regions = grid_parcellation(grid, voxels) if atlas is None else atlas_parcellation(raw, atlas)
    places = patch_parcellation(grid, patch, voxels)
    found: dict[str, list[np.ndarray]] = {}
    for parts in (fitted, ("test",)):
        _, statistics = place_statistics(raw, parts, places)
        subjects = subject_features(raw, parts, voxels, regions)
        for name in (AUTOCORRELATION, DEVIATION):
            found.setdefault(name, []).append(statistics["raw", name])
        found.setdefault(CONNECTIVITY, []).append(subjects.connectivity)
        found.setdefault(MEAN_IMAGE, []).append(subjects.volume)
    return {name: (one, two) for name, (one, two) in found.items()}
