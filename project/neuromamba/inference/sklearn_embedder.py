"""Embeddings as a transformer of scikit-learn, for pipelines and cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from neuromamba.common.errors import UserInputError
from neuromamba.inference.loaded import LoadedModel
from neuromamba.inference.loading import load

_POOLS = ("subject", "region")  # one row per scan


class NeuroMambaEmbedder(TransformerMixin, BaseEstimator):
    """Turn scans into rows of features of a frozen model.

        scores = cross_val_score(make_pipeline(NeuroMambaEmbedder(model), RidgeCV()), scans, ages)

    Nothing is fitted: the features of a scan depend on no other scan, so none can leak between
    folds. A backbone that was pre-trained on the same scans has seen them, without labels.

    Args:
        model: of ``neuromamba.load``, or what it takes.
        layer: see ``embed.layer_name``.
        pool: "subject" or "region", whose regions are put side by side.
        statistics: over time; put side by side.
        tr: repetition time in seconds; None takes that of each scan.
        mask: as of ``LoadedModel.prepare``.
    """

    def __init__(
        self,
        model: LoadedModel | str | Path,
        *,
        layer: int = -1,
        pool: str = "subject",
        statistics: Sequence[str] = ("mean", "sd"),
        tr: float | None = None,
        mask: str | Path | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.pool = pool
        self.statistics = statistics
        self.tr = tr
        self.mask = mask

    def __sklearn_clone__(self) -> NeuroMambaEmbedder:
        """Share the weights: a copy of them for every fold would fill the memory."""
        return type(self)(**self.get_params(deep=False))

    def __sklearn_is_fitted__(self) -> bool:
        """Say that nothing has to be fitted."""
        return True

    def fit(self, X: Sequence[Any], y: Any = None) -> NeuroMambaEmbedder:
        """Do nothing but check the settings.

        Raises:
            UserInputError: no model of volumes; a pool without one row per scan.
        """
        if not isinstance(self.model, LoadedModel | str | Path):
            raise UserInputError(
                f"NeuroMambaEmbedder: got a model of type {type(self.model).__name__}, expected a "
                f"model of volumes that neuromamba.load gives, or its path. A model of regions "
                f"gives the features of a scan by model.embed(scan).values."
            )
        if self.pool not in _POOLS:
            raise UserInputError(
                f"NeuroMambaEmbedder: got pool '{self.pool}', expected {' or '.join(_POOLS)}."
            )
        return self

    def transform(self, X: Sequence[Any]) -> np.ndarray:
        """Embed scans.

        Args:
            X: n paths or nibabel images.

        Returns:
            float32 [n, D * statistics (* regions)].

        Raises:
            UserInputError: no list of scans; a scan cannot be used; scans of different regions.
        """
        self.fit(X)
        if isinstance(X, str | Path):
            raise UserInputError(f"NeuroMambaEmbedder: got one scan, expected a list: ['{X}'].")
        if not len(X):
            raise UserInputError("NeuroMambaEmbedder: got no scans, expected one or more.")
        model = self.model if isinstance(self.model, LoadedModel) else load(self.model)
        assert isinstance(model, LoadedModel)
        rows = []
        for bold in X:
            with model.prepare(bold, tr=self.tr, mask=self.mask) as scan:
                found = model.embed(
                    scan, layer=self.layer, pool=self.pool, statistics=tuple(self.statistics)
                )
            rows.append(found.values.ravel())
        if len({row.size for row in rows}) > 1:
            raise UserInputError(
                "NeuroMambaEmbedder: the scans cover different regions; use pool 'subject'."
            )
        return np.stack(rows)
