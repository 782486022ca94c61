"""Regions of the model's spatial patches: of an atlas, or the cells of a coarse grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import REGION_CELLS
from neuromamba.data.regions.atlases import Atlas, chosen_atlas
from neuromamba.inference.model import TrainedModel
from neuromamba.inference.prepared import PreparedScan


@dataclass(frozen=True)
class Regions:
    """The region of each spatial patch.

    Attributes:
        of_patch: int64 [S], number of the region of each patch in raster order; -1 for none.
        names: of the regions.
    """

    of_patch: np.ndarray
    names: tuple[str, ...]


def regions_on_grid(
    model: TrainedModel, scan: PreparedScan, atlas: Atlas | str | Path | None
) -> Regions:
    """Give each patch the region that most of its voxels belong to.

    Args:
        model: grid and patch size.
        scan: where the grid lies.
        atlas: image of labels in MNI space, the name of an atlas, or one read before; None
            for the coarse grid.

    Raises:
        UserInputError: no such atlas; a scan in native space; no overlap.
    """
    grid, patch = model.contract.model.token_grid[:3], model.contract.model.patch_size[:3]
    if atlas is None:
        return _coarse(grid)
    refuse_atlas_in_native_space(scan.header.space == "native", str(scan.source))
    # Imported here: nilearn takes seconds to load.
    from neuromamba.data.regions.extraction import labels_on

    found = atlas if isinstance(atlas, Atlas) else chosen_atlas(atlas)
    labels = labels_on(found, scan.header.grid, np.asarray(scan.header.affine))
    shape = [size for pair in zip(grid, patch, strict=True) for size in pair]
    patches = labels.reshape(shape).transpose(0, 2, 4, 1, 3, 5).reshape(int(np.prod(grid)), -1)
    number = {label: i for i, label in enumerate(found.ids)}
    of_patch = np.full(len(patches), -1)
    for i, values in enumerate(patches):
        inside = values[values > 0]
        if inside.size:
            kinds, counts = np.unique(inside, return_counts=True)
            of_patch[i] = number[int(kinds[counts.argmax()])]
    if len(set(of_patch.tolist()) - {-1}) < 2:
        raise UserInputError(
            f"--atlas: '{found.name}' does not overlap with the grid of {scan.source}. Is it in "
            f"MNI space?"
        )
    return Regions(of_patch, found.regions)


def refuse_atlas_in_native_space(native: bool, what: str) -> None:
    """Refuse an atlas, which is in MNI space, for what is in native space.

    Raises:
        UserInputError: ``native`` is true; names ``what``.
    """
    if native:
        raise UserInputError(
            f"--atlas: {what} is in native space, where an atlas in MNI space does not fit. Leave "
            f"the flag out."
        )


def _coarse(grid: tuple[int, int, int]) -> Regions:
    """The cells of the pool "regions", named by their numbers along x, y and z."""
    cells = [min(REGION_CELLS, size) for size in grid]
    place = np.stack(np.unravel_index(np.arange(np.prod(grid)), grid))
    cell = [axis * n // size for axis, n, size in zip(place, cells, grid, strict=True)]
    names = tuple("-".join(map(str, one)) for one in np.ndindex(*cells))
    return Regions(np.ravel_multi_index(cell, cells), names)
