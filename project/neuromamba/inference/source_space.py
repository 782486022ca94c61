"""Values of brain voxels from a store's grid back into the space of the file they came from.

The converter reorients a run, perhaps resamples it, and crops or pads it to the grid. What it did
follows from two affines alone: ``inverse(source affine) @ grid affine`` takes an index of the grid
to an index of the source. If it only swaps, flips and shifts axes by whole voxels, every value goes
back to exactly the voxel it came from; otherwise the run was resampled, and the values are
interpolated.

Voxels that the grid does not hold, outside the mask or cropped away, get ``outside``, by default 0.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import nibabel
import numpy as np

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.space import space_kind
from neuromamba.data.regions.atlases import Atlas
from neuromamba.data.store.header import RunHeader, Triple
from neuromamba.inference.region_series import SourceGrid

_AXES_TOLERANCE = 1e-5  # of a direction cosine times a ratio of voxel sizes
_SHIFT_TOLERANCE = 1e-2  # voxels
_COVERED = 0.5  # share of an interpolated voxel that brain voxels must contribute
_INTERPOLATIONS = {"nearest": 0, "linear": 1}  # name -> order of the spline
_MNI_CODE, _OTHER_CODE = 4, 2  # of NIfTI: MNI152, and aligned to something else


def exact_indices(vox: np.ndarray, header: RunHeader) -> np.ndarray | None:
    """Position of each brain voxel in the source file.

    Args:
        vox: [N] flat C-order indices into the grid of ``header``.
        header: of the run.

    Returns:
        int64 [N, 3] indices into the source, or None if the run was resampled.

    Raises:
        UserInputError: a voxel would lie outside the source: the header's affines are wrong.
    """
    grid = np.asarray(header.affine, dtype=np.float64)
    to_source = np.linalg.inv(np.asarray(header.source_affine, dtype=np.float64)) @ grid
    axes, shift = np.rint(to_source[:3, :3]), np.rint(to_source[:3, 3])
    permutes = (np.abs(axes).sum(0) == 1).all() and (np.abs(axes).sum(1) == 1).all()
    if (
        not permutes
        or np.abs(to_source[:3, :3] - axes).max() > _AXES_TOLERANCE
        or np.abs(to_source[:3, 3] - shift).max() > _SHIFT_TOLERANCE
    ):
        return None
    index = np.stack(np.unravel_index(vox, header.grid), axis=1)
    found = (index @ axes.T + shift).astype(np.int64)
    if (found < 0).any() or (found >= np.asarray(header.source_shape)).any():
        raise UserInputError(
            f"{header.label}: by the affines of its header, brain voxels of the store lie outside "
            f"the source of {' x '.join(map(str, header.source_shape))} voxels. Convert the run "
            f"again with neuromamba preprocess --overwrite."
        )
    return found


def to_source_image(
    values: np.ndarray,
    vox: np.ndarray,
    header: RunHeader,
    *,
    interpolation: str = "linear",
    outside: float = 0.0,
) -> nibabel.Nifti1Image:
    """Values of brain voxels as an image with the shape and the affine of the source file.

    A run that was resampled is interpolated back: "linear" weighs the surrounding brain voxels and
    leaves those outside the mask out of the mean, so that values at the edge of the brain are not
    drawn towards ``outside``; a voxel of the source counts as brain if half of the weight is.

    Args:
        values: [N] for a 3D image, [T, N] for a 4D one.
        vox: [N] flat C-order indices into the grid of ``header``.
        header: of the run in the store.
        interpolation: of resampled runs: "linear", or "nearest" for labels and masks.
        outside: value of voxels that ``vox`` does not hold.

    Returns:
        float32 image [X, Y, Z] or [X, Y, Z, T] in the source's order of axes; 4D images have the
        run's TR. Space codes say MNI152 if the run's space is an MNI space.

    Raises:
        UserInputError: the header's affines contradict its shapes.
        ValueError: shapes that do not fit together.
    """
    if interpolation not in _INTERPOLATIONS:
        raise ValueError(f"interpolation: {interpolation!r}, expected linear or nearest")
    rows = np.atleast_2d(np.asarray(values, dtype=np.float32))
    if vox.ndim != 1 or rows.ndim != 2 or rows.shape[1] != vox.size:
        raise ValueError(f"values {np.shape(values)} do not belong to vox {vox.shape}")
    index = exact_indices(vox, header)
    if index is None:
        volumes = _interpolated(rows, vox, header, interpolation, outside)
    else:
        volumes = np.full((*header.source_shape, len(rows)), outside, np.float32)
        volumes[tuple(index.T)] = rows.T
    affine = np.asarray(header.source_affine, dtype=np.float64)
    if np.ndim(values) == 1:
        volumes = volumes[..., 0]
    image = _placed(volumes, affine, header.space)
    if np.ndim(values) == 2 and math.isfinite(header.tr):
        image.header["pixdim"][4] = header.tr
    return image


def grid_image(
    values: np.ndarray,
    vox: np.ndarray,
    grid: Triple,
    affine: np.ndarray,
    *,
    space: str,
    outside: float = 0.0,
) -> nibabel.Nifti1Image:
    """Values of brain voxels as an image of a store's grid, where scans of a group correspond.

    Args:
        values: [N].
        vox: [N] flat C-order indices into the grid.
        grid, affine, space: see ``RunHeader``.
        outside: value of voxels that ``vox`` does not hold.
    """
    volume = np.full(math.prod(grid), outside, np.float32)
    volume[vox] = values
    return _placed(volume.reshape(grid), np.asarray(affine, dtype=np.float64), space)


def region_image(values: np.ndarray, atlas: Atlas, grid: SourceGrid | None) -> nibabel.Nifti1Image:
    """Values of regions as an image: each voxel of a region has the value of the region.

    Args:
        values: [N].
        atlas: the regions, in MNI space.
        grid: voxels of the image; None for those of the atlas.

    Returns:
        float32 image [X, Y, Z]; 0 outside the regions.
    """
    if grid is None:
        return atlas.image_of(values)
    # Imported here: nilearn takes seconds to load.
    from neuromamba.data.regions.extraction import labels_on

    labels = labels_on(atlas, grid.shape, grid.affine)
    of_label = np.zeros(max(int(labels.max()), *atlas.ids) + 1, np.float32)
    of_label[list(atlas.ids)] = values
    return _placed(of_label[labels], np.asarray(grid.affine, dtype=np.float64), "MNI")


def _placed(volume: np.ndarray, affine: np.ndarray, space: str) -> nibabel.Nifti1Image:
    """An image with both forms of its affine and the code of its space."""
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume), affine)
    code = _MNI_CODE if space_kind(space) == "mni" else _OTHER_CODE
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.set_qform(None)  # a qform has no shears; the sform says it all
    image.header.set_xyzt_units("mm", "sec")
    return image


def _interpolated(
    rows: np.ndarray, vox: np.ndarray, header: RunHeader, how: str, outside: float
) -> np.ndarray:
    """Rows [T, N] resampled to the source, float32 [X, Y, Z, T]."""
    from scipy import ndimage  # a fifth of a second to import

    to_grid = np.linalg.inv(np.asarray(header.affine)) @ np.asarray(header.source_affine)

    def moved(row: np.ndarray | float) -> np.ndarray:
        volume = np.zeros(math.prod(header.grid), np.float32)
        volume[vox] = row
        return np.asarray(
            ndimage.affine_transform(
                volume.reshape(header.grid),
                to_grid[:3, :3],
                to_grid[:3, 3],
                header.source_shape,
                order=_INTERPOLATIONS[how],
                mode="grid-constant",  # 0 beyond the grid, and interpolated towards it
            )
        )

    weight = moved(1.0)
    brain = weight >= _COVERED
    result = np.full((*header.source_shape, len(rows)), outside, np.float32)
    for t, row in enumerate(rows):
        result[brain, t] = moved(row)[brain] / weight[brain]
    return result


def save_image(image: nibabel.Nifti1Image, path: Path, level: int = 6) -> Path:
    """Write a NIfTI file (``.nii.gz``) atomically; equal images give equal files.

    Args:
        image: what is written.
        path: of the file.
        level: of the compression, 1 (fast) to 9.

    Returns:
        The path.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=level, mtime=0))
    return path
