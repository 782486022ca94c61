"""What linear baselines see of a subject: the mean volume, and correlations between regions.

Both come from exactly the windows that the model sees, read once and scaled as the model has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from tqdm import tqdm

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.nifti import read_labels
from neuromamba.data.store.reader import RunFile
from neuromamba.data.windows.dataset import Window, WindowDataset
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.connectivity import connectivity, standardised
from neuromamba.evaluation.subject_keys import subject_key

MOST_PARCELS = 100


@dataclass(frozen=True)
class Parcellation:
    """Regions of a store's grid.

    Attributes:
        name: what it is, for reports.
        region: int [X * Y * Z], 0 to P - 1, or -1 outside all regions.
    """

    name: str
    region: np.ndarray

    @property
    def count(self) -> int:
        """P."""
        return int(self.region.max()) + 1


@dataclass(frozen=True)
class SubjectFeatures:
    """Features of subjects (sessions, runs, events).

    Attributes:
        subjects: S names, as in the predictions.
        target: int [S] classes, or float [S] values.
        volume: float32 [S, N], temporal mean, in the units of the model's input.
        connectivity: float32 [S, P (P - 1) / 2], Fisher's z of the correlations between regions
            within a run, averaged over runs.
    """

    subjects: tuple[str, ...]
    target: np.ndarray
    volume: np.ndarray
    connectivity: np.ndarray


def union_of_masks(data: RunData, parts: Sequence[str]) -> np.ndarray:
    """Voxels that are brain in any run of the parts, sorted flat indices [N] into the grid."""
    brain = np.zeros(int(np.prod(data.config.grid)), dtype=bool)
    for part in parts:
        windows = data.parts[part]
        for dataset in windows.datasets if windows is not None else ():
            for path in dataset.paths:  # type: ignore[attr-defined]
                run = RunFile(path)
                brain[run.vox] = True
                run.close()
    return np.flatnonzero(brain)


def grid_parcellation(
    grid: Sequence[int], brain: np.ndarray, most: int = MOST_PARCELS
) -> Parcellation:
    """Cubes of the grid, as small as a number of regions allows; needs no atlas.

    Args:
        grid: (X, Y, Z).
        brain: flat indices of the voxels that are brain in someone.
        most: regions. A cube that is brain in less than a quarter of its voxels is none.
    """
    place = np.stack(np.unravel_index(brain, tuple(grid)))
    for edge in range(1, max(grid) + 1):
        cells = place // edge
        shape = [-(-n // edge) for n in grid]
        number = np.ravel_multi_index(tuple(cells), tuple(shape))
        _, inverse, count = np.unique(number, return_inverse=True, return_counts=True)
        whole = np.prod([min(edge, n) for n in grid])
        kept = count >= whole / 4
        if kept.sum() <= most:
            break
    new = np.where(kept, np.cumsum(kept) - 1, -1)
    region = np.full(int(np.prod(grid)), -1, dtype=np.int32)
    region[brain] = new[inverse]
    return Parcellation(f"{int(kept.sum())} cubes of {edge} voxels", region)


def atlas_parcellation(data: RunData, path: Path) -> Parcellation:
    """An image of labels in MNI space, brought to the store's grid (nearest neighbour).

    Raises:
        UserInputError: the image cannot be read, holds no whole numbers, does not overlap with the
            grid, or the store is in native space.
    """
    from nilearn.image import resample_img  # takes seconds to import

    header = data.stores[0].headers[0]
    if header.space == "native":
        raise UserInputError("--fc_atlas: the runs are in native space; leave the flag out.")
    there = resample_img(
        read_labels(path, "--fc_atlas"),
        np.array(header.affine),
        tuple(data.config.grid),
        interpolation="nearest",
        force_resample=True,
        copy_header=True,
    )
    on_grid = np.asarray(there.dataobj).ravel()
    kinds = np.unique(on_grid[on_grid > 0])
    if len(kinds) < 2:
        raise UserInputError(
            f"--fc_atlas: '{path}' has {len(kinds)} regions on the grid of the runs, expected two "
            f"or more. Is it in MNI space?"
        )
    region = np.where(on_grid > 0, np.searchsorted(kinds, on_grid), -1).astype(np.int32)
    return Parcellation(f"{len(kinds)} regions of {path.name}", region)


class _Sums:
    """What is added up for a subject."""

    def __init__(self, voxels: int, pairs: int) -> None:
        self.volume, self.windows = np.zeros(voxels), 0
        self.connectivity, self.runs = np.zeros(pairs), 0
        self.target: Any = None


def subject_features(
    data: RunData, parts: Sequence[str], voxels: np.ndarray, regions: Parcellation
) -> SubjectFeatures:
    """Read every window of the parts once.

    Args:
        data: made for a downstream task.
        parts: of "train", "val", "test".
        voxels: [N] flat indices to keep. Where one lies outside a subject's own mask it has the
            value the model sees there, that of the background.
        regions: of the same grid. One that a run has no voxel of, or no signal in, correlates with
            none (0).

    Returns:
        The subjects in the order of the parts; needs 8 * S * (N + P^2 / 2) bytes.
    """
    column = np.full(int(np.prod(data.config.grid)), -1)
    column[voxels] = np.arange(len(voxels))
    pairs = regions.count * (regions.count - 1) // 2
    found: dict[str, _Sums] = defaultdict(lambda: _Sums(len(voxels), pairs))
    for part in parts:
        names, windows = data.sample_names(part), data.parts[part]
        if windows is None:
            continue
        with tqdm(
            total=len(windows), desc=f"baselines, {part}", unit="window", disable=None
        ) as bar:
            for dataset in windows.datasets:
                assert isinstance(dataset, WindowDataset)
                series: list[np.ndarray] = []
                for i, window in enumerate(dataset.windows):
                    item = dataset[i]
                    one = found[names[subject_key(item["sample_id"], item["dataset"])]]
                    one.target = item["target"]
                    bold, vox = item["bold"].numpy(), item["vox"].numpy()
                    scaled = bold.mean(axis=0, dtype=np.float64) * item["gain"] + item["shift"]
                    volume = np.full(len(voxels), np.float32(item["background"]))
                    place = column[vox]
                    volume[place[place >= 0]] = scaled[place >= 0]
                    one.volume += volume
                    one.windows += 1
                    series.append(regional_series(bold, regions, vox))
                    if _last_of_run(dataset.windows, i, window):
                        one.connectivity += connectivity(standardised(np.concatenate(series)))
                        one.runs += 1
                        series = []
                    bar.update()
    return SubjectFeatures(
        tuple(found),
        np.array([one.target for one in found.values()]),
        np.stack([one.volume / one.windows for one in found.values()]).astype(np.float32),
        np.stack([one.connectivity / one.runs for one in found.values()]).astype(np.float32),
    )


def _last_of_run(windows: Sequence[Window], i: int, window: Window) -> bool:
    """Whether the next window is of another run or sample."""
    following = windows[i + 1 : i + 2]
    return not following or (following[0].run, following[0].sample_id) != (
        window.run,
        window.sample_id,
    )


def regional_series(bold: np.ndarray, regions: Parcellation, vox: np.ndarray) -> np.ndarray:
    """Mean of each region's voxels, [T, P]; 0 for a region without one.

    Args:
        bold: [T, N] values as stored.
        regions: of the grid.
        vox: [N] flat indices of the voxels.
    """
    region = regions.region[vox]
    inside = np.flatnonzero(region >= 0)
    count = np.bincount(region[inside], minlength=regions.count)
    weights = csr_matrix(
        (1 / count[region[inside]], (region[inside], inside)), shape=(regions.count, len(vox))
    )
    return (weights @ bold.T.astype(np.float32)).T
