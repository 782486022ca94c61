"""The linear baselines: logistic regression on connectivity, and on means and variances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from neuromamba.data.regions.batches import z_scored
from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.connectivity import connectivity
from neuromamba.evaluation.linear_models import fit_logistic


def region_connectivity(scan: Scan) -> np.ndarray:
    """Fisher's z [N (N - 1) / 2] of the z-scored series that the networks see, too."""
    return connectivity(z_scored(scan.series).double().numpy().T)


def mean_and_variance(scan: Scan) -> np.ndarray:
    """[2 N] mean and logarithm of the variance of each region, of the values in the file."""
    wide = scan.series.astype(np.float64)
    variance = wide.var(1)
    return np.concatenate([wide.mean(1), np.log(np.maximum(variance, 1e-12))])


FEATURES: Mapping[str, Callable[[Scan], np.ndarray]] = {
    "FC": region_connectivity,
    "MeanVariance": mean_and_variance,
}


def fit_and_predict(x: np.ndarray, new: np.ndarray, scans: Sequence[Scan], seed: int) -> np.ndarray:
    """Fit on the features of some scans, score others.

    The penalty is chosen in inner folds of the training scans that keep groups together.

    Args:
        x: [training scans, features].
        new: [test scans, features].
        scans: those of ``x``.
        seed: of the inner folds.

    Returns:
        Probabilities [test scans, classes].
    """
    labels = np.array([scan.label for scan in scans])
    groups = np.array([scan.group for scan in scans])
    return fit_logistic(x, labels, seed, groups)[0].predict_proba(new)


def features_of(name: str, scans: Sequence[Scan]) -> np.ndarray:
    """[scans, features] of ``FEATURES``."""
    return np.stack([FEATURES[name](scan) for scan in scans])
