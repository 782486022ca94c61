"""Functional connectivity: correlations, partial correlations, and the tangent space.

Shapes: N regions, T frames, S scans.
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


SHRINKAGE = 0.3  # of a correlation matrix towards the identity


def shrunk_correlation(z: np.ndarray) -> np.ndarray:
    """Correlations that are shrunk towards the identity, and so positive definite.

    A few hundred frames leave the correlation matrix of as many regions singular. A fixed share,
    unlike one estimated for each scan, shrinks short and long scans by the same rule.

    Args:
        z: [T, N], standardised; a region of zeros correlates with none.

    Returns:
        float64 [N, N] with ones on the diagonal; no eigenvalue is below ``SHRINKAGE``, but for
        rounding.
    """
    found = (1 - SHRINKAGE) * (z.T @ z) / len(z)
    np.fill_diagonal(found, 1)
    return found


def partial_correlation(z: np.ndarray) -> np.ndarray:
    """Correlation of each pair of regions, given all other regions.

    Args:
        z: [T, N], standardised; a region of zeros correlates with none (0).

    Returns:
        float64 [N (N - 1) / 2], of the inverse of the shrunk correlations.
    """
    precision = np.linalg.inv(shrunk_correlation(z))
    scale = 1 / np.sqrt(np.diag(precision))
    found = -precision * scale[:, None] * scale
    return found[np.triu_indices(len(found), k=1)]


class TangentSpace:
    """Connectivity as a displacement from the mean of a group (Varoquaux et al. 2010).

    A matrix C is whitened by the group's mean G, and its logarithm taken:

        log(G^-1/2 C G^-1/2)

    so that the geometry of positive definite matrices becomes that of vectors. G is the arithmetic
    mean here, not nilearn's geometric one: the same accuracy at a tenth of the time.

    Args:
        matrices: positive definite, [S, N, N], of the group: the training scans.
    """

    def __init__(self, matrices: np.ndarray) -> None:
        values, vectors = np.linalg.eigh(matrices.mean(axis=0))
        self.whitening = (vectors / np.sqrt(values)) @ vectors.T
        triangle = np.triu_indices(matrices.shape[1])
        self._places = triangle
        # Each pair stands twice in the matrix: with this weight vectors keep its distances.
        self._weights = np.where(triangle[0] == triangle[1], 1.0, np.sqrt(2))

    def transform(self, matrices: np.ndarray) -> np.ndarray:
        """float32 [S, N (N + 1) / 2] of positive definite matrices [S, N, N]."""
        found = np.empty((len(matrices), len(self._weights)), np.float32)
        for row, matrix in zip(found, matrices, strict=True):
            values, vectors = np.linalg.eigh(self.whitening @ matrix @ self.whitening)
            logarithm = (vectors * np.log(values)) @ vectors.T
            row[:] = logarithm[self._places] * self._weights
        return found
