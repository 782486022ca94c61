"""Linear models with a penalty chosen by inner cross-validation: the baselines' and NeuroSSM's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import get_scorer
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import ThreadpoolController

from neuromamba.common.errors import UserInputError


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def on_one_thread() -> AbstractContextManager[Any]:
    """Within it, BLAS uses one thread.

    A fit of a few hundred samples consists of thousands of products that take microseconds each.
    The threads of OpenBLAS wait for each other between them: with two, such a fit took seven times
    as long as with one (AMD EPYC, two cores, other programs partly running).
    """
    found: AbstractContextManager[Any] = _libraries().limit(limits=1, user_api="blas")
    return found


PENALTIES = tuple(float(c) for c in np.logspace(-3, 3, 7))  # C: the inverse of the L2 penalty
_FOLDS = 5


def _by_sqrt_of_width(x: np.ndarray) -> np.ndarray:
    """Keeps the penalty's scale, and so the range to search, free of the number of features."""
    return x / np.sqrt(x.shape[1])


class Rotation(TransformerMixin, BaseEstimator):
    """Onto the principal axes of the samples that it is fitted on, all of them.

    An L2 penalty does not notice a rotation, so the fit that follows is that on all features, with
    as many coefficients as samples instead of features. The axes come from the products of the
    samples with each other: of 600 samples of 20,000 features in a tenth of the time of a
    singular value decomposition, such as sklearn's PCA makes.
    """

    def fit(self, x: np.ndarray, y: object = None) -> Rotation:
        """Find the axes of x [S, N]; directions without variance, up to rounding, are left out."""
        wide = x.astype(np.float64)
        self.mean_ = wide.mean(axis=0)
        wide -= self.mean_
        few = len(wide) < wide.shape[1]
        values, vectors = np.linalg.eigh(wide @ wide.T if few else wide.T @ wide)
        kept = values > np.finfo(x.dtype).eps * len(values) * max(values[-1], 0)
        if few:
            self.axes_ = wide.T @ (vectors[:, kept] / np.sqrt(values[kept]))
        else:
            self.axes_ = vectors[:, kept]
        if not kept.any():  # the same sample over and over: one axis, on which all are 0
            self.axes_ = np.zeros((wide.shape[1], 1))
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Give the places of samples [S, N] on the axes, float64 [S, axes]."""
        return (x - self.mean_) @ self.axes_


def _pipeline(model: Any) -> Pipeline:
    """Standardised features -> rotation onto the samples -> model with an L2 penalty."""
    return make_pipeline(
        StandardScaler(), FunctionTransformer(_by_sqrt_of_width), Rotation(), model
    )


def logistic_pipeline(penalty: float = 1.0) -> Pipeline:
    """L2 logistic regression; ``penalty`` is sklearn's C."""
    return _pipeline(LogisticRegression(C=penalty, max_iter=10_000))


def svm_pipeline(penalty: float = 1.0) -> Pipeline:
    """Linear support vector machine, one class against the rest; ``penalty`` is sklearn's C."""
    return _pipeline(LinearSVC(C=penalty, max_iter=50_000, dual="auto"))


def ridge_pipeline(penalty: float = 1.0) -> Pipeline:
    """Ridge regression; ``penalty`` is 1 / alpha, as C is."""
    return _pipeline(Ridge(alpha=1 / penalty))


def _searched(
    build: Callable[[float], Pipeline],
    x: np.ndarray,
    y: np.ndarray,
    folds: Any,
    scoring: str,
    groups: np.ndarray | None,
) -> tuple[Pipeline, float]:
    """The pipeline with the penalty of the best score in the folds, fitted on all samples.

    As ``GridSearchCV`` does, with one rotation a fold for all penalties. A fold that cannot be
    scored, because a class is missing in it, has the score nan with every penalty; where no mean is
    left to compare, the strongest penalty is taken.
    """
    scores = np.full((len(PENALTIES), folds.get_n_splits()), np.nan)
    scorer = get_scorer(scoring)
    for fold, (train, test) in enumerate(folds.split(x, y, groups)):
        rotation = build(1.0)[:-1]
        rotated, other = rotation.fit_transform(x[train]), rotation.transform(x[test])
        with on_one_thread():
            for number, penalty in enumerate(PENALTIES):
                try:
                    fitted = build(penalty)[-1].fit(rotated, y[train])
                    scores[number, fold] = scorer(fitted, other, y[test])
                except ValueError as error:
                    warnings.warn(
                        f"a fold of {len(test)} samples has no score: {error}", stacklevel=2
                    )
    means = np.average(scores, axis=1)
    known = np.flatnonzero(~np.isnan(means))
    best = PENALTIES[known[np.argmax(means[known])]] if len(known) else PENALTIES[0]
    return build(best).fit(x, y), best


