"""Partial correlation of CPA and reference maps, and the random maps it is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest, rankdata, spearmanr
from sklearn.linear_model import LinearRegression

from neuromamba.neurossm.reference_scores import Moran, partial_scores

N = 80
RNG = np.random.default_rng(0)
CENTRES = RNG.uniform(-60, 60, (N, 3))
SIZES = RNG.integers(1, 200, N)


def smooth(seed: int, width: float = 30.0) -> np.ndarray:
    """[N] a map whose neighbours are alike."""
    distance = np.linalg.norm(CENTRES[:, None] - CENTRES[None], axis=-1)
    return np.exp(-((distance / width) ** 2)) @ np.random.default_rng(seed).standard_normal(N)


def test_scores_are_those_of_two_regressions() -> None:
    """The whole matrix, with scikit-learn's regression."""
    cpa, reference = (np.stack([smooth(s + 10 * k) for s in range(3)]) for k in (1, 2))
    found = partial_scores(cpa, reference, SIZES, CENTRES, draws=20).correlation
    for i in range(3):
        for j in range(3):
            others_cpa = np.delete(cpa, i, 0).mean(0)
            others_reference = np.delete(reference, j, 0).mean(0)
            design = np.stack([rankdata(x) for x in (SIZES, others_cpa, others_reference)], axis=1)
            left = []
            for values in (cpa[i], reference[j]):
                ranks = rankdata(values)
                left.append(ranks - LinearRegression().fit(design, ranks).predict(design))
            assert found[i, j] == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-9)


def test_one_class_has_the_size_as_its_only_covariate() -> None:
    one = smooth(1)
    found = partial_scores(one[None], one[None], SIZES, CENTRES, draws=50)
    assert found.correlation[0, 0] == pytest.approx(1) and found.p[0, 0] == pytest.approx(1 / 51)


def test_a_constant_map_has_no_score() -> None:
    found = partial_scores(np.ones((1, N)), smooth(1)[None], SIZES, CENTRES, draws=5)
    assert np.isnan(found.correlation[0, 0])


def test_random_maps_keep_the_spatial_autocorrelation() -> None:
    """Moran's I of each is that of the map, and permuted ones have less; variances stay."""
    values = smooth(3)
    distance = np.linalg.norm(CENTRES[:, None] - CENTRES[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    weights = 1 / np.maximum(distance, 1.0)

    def moran(x: np.ndarray) -> float:
        x = x - x.mean()
        return float(x @ weights @ x / (x @ x))

    draws = Moran(CENTRES).draw(values, 200, np.random.default_rng(1))
    np.testing.assert_allclose(draws.mean(1), values.mean(), atol=1e-9)
    np.testing.assert_allclose(draws.std(1), values.std(), rtol=0.02)
    wanted = moran(values)
    found = [moran(x) for x in draws]
    permuted = [moran(np.random.default_rng(s).permutation(values)) for s in range(200)]
    assert np.allclose(found, wanted, atol=0.05 * abs(wanted))
    assert max(permuted) < 0.7 * wanted
    assert abs(np.mean([spearmanr(x, values).statistic for x in draws])) < 0.1


@pytest.mark.parametrize("null", ["moran", "permutation"])
def test_p_of_unrelated_maps_is_uniform_where_the_null_fits(null: str) -> None:
    """Smooth maps for the spatial null, rough ones for permutations."""
    p = []
    for seed in range(120):
        if null == "moran":
            pair = smooth(1000 + seed), smooth(5000 + seed)
        else:
            rng = np.random.default_rng(seed)
            pair = rng.standard_normal(N), rng.standard_normal(N)
        scores = partial_scores(pair[0][None], pair[1][None], SIZES, CENTRES, null, 99, seed)
        p.append(scores.p[0, 0])
    assert kstest(p, "uniform").pvalue > 0.01


def test_permutations_are_too_sure_of_smooth_maps() -> None:
    """Why the spatial null is the default."""
    counts = {"moran": 0, "permutation": 0}
    for seed in range(100):
        pair = smooth(1000 + seed, 60)[None], smooth(5000 + seed, 60)[None]
        for null in counts:
            counts[null] += partial_scores(*pair, SIZES, CENTRES, null, 99, seed).p[0, 0] <= 0.05
    assert counts["permutation"] > 2 * counts["moran"]
