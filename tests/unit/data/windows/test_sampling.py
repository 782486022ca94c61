"""Orders with shares, and propensity matching."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from neuromamba.common.shares import largest_remainder
from neuromamba.data.cohorts.matching import covariate_matrix, match, match_within, mean_difference
from neuromamba.data.windows.sampling import GroupedOrder


def test_largest_remainder() -> None:
    assert largest_remainder(10, [1, 1, 1]) == [4, 3, 3]
    assert largest_remainder(10, [0.8, 0.1, 0.1]) == [8, 1, 1]
    assert largest_remainder(0, [1, 2]) == [0, 0]
    assert largest_remainder(7, [2, 0]) == [7, 0]


@pytest.mark.parametrize("shares", [(1, 1), (3, 1), (1, 9), (0.25, 0.75)])
def test_every_group_has_its_share(shares: tuple[float, float]) -> None:
    groups = [range(30), range(30, 40)]
    order = GroupedOrder(groups, shares, seed=3)
    total = Counter[int]()
    epochs = 60
    for epoch in range(epochs):
        drawn = order(epoch)
        assert len(drawn) == 40
        counts = [np.isin(drawn, group).sum() for group in groups]
        assert counts == largest_remainder(40, shares)
        total.update(drawn.tolist())
    for group, count in zip(groups, largest_remainder(40, shares), strict=True):
        seen = [total[i] for i in group]
        assert max(seen) - min(seen) <= 1, "windows of a group are drawn equally often"
        assert sum(seen) == epochs * count


def test_order_depends_on_seed_and_epoch_alone() -> None:
    order = GroupedOrder([range(9), range(9, 12)], (1, 1), seed=1)
    later, first = order(5), order(0)
    again = GroupedOrder([range(9), range(9, 12)], (1, 1), seed=1)
    assert np.array_equal(again(0), first) and np.array_equal(again(5), later)
    assert not np.array_equal(first, later)
    other = GroupedOrder([range(9), range(9, 12)], (1, 1), seed=2)
    assert not np.array_equal(other(0), first)
    # The groups come mixed, not one after the other.
    assert len(set(np.flatnonzero(first < 9)) & set(range(6))) not in (0, 6)


def people(n: int = 200) -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
    """Names, classes, and age and site that differ between the classes."""
    rng = np.random.default_rng(0)
    classes = (rng.random(n) < 0.3).astype(int)
    age = rng.normal(40 + 8 * classes, 10)
    site = ["ab"[int(rng.random() < 0.3 + 0.4 * c)] for c in classes]
    return [f"s{i:03d}" for i in range(n)], classes, age, site


def test_matching_balances_the_covariates() -> None:
    names, classes, age, site = people()
    columns = [
        dict(zip(names, map(str, age), strict=True)),
        dict(zip(names, site, strict=True)),
    ]
    labels = dict(zip(names, classes.tolist(), strict=True))
    (found,) = match_within([names], labels, columns, 0.2)
    kept = [names.index(name) for name in found.subjects]
    assert Counter(classes[kept]) == {0: len(kept) // 2, 1: len(kept) // 2}
    assert len(kept) > 60
    covariates = covariate_matrix([[str(a) for a in age], site])
    assert found.difference_before == pytest.approx(mean_difference(covariates, classes))
    assert found.difference_before > 0.6
    assert found.difference_after == pytest.approx(mean_difference(covariates[kept], classes[kept]))
    assert found.difference_after < 0.15
    # What is matched does not depend on the order of the names.
    (again,) = match_within([names[::-1]], labels, columns, 0.2)
    assert again.subjects == found.subjects
    # Pairs lie within the caliper: nobody outside the overlap is kept.
    logits = (
        LogisticRegression(max_iter=1000).fit(covariates, classes).decision_function(covariates)
    )
    lowest = logits[classes == 1].min() - 0.2 * logits.std()
    assert logits[kept].min() >= lowest - 1e-6


def test_nearest_partner_within_the_caliper() -> None:
    names = ["a", "b", "c", "d", "e"]
    classes, logits = np.array([1, 1, 0, 0, 0]), np.array([0.0, 3.0, 0.1, -0.3, 2.0])
    covariates = logits[:, None]
    assert match(names, classes, logits, covariates, 0.2).subjects == ("a", "c")
    assert match(names, classes, logits, covariates, 1.5).subjects == ("a", "b", "c", "e")
    assert match(names, classes, logits, covariates, 0.01).subjects == ()
    assert match([], classes[:0], logits[:0], covariates[:0], 1.0).subjects == ()


def test_covariates_as_numbers() -> None:
    matrix = covariate_matrix([["1", "2", "3"], ["x", "y", "y"], ["k", "k", "k"]])
    assert matrix.shape == (3, 2)
    assert matrix.mean(0) == pytest.approx([0, 0]) and matrix.std(0) == pytest.approx([1, 1])
    assert covariate_matrix([["5", "5"]]).tolist() == [[0.0], [0.0]], "no division by 0"
