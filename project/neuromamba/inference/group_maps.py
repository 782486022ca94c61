"""Maps of several subjects together: their mean, and where it differs from 0.

The test is a one-sample test by sign flips: if a voxel's values are distributed symmetrically about
0 over subjects, a subject's map is as probable as its negative. Each flip changes the sign of whole
maps, so the dependence between voxels is kept, and the largest absolute t over all voxels of each
flip controls the family-wise error of the two-sided test (Nichols and Holmes 2002, Human Brain
Mapping 15; Winkler et al. 2014, NeuroImage 92, for sign flips).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from tqdm import tqdm

from neuromamba.common.errors import UserInputError

PERMUTATIONS = 5000
# With n subjects the smallest p is 2 ** (1 - n): 0.063 for 5 subjects, which cannot reach 0.05.
MIN_SUBJECTS = 6
_VALUES_AT_ONCE = 1 << 24  # flips x voxels


@dataclass(frozen=True, kw_only=True)
class GroupMap:
    """The maps of several subjects on one grid; M voxels are in the mask of every subject.

    Attributes:
        subjects: how many.
        vox: int32 [M], flat indices into the grid.
        mean: float64 [M].
        t: float64 [M], mean over its standard error, 0 where all subjects have the same value;
            None for fewer than ``MIN_SUBJECTS``.
        p: float64 [M], two-sided, corrected for the family-wise error over the M voxels; None
            likewise.
        permutations: sign flips, the data themselves included; 0 if there was no test.
        exact: whether these are all flips that differ.
    """

    subjects: int
    vox: np.ndarray
    mean: np.ndarray
    t: np.ndarray | None
    p: np.ndarray | None
    permutations: int
    exact: bool


def common_voxels(voxels: Sequence[np.ndarray]) -> np.ndarray:
    """Flat indices, sorted, that all of several masks hold."""
    return reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), voxels)


def group_map(
    values: Sequence[np.ndarray],
    voxels: Sequence[np.ndarray],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> GroupMap:
    """Average the maps of subjects and test the mean against 0.

    Args:
        values: a map [N] of each subject; several runs of a subject are to be averaged before.
        voxels: sorted flat indices [N] of each, into one grid.
        permutations: sign flips; if there are not more that differ, all of them are taken.
        seed: of the flips that are drawn.

    Raises:
        UserInputError: no voxel is in all masks.
    """
    vox = common_voxels(voxels)
    if not vox.size:
        raise UserInputError(
            f"the masks of the {len(voxels)} subjects have no voxel in common, so there is no "
            f"group map. Check that all scans are in the same space (neuromamba quality)."
        )
    maps_SM = np.stack(
        [
            np.asarray(one, dtype=np.float64)[np.searchsorted(at, vox)]
            for one, at in zip(values, voxels, strict=True)
        ]
    )
    mean, subjects = maps_SM.mean(axis=0), len(maps_SM)
    if subjects < MIN_SUBJECTS:
        return GroupMap(
            subjects=subjects, vox=vox, mean=mean, t=None, p=None, permutations=0, exact=False
        )
    squares = np.square(maps_SM).sum(axis=0)
    t = _t_values(mean[None], squares, subjects)[0]
    exact = 2 ** (subjects - 1) <= permutations
    total = 2 ** (subjects - 1) if exact else permutations
    largest = []
    bar = tqdm(total=total, desc="sign flips", unit="flip", disable=None)
    rows = max(1, _VALUES_AT_ONCE // vox.size)
    with bar:
        for signs in _sign_flips(subjects, total, exact, seed, rows):
            flipped = _t_values(signs @ maps_SM / subjects, squares, subjects)
            largest.append(np.abs(flipped).max(axis=1))
            bar.update(len(signs))
    ordered = np.sort(np.concatenate(largest))
    # Rounding must not make the data smaller than themselves.
    reached = total - np.searchsorted(ordered, np.abs(t) * (1 - 1e-9))
    return GroupMap(
        subjects=subjects,
        vox=vox,
        mean=mean,
        t=t,
        p=reached / total,
        permutations=total,
        exact=exact,
    )


def _t_values(mean: np.ndarray, squares: np.ndarray, subjects: int) -> np.ndarray:
    """Student's t [flips, M] of means, from the sums of squares [M], which no flip changes."""
    variance = (squares - subjects * mean**2) / (subjects - 1)
    varies = variance > 1e-12 * np.maximum(squares, np.finfo(float).tiny)
    error = np.sqrt(np.where(varies, variance, 1.0) / subjects)
    return np.where(varies, mean / error, 0.0)


def _sign_flips(
    subjects: int, total: int, exact: bool, seed: int, rows: int
) -> Iterator[np.ndarray]:
    """Blocks of signs [flips, subjects], the first flip without any; |t| ignores a common sign."""
    rng = np.random.default_rng(seed)
    for begin in range(0, total, rows):
        numbers = np.arange(begin, min(begin + rows, total))
        if exact:
            minus = numbers[:, None] >> np.arange(subjects) & 1
        else:
            minus = rng.integers(0, 2, (len(numbers), subjects))
            minus[numbers == 0] = 0
        yield 1.0 - 2.0 * minus
