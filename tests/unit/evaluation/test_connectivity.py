"""Connectivity: one code for both model families."""

from __future__ import annotations

import numpy as np
import pytest

from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.connectivity import connectivity, standardised
from neuromamba.neurossm.linear import region_connectivity


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
