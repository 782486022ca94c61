"""Which voxels of a run are kept, and where they go in the target grid.

Orientation, mask and crop/pad together are one index vector into a flat frame: the values of the
brain voxels in C-order of the target grid.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel import orientations

from neuromamba.common.errors import UserInputError, see
from neuromamba.data.ingest.nifti import READ_ERRORS, NiftiRun, damaged, las_transform, load_image
from neuromamba.data.ingest.space import OBLIQUE_NOTED, field_of_view, oblique_angle
from neuromamba.data.store.header import Triple

NONZERO_LIMIT = 0.95  # a run with fewer nonzero voxels than this has been masked before
_WEIGHT_ROUNDING = 1e-3  # of interpolated weights above 1
# Brain volume, cm3: from a slab of a child's brain to a whole head of an adult.
_PLAUSIBLE = (200.0, 2600.0)
_AFFINE_TOLERANCE = 1e-2  # mm; headers store float32


def load_mask(path: Path, run: NiftiRun) -> np.ndarray:
    """A mask image as bool [X, Y, Z] in LAS order, on the grid of ``run``.

    Weights from 0 to 1 (probabilities, resampled masks) count as brain above one half; in any other
    image every value above 0 does.

    Raises:
        UserInputError: another shape or affine than the run's, or not a 3D image.
    """
    image = load_image(path)
    try:
        values = np.asanyarray(image.dataobj)
    except READ_ERRORS as error:
        raise damaged(path, error) from None
    values = values.reshape(values.shape[:3]) if values.shape[3:] in ((), (1,)) else values
    if values.ndim != 3:
        raise UserInputError(f"{path}: a mask of {values.ndim} dimensions, expected 3.")
    to_las = las_transform(np.asarray(image.affine), path)
    affine = image.affine @ orientations.inv_ornt_aff(to_las, values.shape)
    mask = np.asarray(orientations.apply_orientation(values, to_las))
    same_space = np.allclose(affine, run.las_affine, atol=_AFFINE_TOLERANCE)
    if mask.shape != run.las_shape or not same_space:
        raise UserInputError(
            f"{path}: this mask ({' x '.join(map(str, mask.shape))}) is not on the grid of "
            f"'{run.path.name}' ({' x '.join(map(str, run.las_shape))}) or has another affine. "
            f"Resample the mask to the run, or choose the mask with --mask."
        )
    whole = np.array_equal(mask, np.rint(mask))
    weights = not whole and mask.min() >= 0 and mask.max() <= 1 + _WEIGHT_ROUNDING
    return np.asarray(mask > (0.5 if weights else 0))


def epi_mask(mean: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Brain mask of a mean EPI volume [X, Y, Z] by nilearn's histogram method; bool [X, Y, Z]."""
    from nilearn.masking import compute_epi_mask

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty mask is an error of ours, later
        image = compute_epi_mask(nibabel.Nifti1Image(mean.astype(np.float32), affine))
    return np.asarray(image.dataobj) > 0


def choose_mask(
    run: NiftiRun, rule: str, first: int, sibling: Path | None
) -> tuple[np.ndarray, str]:
    """Brain mask of a run and the name of where it comes from.

    Args:
        run: the run; its frames are read once unless a mask image is used.
        rule: "auto" (the sibling mask; else the nonzero voxels if they are fewer than 95 %; else
            a computed EPI mask), "nonzero", "computed", or the path of a mask image.
        first: frames before it are ignored.
        sibling: mask image that belongs to the run, if there is one.

    Returns:
        bool [X, Y, Z] in LAS order, and "sibling:<file>", "file:<file>", "nonzero", "other than
        <value>" or "computed_epi". A voxel is nonzero if it is so in any frame. Zeros that were
        saved as scaled integers are another value near 0, which then is the background.

    Raises:
        UserInputError: an empty mask, a run of one value, or whatever reading a file raises.
    """
    path = sibling if rule == "auto" else None if rule in ("nonzero", "computed") else Path(rule)
    if path is not None:
        mask = load_mask(path, run)
        source = f"{'sibling' if rule == 'auto' else 'file'}:{path.name}"
    else:
        total = np.zeros(math.prod(run.shape))
        nonzero, changes = np.zeros((2, *total.shape), dtype=bool)
        start = np.empty(0, np.float32)
        for frame in run.frames(first):
            with np.errstate(invalid="ignore"):  # inf - inf; reported after the last frame
                total += frame
            start = start if start.size else frame.copy()
            nonzero |= frame != 0
            changes |= frame != start
        if not changes.any() and (start == start[0]).all():
            raise UserInputError(
                f"{run.path}: every voxel has the value {start[0]:g} in every frame, expected "
                f"BOLD. Take the file from its origin again."
            )
        background = _constant_background(start, changes)
        signal = nonzero if background == 0 else changes | (start != background)
        masked_before = np.count_nonzero(signal) < NONZERO_LIMIT * signal.size
        if rule == "nonzero" or (rule == "auto" and masked_before):
            mask = run.unflatten(signal)
            source = "nonzero" if background == 0 else f"other than {background:.4g}"
        else:
            mean = run.unflatten(total / (run.n_frames - first))
            mask, source = epi_mask(mean, run.las_affine), "computed_epi"
    if not mask.any():
        # "nonzero" is never empty here: a run of one value has been refused above.
        other = "" if source == "computed_epi" else " or --mask computed"
        raise UserInputError(
            f"{run.path}: the brain mask ({source}) is empty. Give another mask image on the run's "
            f"grid with --mask PATH, or --mask nonzero{other}."
        )
    return mask, source


