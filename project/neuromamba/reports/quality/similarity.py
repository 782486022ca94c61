"""How much a run of a store looks like the others: mean image, sides, mask.

Every run is compared with the median of the others, itself left out, so that a few runs are enough
and none speaks for itself. Letters in shapes: R runs; X, Y, Z of a reduced image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

_COLUMNS_AT_ONCE = 1 << 13  # voxels of all runs in float32 at a time


class Similarity(NamedTuple):
    """How a run's mean image and mask agree with the other runs of the store; NaN if undefined.

    Attributes:
        correlation: of the mean image with the median of the others'.
        mirrored: the same with that median mirrored left-right.
        asymmetry: correlation of the two images' left-right differences: near 1 if the run has
            the sides of the others, near -1 if it is flipped, 0 if there is nothing to tell by.
        dice: overlap of the mask with the mask that most of the others share.
    """

    correlation: float
    mirrored: float
    asymmetry: float
    dice: float


NO_SIMILARITY = Similarity(math.nan, math.nan, math.nan, math.nan)


def compare_images(
    images: np.ndarray, masks: Callable[[], Iterable[np.ndarray]]
) -> list[Similarity]:
    """Compare every run with the others (itself left out).

    Args:
        images: [R, X, Y, Z] float16, from ``reduced_image``.
        masks: gives the masks of the runs in the same order, bool [voxels]; it is called twice.

    Returns:
        One entry a run; all undefined for fewer than three runs.
    """
    runs = len(images)
    if runs < 3:
        return [NO_SIMILARITY] * runs
    dice = _dice(runs, masks)
    without = _medians_without(images.reshape(runs, -1)).reshape(4, *images.shape[1:])
    above, at, below, median = without
    place = _mirror_place(median)
    similar = []
    for image, overlap in zip(images, dice, strict=True):
        one = image.astype(np.float32)
        others = np.where(one > median, above, np.where(one < median, below, at))
        correlation, mirrored, asymmetry = _similarity_of(one, others, place)
        similar.append(Similarity(correlation, mirrored, asymmetry, overlap))
    return similar


def _medians_without(values: np.ndarray) -> np.ndarray:
    """Medians over the runs of [R, V] without one value that lies above the median of all, at it,
    or below it; and that median: float32 [4, V]."""
    runs, size = values.shape
    out = np.empty((4, size), dtype=np.float32)
    half = runs // 2
    for start in range(0, size, _COLUMNS_AT_ONCE):
        chosen = slice(start, start + _COLUMNS_AT_ONCE)
        block = values[:, chosen].astype(np.float32)
        if runs % 2:
            block.partition([half - 1, half, half + 1], axis=0)
            low, mid, high = block[half - 1 : half + 2]
            out[:, chosen] = (low + mid) / 2, (low + high) / 2, (mid + high) / 2, mid
        else:
            block.partition([half - 1, half], axis=0)
            low, high = block[half - 1 : half + 1]
            mid = (low + high) / 2
            out[:, chosen] = low, mid, high, mid
    return out


def _mirror_place(median: np.ndarray) -> np.ndarray:
    """Index along X of each plane's mirror image about the brain's centre; -1 outside the grid."""
    # Standardised images lie at their background outside the brain and around 0 inside.
    brain = median > (median.min() + np.median(median[median > median.min()])) / 2
    planes = np.arange(len(median))
    centre = np.average(planes, weights=brain.sum(axis=(1, 2)) + 1e-9)
    place = round(2 * centre) - planes
    return np.where((place >= 0) & (place < len(median)), place, -1)


def _mirror(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    flipped = image[place]
    flipped[place < 0] = image.min()
    return flipped


def _similarity_of(
    one: np.ndarray, others: np.ndarray, place: np.ndarray
) -> tuple[float, float, float]:
    """Correlation, correlation with the mirrored image, and that of the left-right differences.

    Voxels that are background in both images and in their mirror images do not count.
    """
    flipped, own = _mirror(others, place), _mirror(one, place)
    used = np.zeros(one.shape, dtype=bool)
    for image in (one, others, flipped, own):
        used |= image > image.min() + 1e-3
    first, second, third, fourth = (image[used] for image in (one, others, flipped, own))
    return (
        _correlation(first, second),
        _correlation(first, third),
        _correlation(first - fourth, second - third),
    )


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    a, b = (v.astype(np.float64) - v.mean(dtype=np.float64) for v in (first, second))
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 0 else math.nan


def _dice(runs: int, masks: Callable[[], Iterable[np.ndarray]]) -> list[float]:
    """Overlap of each mask with the voxels that more than half of the other masks hold."""
    counts: np.ndarray | None = None
    for mask in masks():
        counts = mask.astype(np.int32) if counts is None else counts + mask
    assert counts is not None
    overlaps = []
    for mask in masks():
        usual = 2 * (counts - mask) > runs - 1
        both = int(mask.sum()) + int(usual.sum())
        overlaps.append(2 * int((mask & usual).sum()) / both if both else math.nan)
    return overlaps
