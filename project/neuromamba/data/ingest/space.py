"""Whether a run is in MNI space, by its name, its header and its field of view.

What is checked, in this order; ``--space native`` leaves out all but the oblique angle:

1. A space that the name or the layout tells must be an MNI space (or the one of ``--space NAME``).
2. qform or sform must be set.
3. The box of the MNI152 brain (x -72..72, y -106..72, z -72..82 mm) must lie in the field of view:
   half of its volume where name or header (code 4) say MNI; 85 % where neither does, and then the
   centre of the field of view must be near that of the usual MNI grids (x 0, y -18, z 18 mm) too.
4. Voxel axes may not be tilted by more than 3 degrees, except with ``--resample``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from neuromamba.common.errors import UserInputError, see
from neuromamba.data.store.header import Triple

if TYPE_CHECKING:
    from neuromamba.data.ingest.nifti import NiftiRun  # nibabel takes half a second

NATIVE = "native"
_NATIVE_NAMES = {"native", "t1w", "t2w", "func", "orig", "bold", "boldref", "scanner", "anat"}
_NATIVE_NAMES |= {"individual", "subject", "fsnative", "epi"}
_MNI_CODE = 4  # of NIfTI's qform_code and sform_code
_BRAIN_BOX = np.array([[-72.0, -106.0, -72.0], [72.0, 72.0, 82.0]])  # mm, of the MNI152 mask
# Centre of the grids of FSL, SPM, fMRIPrep and AFNI for MNI space, and how far they scatter.
_CENTRE, _CENTRE_TOLERANCE = np.array([0.0, -18.0, 18.0]), np.array([6.0, 10.0, 15.0])
_COVERED, _COVERED_IF_NAMED = 0.85, 0.5
_SAME_AXES, _SAME_CENTRE = 0.01, 0.1  # voxels that coincide: relative, and in voxels
OBLIQUE_LIMIT = 3.0  # degrees
OBLIQUE_NOTED = 0.1  # degrees; below, it is rounding
_REMEDY = (
    "Normalise it first (docs/preprocessing.md has the commands for fMRIPrep, FSL and ANTs), or "
    "give --space native for a store of native images only."
)


def space_kind(name: str) -> str:
    """ "mni", "native", "" (no name) or "other"."""
    first = re.split(r"[:+]", name.lower())[0]
    if not first:
        return ""
    if first.startswith("mni"):
        return "mni"
    return "native" if first in _NATIVE_NAMES else "other"


def field_of_view(shape: Triple, affine: np.ndarray) -> np.ndarray:
    """Corners of the box around all voxels, [2, 3] in mm: lowest and highest x, y, z."""
    ends = [(-0.5, size - 0.5) for size in shape]
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    world = affine[:3, :3] @ corners + affine[:3, 3:]
    return np.stack([world.min(axis=1), world.max(axis=1)])


def covered_share(box: np.ndarray) -> float:
    """Share of the box of the MNI152 brain that lies in a field of view [2, 3]."""
    low, high = np.maximum(box[0], _BRAIN_BOX[0]), np.minimum(box[1], _BRAIN_BOX[1])
    overlap = np.prod(np.maximum(high - low, 0.0))
    return float(overlap / np.prod(_BRAIN_BOX[1] - _BRAIN_BOX[0]))


def oblique_angle(affine: np.ndarray) -> float:
    """Largest angle between a voxel axis and the axis of the world nearest to it, degrees."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0), 0.0, 1.0))).max())