def _fit_classes(
    build: Callable[[float], Pipeline],
    scoring: Callable[[int], str],
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    groups: np.ndarray | None,
) -> tuple[Pipeline, float]:
    together = np.arange(len(y)) if groups is None else groups
    counts = [len(np.unique(together[y == label])) for label in np.unique(y)]
    if len(counts) < 2:
        raise UserInputError("linear model: the samples to fit on are all of one class.")
    folds = min(_FOLDS, min(counts))
    if folds < 2:
        return build(1.0).fit(x, y), 1.0
    inner = StratifiedKFold if groups is None else StratifiedGroupKFold
    cut = inner(folds, shuffle=True, random_state=seed)
    return _searched(build, x, y, cut, scoring(len(counts)), groups)


def fit_logistic(
    x: np.ndarray,
    y: np.ndarray,
    seed: int = 0,
    groups: np.ndarray | None = None,
    *,
    by: str = "auroc",
) -> tuple[Pipeline, float]:
    """Fit with the best penalty in stratified inner folds of the same samples.

    Args:
        x: [S, N] features; y: [S] classes.
        seed: of the folds.
        groups: [S] what stays together in the folds; None if samples are subjects.
        by: "auroc", or "log_loss": that looks at the size of the probabilities, too, which AUROC
            leaves open, so that scores can be added to those of other models.

    Returns:
        The fitted pipeline and its C, which is 1 when a class has a single subject.

    Raises:
        UserInputError: there is only one class.
    """

    def scoring(classes: int) -> str:
        if by == "log_loss":
            return "neg_log_loss"
        return "roc_auc" if classes == 2 else "roc_auc_ovr"

    return _fit_classes(logistic_pipeline, scoring, x, y, seed, groups)


def fit_ridge(
    x: np.ndarray, y: np.ndarray, seed: int = 0, groups: np.ndarray | None = None
) -> tuple[Pipeline, float]:
    """Fit a ridge regression, its penalty by squared error; otherwise as ``fit_logistic``."""
    units = len(y) if groups is None else len(np.unique(groups))
    folds = min(_FOLDS, units)
    if folds < 2:
        return ridge_pipeline().fit(x, y), 1.0
    cut = KFold(folds, shuffle=True, random_state=seed) if groups is None else GroupKFold(folds)
    return _searched(ridge_pipeline, x, y, cut, "neg_mean_squared_error", groups)


def affine(fitted: Pipeline, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Decision values, or predictions, of a fitted pipeline as one affine function of its features.

    Args:
        fitted: of ``fit_logistic``, ``fit_ridge`` or their like.
        width: number of features.

    Returns:
        Weights float64 [values, width] and constants [values]: one value for two classes and for a
        regression, else one for each class.
    """
    scaler, rotation, model = fitted[0], fitted[2], fitted[-1]
    weight = np.atleast_2d(model.coef_) @ rotation.axes_.T / np.sqrt(width) / scaler.scale_
    value_of = fitted.predict if isinstance(model, Ridge) else fitted.decision_function
    constant = value_of(np.zeros((1, width))).reshape(-1)
    return weight, constant


class LinearModel(NamedTuple):
    """A fitted model of either kind.

    Attributes:
        pipeline: of sklearn.
        penalty: C, or 1 / alpha.
        classes: of a classification, those absent from the samples too; 1 of a regression.
    """

    pipeline: Pipeline
    penalty: float
    classes: int

    def score(self, x: np.ndarray) -> np.ndarray:
        """Class probabilities [S, classes], or predictions [S, 1].

        A support vector machine has none: the softmax of its decision values keeps their order.
        """
        if self.classes == 1:
            return self.pipeline.predict(x)[:, None]
        found = np.zeros((len(x), self.classes))
        if isinstance(self.pipeline[-1], LinearSVC):
            values = self.pipeline.decision_function(x)
            if values.ndim == 1:
                values = np.column_stack([-values, values]) / 2
            found[:, self.pipeline.classes_] = softmax(values, axis=1)
        else:
            found[:, self.pipeline.classes_] = self.pipeline.predict_proba(x)
        return found


def fit_linear(x: np.ndarray, y: np.ndarray, seed: int, classes: int) -> LinearModel:
    """Logistic regression of classes (int ``y``), or ridge regression of values (float ``y``)."""
    if y.dtype.kind in "iu":
        return LinearModel(*fit_logistic(x, y, seed), classes)
    return LinearModel(*fit_ridge(x, y, seed), 1)


def fit_svm(
    x: np.ndarray, y: np.ndarray, seed: int, classes: int, *, groups: np.ndarray | None = None
) -> LinearModel:
    """Support vector machine of classes, with the penalty of the best accuracy.

    ``groups`` [S] is what stays together in the inner folds; None if samples are subjects.
    """
    found = _fit_classes(svm_pipeline, lambda _: "accuracy", x, y, seed, groups)
    return LinearModel(*found, classes)
