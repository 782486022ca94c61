"""Group maps: the sign-flip test against an enumeration, scipy, nilearn, and its error rate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from neuromamba.common.errors import UserInputError
from neuromamba.inference.group_maps import MIN_SUBJECTS, GroupMap, group_map


def group_of(maps_SM: np.ndarray, **options: int) -> GroupMap:
    vox = [np.arange(maps_SM.shape[1])] * len(maps_SM)
    return group_map(list(maps_SM), vox, **options)


def test_few_subjects_are_enumerated() -> None:
    maps = np.random.default_rng(0).normal(0.4, 1, (7, 30))
    found = group_of(maps)
    np.testing.assert_allclose(found.t, ttest_1samp(maps, 0).statistic)
    largest = [
        np.abs(ttest_1samp(maps * np.array(signs)[:, None], 0).statistic).max()
        for signs in itertools.product((1, -1), repeat=7)
    ]
    expected = [np.mean(np.array(largest) >= abs(t) - 1e-9) for t in found.t]
    np.testing.assert_allclose(found.p, expected)
    assert found.exact
    assert found.permutations == 64
    assert found.p.min() >= 1 / 64


def test_drawn_flips_agree_with_nilearn() -> None:
    permuted_ols = pytest.importorskip("nilearn.mass_univariate").permuted_ols
    maps = np.random.default_rng(1).normal(0.25, 1, (20, 40))
    found = group_of(maps, permutations=4000)
    assert not found.exact
    other = permuted_ols(
        np.ones((20, 1)),
        maps,
        model_intercept=False,
        n_perm=4000,
        random_state=0,
        output_type="dict",
    )
    np.testing.assert_allclose(found.t, other["t"][0], rtol=1e-6)
    np.testing.assert_allclose(found.p, 10 ** -other["logp_max_t"][0], atol=0.03)
    again = group_of(maps, permutations=4000)
    np.testing.assert_array_equal(found.p, again.p)
    assert (found.p != group_of(maps, permutations=4000, seed=1).p).any()


def test_error_rate_and_power() -> None:
    rng = np.random.default_rng(2)
    wrong = [group_of(rng.normal(size=(8, 25))).p.min() <= 0.05 for _ in range(300)]
    assert 0.02 < np.mean(wrong) < 0.09  # 5 %, +-3 standard errors of 1.3 %
    maps = rng.normal(size=(12, 25))
    maps[:, :5] += 3
    p = group_of(maps).p
    assert (p[:5] <= 0.05).all()
    assert (p[5:] > 0.05).all()


def test_few_subjects_give_a_mean_only() -> None:
    maps = np.ones((MIN_SUBJECTS - 1, 4))
    found = group_of(maps)
    assert found.t is None
    assert found.p is None
    assert found.permutations == 0
    np.testing.assert_array_equal(found.mean, 1)
    assert 2 ** (1 - MIN_SUBJECTS) < 0.05 < 2 ** (2 - MIN_SUBJECTS)


def test_voxels_of_all_masks_are_used() -> None:
    voxels: Sequence[np.ndarray] = [np.array([1, 2, 5, 9]), np.array([2, 3, 5, 9])] * 3
    values = [np.array([1.0, 2, 3, 4]), np.array([20.0, 9, 30, 40])] * 3
    found = group_map(values, voxels)
    assert found.vox.tolist() == [2, 5, 9]
    np.testing.assert_allclose(found.mean, [11, 16.5, 22])
    with pytest.raises(UserInputError, match="no voxel in common"):
        group_map([np.ones(1), np.ones(1)], [np.array([1]), np.array([2])])


def test_a_voxel_without_spread_has_t_0() -> None:
    maps = np.random.default_rng(0).normal(size=(6, 3))
    maps[:, 1] = 0
    found = group_of(maps)
    assert found.t[1] == 0
    assert found.p[1] == 1