def voxel_sizes(affine: np.ndarray) -> tuple[float, float, float]:
    """Edges of a voxel, mm."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def whole_voxel_offset(affine: np.ndarray, target: np.ndarray) -> Triple | None:
    """Offset that takes the indices of one grid to those of another in the same space.

    Args:
        affine, target: [4, 4] of the two grids, voxel indices -> mm.

    Returns:
        Index in the target = index + offset; None if voxels differ in size or direction by more
        than 1 %, or their centres by more than a tenth of a voxel.
    """
    moved = np.linalg.inv(target) @ affine
    offset = np.rint(moved[:3, 3])
    if not np.allclose(moved[:3, :3], np.eye(3), atol=_SAME_AXES):
        return None
    if np.abs(moved[:3, 3] - offset).max() > _SAME_CENTRE:
        return None
    return int(offset[0]), int(offset[1]), int(offset[2])


def space_of_run(
    run: NiftiRun, told: str, wanted: str, remedy: str = "", resampled: bool = False
) -> tuple[str, str, list[str]]:
    """Name of a run's space, what tells it ("name", "header", "field of view", "--space"), notes.

    Args:
        run: the run.
        told: space that its name or layout tells; "" if neither does.
        wanted: the space of ``--space``; "" is any MNI space.
        remedy: how to normalise this very run; "" says it in general.
        resampled: whether the run will be resampled to straight axes.

    Raises:
        UserInputError: not in the space wanted, or tilted.
    """
    kind, wanted_kind = space_kind(told), space_kind(wanted)
    remedy = remedy or _REMEDY
    notes: list[str] = []
    if wanted_kind == "native":
        if kind not in ("native", "") or (kind and wanted.lower() not in (NATIVE, told.lower())):
            raise UserInputError(
                f"{run.path}: in the space {told}, expected --space {wanted}. Convert it into a "
                f"store of its own, with --space {told}."
            )
        name, basis = NATIVE, "--space"
        if run.space_code == 0:
            notes.append("neither qform nor sform is set: the orientation is a guess (LAS)")
    else:
        _check_name(run, told, wanted, remedy)
        name, basis = told or (wanted if wanted_kind == "mni" else ""), "name"
        if wanted_kind != "other":
            basis = _check_geometry(run, name, remedy)
            name = name or "MNI152"
    angle = oblique_angle(run.affine)
    if angle > OBLIQUE_NOTED:
        if angle > OBLIQUE_LIMIT and not resampled and name != NATIVE:
            raise UserInputError(
                f"{run.path}: the voxel axes are tilted by {angle:.1f} degrees, expected at most "
                f"{OBLIQUE_LIMIT:g}. Give --resample MM, which straightens them."
            )
        then = "resampled to straight axes" if resampled else "kept"
        notes.append(f"oblique by {angle:.1f} degrees, {then}")
    return name, basis, notes


def _check_name(run: NiftiRun, told: str, wanted: str, remedy: str) -> None:
    kind = space_kind(told)
    if wanted and told and told.casefold() != wanted.casefold():
        raise UserInputError(
            f"{run.path}: in the space {told}, expected --space {wanted}. Give --space {told}, or "
            f"have the run written in {wanted}."
        )
    if not wanted and kind in ("native", "other"):
        found = "in native space" if kind == "native" else f"in the space {told}"
        raise UserInputError(f"{run.path}: {found}, expected MNI. {remedy}")
    if space_kind(wanted) == "other" and not told:
        raise UserInputError(
            f"{run.path}: its name tells no space, expected --space {wanted}. Name it "
            f"..._space-{wanted}_bold.nii.gz if it is in that space."
        )


def _check_geometry(run: NiftiRun, name: str, remedy: str) -> str:
    """What shows that the run is in MNI space."""
    if run.space_code == 0:
        raise UserInputError(
            f"{run.path}: neither qform nor sform is set, so place and orientation are unknown, "
            f"expected MNI space. Set them (fslorient -setsform ... -setsformcode 4). "
            f"{remedy}"
        )
    box = field_of_view(run.shape, run.affine)
    share, centre = covered_share(box), box.mean(axis=0)
    by_header = run.space_code == _MNI_CODE
    spans = ", ".join(
        f"{axis} {low:.0f}..{high:.0f}" for axis, low, high in zip("xyz", *box, strict=True)
    )
    if name or by_header:
        if share < _COVERED_IF_NAMED:
            says = f"the name says {name}" if name else "the header says MNI152"
            raise UserInputError(
                f"{run.path}: {says}, but its field of view ({spans} mm) holds only {share:.0%} of "
                f"the MNI brain: the affine is wrong. Correct the header, or write the run again."
            )
        return "name" if name else "header"
    doubts = []
    if share < _COVERED:
        doubts.append(f"holds {share:.0%} of the MNI brain, expected {_COVERED:.0%} or more")
    if (np.abs(centre - _CENTRE) > _CENTRE_TOLERANCE).any():
        ends = zip(_CENTRE, _CENTRE_TOLERANCE, strict=True)
        near = ", ".join(f"{middle:.0f} +- {width:.0f}" for middle, width in ends)
        found = ", ".join(f"{value:.0f}" for value in centre)
        doubts.append(f"has its centre at ({found}) mm, expected ({near}) mm")
    if doubts:
        raise UserInputError(
            f"{run.path}: not in MNI space by its header: the field of view ({spans} mm) "
            f"{' and '.join(doubts)}. {remedy} {see('mni-space')}"
        )
    return "field of view"
