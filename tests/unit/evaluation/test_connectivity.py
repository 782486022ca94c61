"""Connectivity: one code for both model families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.connectivity import (
    SHRINKAGE,
    TangentSpace,
    connectivity,
    partial_correlation,
    shrunk_correlation,
    standardised,
)
from neuromamba.neurossm.linear import TANGENT, LinearClassifier, region_connectivity


def test_it_is_fishers_z_of_the_correlations() -> None:
    series = np.random.default_rng(0).normal(100, 5, (30, 6)).astype(np.float32)
    wanted = np.arctanh(np.corrcoef(series.T)[np.triu_indices(6, k=1)])
    np.testing.assert_allclose(connectivity(standardised(series)), wanted, atol=1e-6)
    scan = Scan("s", "s", 0, series.T.copy(), "s")
    np.testing.assert_allclose(region_connectivity(scan), wanted, atol=1e-5)


def test_constant_regions_correlate_with_none_and_copies_stay_finite() -> None:
    series = np.random.default_rng(0).normal(size=(30, 4))
    series[:, 1], series[:, 2], series[:, 3] = 3.0, series[:, 0], -series[:, 0]
    top = np.arctanh(1 - 1e-6)
    assert connectivity(standardised(series)).tolist() == pytest.approx([0, top, -top, 0, 0, -top])
    scan = Scan("s", "s", 0, series.T.copy(), "s")
    assert region_connectivity(scan).tolist() == pytest.approx([0, top, -top, 0, 0, -top])


def test_a_deviation_that_is_rounding_error_is_none() -> None:
    series = np.random.default_rng(0).normal(size=(30, 2))
    series[:, 1] += 1e9
    assert connectivity(standardised(series)).tolist() == [0]


def correlations(scans: int, regions: int, frames: int) -> np.ndarray:
    """Shrunk correlations [scans, regions, regions] of mixed noise."""
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(regions, regions))
    series = (rng.normal(size=(frames, regions)) @ mix for _ in range(scans))
    return np.stack([shrunk_correlation(standardised(one)) for one in series])


def test_shrinkage_leaves_correlations_that_can_be_inverted() -> None:
    series = np.random.default_rng(1).normal(size=(8, 20))  # fewer frames than regions
    series[:, 3] = 7.0
    found = shrunk_correlation(standardised(series))
    pair = np.corrcoef(series[:, 0], series[:, 1])[0, 1]
    assert found[0, 1] == pytest.approx((1 - SHRINKAGE) * pair)
    assert np.diag(found).tolist() == pytest.approx([1] * 20)
    assert np.linalg.eigvalsh(found)[0] >= SHRINKAGE - 1e-9
    assert not found[3, :3].any() and not found[3, 4:].any()  # constant: correlates with none


def test_a_partial_correlation_is_that_of_what_the_other_regions_do_not_explain() -> None:
    series = standardised(np.random.default_rng(2).normal(size=(40, 6)))
    series = standardised(series + series[:, [1, 2, 3, 4, 5, 0]])
    whole, found = shrunk_correlation(series), partial_correlation(series)
    for number, pair in enumerate(zip(*np.triu_indices(6, k=1), strict=True)):
        own, rest = list(pair), [region for region in range(6) if region not in pair]
        of_rest = np.linalg.solve(whole[np.ix_(rest, rest)], whole[np.ix_(rest, own)])
        left = whole[np.ix_(own, own)] - whole[np.ix_(own, rest)] @ of_rest
        assert found[number] == pytest.approx(left[0, 1] / np.sqrt(left[0, 0] * left[1, 1]))


def test_the_tangent_space_is_the_logarithm_of_matrices_whitened_by_their_mean() -> None:
    matrices = correlations(5, 6, 40)
    root = scipy.linalg.inv(scipy.linalg.sqrtm(matrices.mean(axis=0)))
    found = TangentSpace(matrices).transform(matrices)
    places = np.triu_indices(6)
    for row, matrix in zip(found, matrices, strict=True):
        wanted = scipy.linalg.logm(root @ matrix @ root)
        np.testing.assert_allclose(
            row, np.where(places[0] == places[1], 1, np.sqrt(2)) * wanted[places], atol=1e-5
        )
        assert np.linalg.norm(row) == pytest.approx(np.linalg.norm(wanted), rel=1e-5)
    of_the_mean = TangentSpace(matrices).transform(matrices.mean(axis=0, keepdims=True))
    np.testing.assert_allclose(of_the_mean, 0, atol=1e-6)


def test_the_tangent_space_is_that_at_the_training_scans(tmp_path: Path) -> None:
    """The score of a test scan does not depend on which others are tested with it."""
    rng = np.random.default_rng(3)
    scans = [
        Scan(f"s{i}", f"s{i}", i % 2, rng.normal(size=(5, 30)).astype(np.float32), f"s{i}")
        for i in range(24)
    ]
    model = LinearClassifier(TANGENT)
    together = model.fit(scans[:16], 0, tmp_path)(scans[16:])
    alone = LinearClassifier(TANGENT).fit(scans[:16], 0, tmp_path)(scans[-1:])
    np.testing.assert_allclose(together[-1:], alone, rtol=1e-6)
    assert len(model.measured) == 24
    other = model.fit(scans[8:], 0, tmp_path)(scans[:8])  # nothing of the former fit
    fresh = LinearClassifier(TANGENT).fit(scans[8:], 0, tmp_path)(scans[:8])
    np.testing.assert_array_equal(other, fresh)
