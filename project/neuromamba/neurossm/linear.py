"""The linear baselines: logistic or ridge regression on connectivity, or on means and variances.

They are what a network has to beat, so each gets the best that a linear model can have: features
that the literature recommends, and a penalty chosen in inner folds of the training scans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuromamba.data.regions.batches import z_scored
from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.combat import Combat
from neuromamba.evaluation.connectivity import (
    TangentSpace,
    connectivity,
    partial_correlation,
    shrunk_correlation,
)
from neuromamba.evaluation.linear_models import (
    affine,
    fit_logistic,
    fit_ridge,
    logistic_pipeline,
    ridge_pipeline,
)
from neuromamba.evaluation.target_scaling import standardising
from neuromamba.neurossm.config import COMBAT
from neuromamba.neurossm.second_order import SecondOrder

Scorer = Callable[[Sequence[Scan]], np.ndarray]
"""Scans -> probabilities [scans, classes], or values [scans, 1]. A number depends on the other
scans of the call in its last digits, since products round by their size."""


def region_connectivity(scan: Scan) -> np.ndarray:
    """Fisher's z [N (N - 1) / 2] of the z-scored series that the networks see, too."""
    return connectivity(_series(scan))


def region_partial_correlation(scan: Scan) -> np.ndarray:
    """Partial correlations [N (N - 1) / 2] of the z-scored series."""
    return partial_correlation(_series(scan))


def region_correlation(scan: Scan) -> np.ndarray:
    """Shrunk correlations [N, N] of the z-scored series, which the tangent space starts from."""
    return shrunk_correlation(_series(scan))


def mean_and_variance(scan: Scan) -> np.ndarray:
    """[2 N] mean and logarithm of the variance of each region, of the values in the file."""
    wide = scan.series.astype(np.float64)
    variance = wide.var(1)
    return np.concatenate([wide.mean(1), np.log(np.maximum(variance, 1e-12))])


def _series(scan: Scan) -> np.ndarray:
    return z_scored(scan.series).double().numpy().T


TANGENT = "Tangent"
MEASURES: Mapping[str, Callable[[Scan], np.ndarray]] = {
    "FC": region_connectivity,
    "PartialCorrelation": region_partial_correlation,
    TANGENT: region_correlation,
    "MeanVariance": mean_and_variance,
}


def fit_second_order(
    pathway: SecondOrder,
    scans: Sequence[Scan],
    seed: int,
    parts: np.ndarray | None = None,
    measured: Measured | None = None,
) -> np.ndarray | None:
    """Give NeuroSSM's second-order pathway the weights of the baseline ``Tangent``.

    Args:
        pathway: changed in place.
        scans: of the training.
        seed: of the inner folds in which the penalty is chosen.
        parts: int [S], what is left out together; see ``first_order_share``.
        measured: correlations that have been computed for the baseline, or will be used by it.

    Returns:
        Logits float64 [S, classes], or standardised values [S, 1], of each part by a fit on the
        others, with the same tangent space and penalty, which no label of a single scan decides;
        None without ``parts``.
    """
    measured = measured or Measured()
    matrices = measured.of(TANGENT, scans)
    space = TangentSpace(matrices)
    x = space.transform(matrices)
    labels = np.array([scan.label for scan in scans])
    groups = np.array([scan.group for scan in scans])
    build = logistic_pipeline
    if pathway.classes == 1:
        build, scaling = ridge_pipeline, standardising(labels)
        labels = (labels - scaling.center) / scaling.scale
        fitted, penalty = fit_ridge(x, labels, seed, groups)
    else:
        fitted, penalty = fit_logistic(x, labels, seed, groups, by="log_loss")
    weight, bias = affine(fitted, x.shape[1])
    if len(weight) < pathway.classes:  # two classes: one decision value, half of it for either
        weight, bias = (np.concatenate([-part, part]) / 2 for part in (weight, bias))
    rois = matrices.shape[1]
    rows, columns = np.triu_indices(rois)
    full = np.zeros((len(weight), rois, rois))
    # A pair's feature is sqrt(2) times its entry, which stands twice in the matrix.
    full[:, rows, columns] = np.where(rows == columns, 1, np.sqrt(0.5)) * weight
    full[:, columns, rows] = full[:, rows, columns]
    for name, value in (("whitening", space.whitening), ("weight", full), ("bias", bias)):
        getattr(pathway, name).copy_(torch.from_numpy(value))
    if parts is None:
        return None
    logits = np.empty((len(scans), len(weight)))
    for part in np.unique(parts):
        out = parts == part
        one = build(penalty).fit(x[~out], labels[~out])
        if pathway.classes == 1:
            logits[out] = one.predict(x[out])[:, None]
            continue
        values = one.decision_function(x[out])
        logits[out] = np.stack([-values, values], 1) / 2 if values.ndim == 1 else values
    return logits


