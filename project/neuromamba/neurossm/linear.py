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


def fit_and_predict(
    name: str, train: Sequence[Scan], test: Sequence[Scan], seed: int
) -> tuple[np.ndarray, float]:
    """Fit on some scans, score others.

    The penalty is chosen in inner folds of the training scans that keep groups together.

    Args:
        name: of ``FEATURES``.
        train, test: scans.
        seed: of the inner folds.

    Returns:
        Probabilities [test scans, classes], and C.
    """
    features = FEATURES[name]
    x = np.stack([features(scan) for scan in train])
    labels = np.array([scan.label for scan in train])
    groups = np.array([scan.group for scan in train])
    pipeline, penalty = fit_logistic(x, labels, seed, groups)
    return pipeline.predict_proba(np.stack([features(scan) for scan in test])), penalty
