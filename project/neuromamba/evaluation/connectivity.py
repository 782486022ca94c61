"""Functional connectivity: correlations between regions, Fisher-transformed.

Shapes: N regions, T frames.
"""

from __future__ import annotations

import numpy as np

_LARGEST = 1 - 1e-6  # |r| beyond this is a copy of a region; arctanh has no value at 1


def standardised(series: np.ndarray) -> np.ndarray:
    """Standardise each region over time.

    Args:
        series: [T, N].

    Returns:
        float64 [T, N] with mean 0 and standard deviation 1 of each region; zeros for a region whose
        standard deviation is below a millionth of the largest value, which is rounding error.
    """
    wide = series.astype(np.float64)
    wide -= wide.mean(axis=0)
    deviation = np.sqrt((wide**2).mean(axis=0))
    varies = deviation > 1e-6 * np.abs(series).max(initial=1e-12)
    return np.where(varies, wide / np.where(varies, deviation, 1), 0)


def connectivity(z: np.ndarray) -> np.ndarray:
    """Compute Fisher's z of the correlations between all pairs of regions.

    Args:
        z: [T, N], standardised; a region of zeros correlates with none (0).

    Returns:
        float64 [N (N - 1) / 2], the upper triangle row by row; at most 7.25 in magnitude.
    """
    correlation = z.T @ z / len(z)
    pairs = correlation[np.triu_indices(z.shape[1], k=1)]
    return np.arctanh(np.clip(pairs, -_LARGEST, _LARGEST))