def fit_linear(
    x: np.ndarray, scans: Sequence[Scan], seed: int, by: str = "auroc"
) -> Callable[[np.ndarray], np.ndarray]:
    """Fit logistic regression, or ridge regression of values, on the features of scans.

    The penalty is chosen in inner folds of the training scans that keep groups together.

    Args:
        x: [training scans, features].
        scans: those of ``x``.
        seed: of the inner folds.
        by: of ``fit_logistic``.

    Returns:
        Features [other scans, features] -> probabilities [other scans, classes]; of a regression
        predictions [other scans, 1].
    """
    labels = np.array([scan.label for scan in scans])
    groups = np.array([scan.group for scan in scans])
    if labels.dtype.kind == "f":
        ridge = fit_ridge(x, labels, seed, groups)[0]
        return lambda new: ridge.predict(new)[:, None]
    logistic = fit_logistic(x, labels, seed, groups, by=by)[0]
    return lambda new: logistic.predict_proba(new)


class Measured:
    """Features of scans that have been computed, which the folds and models of a run share."""

    def __init__(self) -> None:
        # With each its scan, so that a key stays the scan's own.
        self._found: dict[tuple[str, int], tuple[Scan, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def of(self, name: str, scans: Sequence[Scan]) -> np.ndarray:
        """float32 [scans, ...], ``MEASURES[name]`` of each scan."""
        for scan in scans:
            key = name, id(scan.series)
            if key not in self._found:
                self._found[key] = scan, MEASURES[name](scan).astype(np.float32)
        return np.stack([self._found[name, id(scan.series)][1] for scan in scans])


def hash_of_columns(texts: Mapping[str, Any]) -> str:
    """Hash what columns say of scans, so that results of another table are not continued."""
    return hashlib.blake2b(repr(sorted(texts.items())).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class LinearClassifier:
    """Logistic regression on features of a scan; of values, ridge regression.

    Attributes:
        name: of ``MEASURES``; with ``COMBAT`` at its end where features are harmonised.
        measured: what has been computed of scans.
        column: that is harmonised (site); "" for none.
        sites: scan -> value of it; "" where it has none, and keeps its features.
    """

    name: str
    measured: Measured = field(default_factory=Measured, repr=False, compare=False)
    column: str = ""
    sites: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def measure(self) -> str:
        """Key of ``MEASURES``."""
        return self.name.removesuffix(COMBAT)

    def settings(self) -> dict[str, Any]:
        """The features, and what they are harmonised by; nothing else can be chosen."""
        if not self.column:
            return {"features": self.measure}
        of = {"harmonised": self.column, "columns_hash": hash_of_columns(self.sites)}
        return {"features": self.measure, **of}

    def fit(self, train_scans: Sequence[Scan], seed: int, folder: Path) -> Scorer:
        """Fit."""
        x, features = self.features(train_scans)
        by = "log_loss" if self.measure == TANGENT else "auroc"
        predict = fit_linear(x, train_scans, seed, by)
        return lambda scans: predict(features(scans))

    def features(
        self, train_scans: Sequence[Scan]
    ) -> tuple[np.ndarray, Callable[[Sequence[Scan]], np.ndarray]]:
        """Features of the training scans, float32 [scans, features], and what gives others'.

        The tangent space is that at the training scans, and so is the harmonisation.
        """
        x = self.measured.of(self.measure, train_scans)
        space = TangentSpace(x) if self.measure == TANGENT else None
        if space:
            x = space.transform(x)
        combat = None
        if self.column:
            own = self._sites(train_scans)
            combat = Combat(x[own != ""], own[own != ""])
            x = combat.transform(x, own)

        def others(scans: Sequence[Scan]) -> np.ndarray:
            new = self.measured.of(self.measure, scans)
            if space:
                new = space.transform(new)
            return combat.transform(new, self._sites(scans)) if combat else new

        return x, others

    def _sites(self, scans: Sequence[Scan]) -> np.ndarray:
        return np.array([self.sites[scan.scan] for scan in scans])
