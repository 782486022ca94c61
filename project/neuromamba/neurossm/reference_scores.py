"""Agreement of a class's CPA map with its reference map, and with those of other classes.

Maps and covariates are ranked; from the CPA map of class i and the reference map of class j are
regressed out: a constant, the mean CPA map of the classes other than i, the mean reference map of
those other than j, and the logarithm of the regions' sizes. The correlation of what remains is the
score; on the diagonal it should be high, beside it not. Shapes: C classes, N regions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata


class Scores(NamedTuple):
    """The full matrix.

    Attributes:
        correlation: [C, C], CPA of the row's class with the reference of the column's.
        p: [C, C] share of random maps that agree as much or more (one-sided).
    """

    correlation: np.ndarray
    p: np.ndarray


def partial_scores(
    cpa: np.ndarray,
    reference: np.ndarray,
    sizes: np.ndarray,
    centres: np.ndarray,
    null: str = "moran",
    draws: int = 1000,
    seed: int = 0,
) -> Scores:
    """Scores of all pairs of classes.

    Args:
        cpa: [C, N]; reference: [C, N].
        sizes: [N] voxels, each 1 or more.
        centres: [N, 3] mm.
        null: of ``RANDOM_MAPS``: maps that keep the spatial autocorrelation of the CPA map, or
            permuted regions.
        draws: random maps.
        seed: of the draws.
    """
    classes, regions = cpa.shape
    surrogate = Moran(centres) if null == "moran" else None
    correlation, p = np.empty((classes, classes)), np.empty((classes, classes))
    for i in range(classes):
        for j in range(classes):
            covariates = [np.ones(regions), rankdata(np.log(sizes))]
            if classes > 1:
                covariates.append(rankdata(np.delete(cpa, i, axis=0).mean(0)))
                covariates.append(rankdata(np.delete(reference, j, axis=0).mean(0)))
            design = np.stack(covariates, axis=1)
            own, other = (
                residual(rankdata(cpa[i]), design),
                residual(rankdata(reference[j]), design),
            )
            correlation[i, j] = _correlation(own, other)
            rng = np.random.default_rng([seed, i, j])
            if surrogate is None:
                random = np.stack([rng.permutation(own) for _ in range(draws)])
            else:
                random = surrogate.draw(own, draws, rng)
            found = np.array([_correlation(one, other) for one in random])
            p[i, j] = (1 + np.sum(found >= correlation[i, j] - 1e-12)) / (1 + draws)
    return Scores(correlation, p)


def residual(values: np.ndarray, design: np.ndarray) -> np.ndarray:
    """[N] what a least-squares fit of the design [N, K] leaves."""
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """NaN where one of them is constant."""
    one, other = one - one.mean(), other - other.mean()
    scale = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / scale) if scale > 1e-9 else float("nan")


class Moran:
    """Random maps with the spatial autocorrelation of a map (Wagner & Dray 2015).

    A map is written in Moran's eigenvectors (of the doubly centred matrix of inverse distances);
    random signs of the coefficients keep its variance at every spatial scale.

    Args:
        centres: [N, 3] of the regions.
    """

    def __init__(self, centres: np.ndarray) -> None:
        distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        weights = 1 / np.maximum(distance, 1.0)
        centred = weights - weights.mean(0) - weights.mean(1)[:, None] + weights.mean()
        _, vectors = np.linalg.eigh(centred)
        # One of them is the constant map; without it the others span what has mean 0.
        keep = np.abs(vectors.mean(0)) * np.sqrt(len(vectors)) < 0.5
        self._vectors = vectors[:, keep]

    def draw(self, values: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
        """[draws, N]."""
        coefficients = self._vectors.T @ (values - values.mean())
        signs = rng.choice([-1.0, 1.0], (draws, len(coefficients)))
        return values.mean() + (signs * coefficients) @ self._vectors.T
