"""Penalised linear models: the choice of the penalty, and that the rotation changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from neuromamba.common.errors import UserInputError
from neuromamba.evaluation.linear_models import (
    PENALTIES,
    fit_linear,
    fit_logistic,
    fit_ridge,
    fit_svm,
    logistic_pipeline,
    ridge_pipeline,
)


def test_penalty_comes_from_inner_folds() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 200)).astype(np.float32), np.arange(40) % 2
    x[:, 0] += 3 * y
    pipeline, penalty = fit_logistic(x, y)
    assert penalty in PENALTIES
    assert pipeline.predict(x).shape == (40,)


def test_noise_takes_a_strong_penalty_and_signal_a_weak_one() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 30))
    weak = fit_ridge(x, x @ rng.normal(size=30))[1]
    strong = fit_ridge(x, rng.normal(size=60))[1]
    assert weak > 100 * strong


def test_one_subject_of_a_class_leaves_nothing_to_choose() -> None:
    x = np.random.default_rng(1).normal(size=(6, 10))
    _, penalty = fit_logistic(x, np.array([0, 0, 0, 0, 0, 1]))
    assert penalty == 1.0


def test_the_rotation_changes_nothing() -> None:
    """All axes: the same decision as the penalised fit on all voxels."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 80)), np.arange(30) % 2
    new = rng.normal(size=(10, 80))
    whole = logistic_pipeline(10.0).set_params(rotation="passthrough")
    whole.set_params(logisticregression__tol=1e-10)
    rotated = logistic_pipeline(10.0).set_params(logisticregression__tol=1e-10)
    # Only what lies in the span of the training subjects can matter to the L2 fit.
    expected = whole.fit(x, y).decision_function(new)
    np.testing.assert_allclose(rotated.fit(x, y).decision_function(new), expected, atol=1e-5)


def test_ridge_is_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    x, y, new = rng.normal(size=(30, 80)), rng.normal(size=30), rng.normal(size=(10, 80))
    scale = StandardScaler().fit(x)
    wanted = Ridge(alpha=0.1).fit(scale.transform(x) / np.sqrt(80), y)
    expected = wanted.predict(scale.transform(new) / np.sqrt(80))
    np.testing.assert_allclose(ridge_pipeline(10.0).fit(x, y).predict(new), expected, atol=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("fit", [fit_linear, fit_svm])
def test_scores_of_classes(fit: object, classes: int) -> None:
    """Probabilities, in the order of the classes; a class without samples has none."""
    rng = np.random.default_rng(4)
    y = np.arange(60) % classes
    x = rng.normal(size=(60, 5)) + 4 * np.eye(5)[y]
    score = fit(x, y, 0, classes + 1).score(x)  # type: ignore[operator]
    assert score.shape == (60, classes + 1) and not score[:, classes].any()
    np.testing.assert_allclose(score.sum(axis=1), 1)
    assert (score.argmax(axis=1) == y).mean() > 0.9


def test_one_class_is_an_error() -> None:
    with pytest.raises(UserInputError, match="one class"):
        fit_logistic(np.zeros((4, 3)), np.zeros(4, dtype=int))


def test_groups_stay_together_in_the_folds_of_the_support_vector_machine() -> None:
    """Each group has a pattern of its own in both classes: only whole groups left out show it."""
    rng = np.random.default_rng(5)
    groups, y = np.repeat(np.arange(6), 8), np.tile([0, 1], 24)
    x = rng.normal(size=(48, 40))
    x[:, :12] += 3 * np.eye(12)[2 * groups + y]  # a class within a group
    x[:, 12] += 0.8 * y
    found = fit_svm(x, y, 3, 2, groups=groups)
    cut = list(StratifiedGroupKFold(5, shuffle=True, random_state=3).split(x, y, groups))
    scores = [np.mean([_accuracy(c, x, y, *fold) for fold in cut]) for c in PENALTIES]
    assert found.penalty == PENALTIES[int(np.argmax(scores))]
    assert max(scores) < 0.9 < _accuracy(1.0, x, y, np.arange(48), np.arange(48))


def _accuracy(
    penalty: float, x: np.ndarray, y: np.ndarray, here: np.ndarray, there: np.ndarray
) -> float:
    scale = StandardScaler().fit(x[here])
    z = scale.transform(x) / np.sqrt(x.shape[1])
    model = LinearSVC(C=penalty, max_iter=50_000).fit(z[here], y[here])
    return float((model.predict(z[there]) == y[there]).mean())


def test_log_loss_looks_at_the_size_of_probabilities_which_auroc_leaves_open() -> None:
    """Separable classes: every penalty orders them well, and AUROC takes the strongest."""
    rng = np.random.default_rng(5)
    y = np.arange(80) % 2
    x = rng.normal(size=(80, 40)) + 3 * (y[:, None] - 0.5)
    new = rng.normal(size=(40, 40)) + 3 * (np.arange(40)[:, None] % 2 - 0.5)
    by_auroc, strong = fit_logistic(x, y)
    by_loss, weak = fit_logistic(x, y, by="log_loss")
    assert strong == PENALTIES[0] and weak > strong
    assert np.abs(by_auroc.decision_function(new)).max() < 0.1
    assert np.abs(by_loss.decision_function(new)).mean() > 2
