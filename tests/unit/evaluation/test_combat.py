"""ComBat gives the numbers of its authors' code, and uses nothing of the subjects tested."""

from __future__ import annotations

import numpy as np

from neuromamba.evaluation.combat import Combat

SITE = np.array(list("aaaaabbbbbbcccc"))
# Values, and what neuroCombat 0.2.12 (parametric priors, no covariates) makes of them.
VALUES = [
    [0.001, 0.299, -0.274, -0.891, -0.455, -0.992],
    [0.06, 1.34, -0.492, -0.62, 0.49, 0.357],
    [0.105, -0.93, -0.029, 0.695, -1.344, -0.458],
    [-1.901, -1.29, -1.842, -0.235, -1.267, 0.271],
    [0.157, -0.187, -2.517, -0.539, -0.049, 0.113],
    [-1.56, 0.544, -0.457, -0.118, 3.622, -0.115],
    [1.435, 3.269, 0.333, 1.277, 1.721, 1.628],
    [-0.95, 1.652, 4.218, -1.594, 3.219, 1.739],
    [0.217, 5.501, 3.025, -0.899, 1.649, 2.653],
    [1.122, 2.866, 1.367, 2.834, 4.377, 0.149],
    [1.906, 0.573, 1.755, -0.874, 0.341, 1.108],
    [-0.101, 0.145, -2.324, -0.795, 0.647, -1.992],
    [-1.463, -1.097, 0.257, 0.689, -0.327, -0.369],
    [-1.25, 0.524, -1.428, -0.304, 0.353, -0.121],
    [-1.197, -2.114, -1.012, -0.444, 1.166, 0.653],
]
EXPECTED = [
    [0.3911, 1.3104, 0.886, -0.6965, 0.6855, -0.7836],
    [0.4654, 2.6652, 0.608, -0.3329, 1.9001, 1.0026],
    [0.522, -0.2891, 1.1984, 1.4315, -0.4571, -0.0766],
    [-2.0025, -0.7576, -1.1137, 0.1836, -0.3581, 0.8887],
    [0.5875, 0.6779, -1.9745, -0.2242, 1.2073, 0.6795],
    [-1.725, -0.4324, -1.3082, -0.6088, 1.9522, -0.5965],
    [0.3718, 1.4777, -0.7539, 0.3598, 0.6257, 0.6333],
    [-1.298, 0.3443, 1.9718, -1.6336, 1.671, 0.7116],
    [-0.4809, 3.0422, 1.1348, -1.1511, 0.5755, 1.3565],
    [0.1527, 1.1952, -0.0285, 1.4408, 2.479, -0.4102],
    [0.7016, -0.412, 0.2438, -1.1337, -0.3371, 0.2664],
    [0.9008, 1.3734, -1.6059, -0.4163, 1.3481, -1.3444],
    [-0.8996, -0.1008, 1.5163, 1.4905, 0.0603, 0.2838],
    [-0.618, 1.8232, -0.522, 0.2146, 0.9594, 0.5326],
    [-0.5479, -1.3079, -0.0188, 0.0347, 2.0343, 1.3091],
]


def test_the_numbers_are_those_of_the_authors_code() -> None:
    x = np.array(VALUES)
    np.testing.assert_allclose(Combat(x, SITE).transform(x, SITE), EXPECTED, atol=2e-4)


def test_others_are_transformed_one_by_one_and_unknown_sites_not_at_all() -> None:
    x = np.array(VALUES)
    fitted = Combat(x[:13], SITE[:13])  # two of c: too few
    assert fitted.sites == ("a", "b")
    together = fitted.transform(x, SITE)
    np.testing.assert_array_equal(together[11:], x[11:].astype(np.float32))
    alone = np.vstack([fitted.transform(x[i : i + 1], SITE[i : i + 1]) for i in range(len(x))])
    np.testing.assert_array_equal(alone, together)
    assert np.array_equal(fitted.transform(x, np.full(len(x), "z")), x.astype(np.float32))


def test_a_planted_difference_between_sites_is_removed() -> None:
    rng = np.random.default_rng(1)
    site = np.repeat(["a", "b"], 60)
    x = rng.standard_normal((120, 50))
    x[60:] = 3 * x[60:] + 5 * rng.standard_normal(50)
    x[:, 7] = 1.0  # a constant feature stays as it is
    fitted = Combat(x[::2], site[::2])
    new = fitted.transform(x[1::2], site[1::2])
    a, b = new[:30], new[30:]
    before = np.abs(x[60:].mean(0) - x[:60].mean(0)).mean()
    assert np.abs(a.mean(0) - b.mean(0)).mean() < 0.3 * before
    assert 0.7 < np.delete(b.std(0) / np.maximum(a.std(0), 1e-9), 7).mean() < 1.4
    np.testing.assert_array_equal(new[:, 7], 1.0)


def test_without_a_site_of_enough_subjects_nothing_changes() -> None:
    x = np.array(VALUES)[:4]
    names = np.array(list("pqrs"))
    assert np.array_equal(Combat(x, names).transform(x, names), x.astype(np.float32))