def _constant_background(start: np.ndarray, changes: np.ndarray) -> float:
    """The value around a masked brain: 0, or what most voxels that never change have.

    Args:
        start: [V] the first frame.
        changes: bool [V], voxels with another value in any later frame.
    """
    values, counts = np.unique(start[~changes], return_counts=True)
    if not values.size or counts.max() < (1 - NONZERO_LIMIT) * start.size:
        return 0.0
    return float(values[counts.argmax()])


def implausible_volume(mask: np.ndarray, affine: np.ndarray, source: str) -> str:
    """A note on a mask that is no brain by its volume; "" if it can be one.

    Args:
        mask: bool [X, Y, Z].
        affine: [4, 4] of it.
        source: where the mask comes from.
    """
    volume = np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3])) / 1000
    low, high = _PLAUSIBLE
    if low <= volume <= high:
        return ""
    kind = "less" if volume < low else "more"
    return (
        f"the mask ({source}) holds {volume:.0f} cm3, {kind} than a brain ({low:.0f} to {high:.0f} "
        f"cm3); check it: it may be empty, inverted or all ones. {see('mask-volume')}"
    )


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Positions of the brain voxels in the target grid.

    Attributes:
        source_index: int64 [N], C-order flat indices of the kept brain voxels in the source.
        vox: int32 [N], the same voxels in the target grid; strictly increasing.
        offset: index in the target = index in the source + offset.
        affine: [4, 4] of the target grid.
        cropped: brain voxels outside the target grid.
    """

    source_index: np.ndarray
    vox: np.ndarray
    offset: Triple
    affine: np.ndarray
    cropped: int


def place(
    mask: np.ndarray, affine: np.ndarray, grid: Sequence[int], offset: Sequence[int] | None = None
) -> Placement:
    """Crop or pad a volume to the target grid.

    Args:
        mask: bool [X, Y, Z] of the source.
        affine: [4, 4] of the source.
        grid: target X, Y, Z.
        offset: see ``Placement``; None centres, floor((target - source) / 2) on each axis, so an
            odd plane is padded at the end and cut at the start.
    """
    if offset is None:
        offset = [(new - old) // 2 for new, old in zip(grid, mask.shape, strict=True)]
    index = np.argwhere(mask)  # C-order, hence sorted in the target too
    target = index + np.asarray(offset)
    inside = np.all((target >= 0) & (target < np.asarray(grid)), axis=1)
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] -= moved[:3, :3] @ np.asarray(offset, dtype=np.float64)
    return Placement(
        source_index=np.ravel_multi_index(tuple(index[inside].T), mask.shape),
        vox=np.ravel_multi_index(tuple(target[inside].T), tuple(grid)).astype(np.int32),
        offset=(int(offset[0]), int(offset[1]), int(offset[2])),
        affine=moved,
        cropped=int(len(index) - np.count_nonzero(inside)),
    )


def resampled_grid(shape: Triple, affine: np.ndarray, mm: float) -> tuple[Triple, np.ndarray]:
    """Grid of cubic voxels of ``mm`` over the same field of view, LAS with straight axes.

    Args:
        shape: X, Y, Z of a LAS volume.
        affine: [4, 4] of it.
        mm: edge of the new voxels.

    Returns:
        shape, and affine [4, 4]. If the axes were straight before, they are kept, and the outer
        corner of the first voxel stays where it is; else the grid is the box around the volume.
    """
    if oblique_angle(affine) > OBLIQUE_NOTED:
        low, high = field_of_view(shape, affine)
        x, y, z = (max(1, math.ceil(edge / mm)) for edge in high - low)
        straight = np.diag([-mm, mm, mm, 1.0])
        straight[:3, 3] = high[0] - mm / 2, low[1] + mm / 2, low[2] + mm / 2
        return (x, y, z), straight
    axes = affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    corner = affine[:3, 3] - axes.sum(axis=1) / 2
    new = np.eye(4)
    new[:3, :3] = axes / sizes * mm
    new[:3, 3] = corner + new[:3, :3].sum(axis=1) / 2
    x, y, z = (max(1, round(n * size / mm)) for n, size in zip(shape, sizes, strict=True))
    return (x, y, z), new


def resample(
    volume: np.ndarray, affine: np.ndarray, shape: Triple, new_affine: np.ndarray, how: str
) -> np.ndarray:
    """A volume [X, Y, Z] or volumes [X, Y, Z, T] on another grid; ``how``: "linear" or "nearest".

    Beyond the centres of the outermost source voxels it is 0, for values and mask alike.
    """
    from nilearn.image import resample_img

    image = nibabel.Nifti1Image(np.ascontiguousarray(volume, dtype=np.float32), affine)
    moved = resample_img(image, new_affine, shape, interpolation=how, order="C", copy_header=True)
    return np.asarray(moved.dataobj, dtype=np.float32)
