"""Baselines that are no linear model of a scan: confounds alone, and a small network on FC."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import category, number, spelling
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.linear_models import Rotation
from neuromamba.evaluation.target_scaling import standardising
from neuromamba.neurossm.linear import Measured, Scorer, fit_linear, hash_of_columns

CONFOUNDS, MLP = "Confounds", "MLP"
WIDTH = 64  # of the network's hidden layer
_BATCH = 32
_PATIENCE = 30  # epochs without gain, after which the training ends
_VALIDATED = 50  # training scans from which on a tenth decides when the training ends


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the models of a run share beside the scans.

    Attributes:
        measured: features of scans.
        confounds: columns of ``--confounds``.
        texts: scan -> text of each of them; "" for none.
        column: of ``--harmonise``; "" for none.
        sites: scan -> value of it; "" for none.
    """

    measured: Measured = field(default_factory=Measured)
    confounds: tuple[str, ...] = ()
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    column: str = ""
    sites: Mapping[str, str] = field(default_factory=dict)


def shared_of(
    cohort: Cohort, external: Cohort | None, confounds: Sequence[str], column: str | None
) -> Shared:
    """Read the columns of a data set, and of another cohort that its models are tested on.

    Args:
        cohort: the data set.
        external: the other cohort; where it lacks a column, its scans have no value.
        confounds: of ``--confounds``.
        column: of ``--harmonise``.

    Raises:
        UserInputError: there is no column to harmonise, a scan without a value, or one value alone.
    """
    texts: dict[str, tuple[str, ...]] = {}
    sites: dict[str, str] = {}
    if column is not None:
        values = cohort.column(column, "--harmonise")
        empty = int((values == "").sum())
        if empty:
            raise UserInputError(
                f"--harmonise {column}: {empty} of {len(cohort.scans)} scans have no value of it. "
                f"Complete the column."
            )
        if len(set(values.tolist())) == 1:
            raise UserInputError(
                f"--harmonise {column}: all {len(values)} scans have the value {str(values[0])!r}: "
                f"there are no differences to remove. Leave the flag out."
            )
    for one in (cohort, *([] if external is None else [external])):
        for scan, row in zip(one.scans, one.rows, strict=True):
            texts[scan.scan] = tuple(spelling(row.get(name)) for name in confounds)
            sites[scan.scan] = "" if column is None else spelling(row.get(column))
    return Shared(confounds=tuple(confounds), texts=texts, column=column or "", sites=sites)


@dataclass(frozen=True)
class ConfoundClassifier:
    """Logistic or ridge regression on columns such as age, sex, site and motion.

    What it reaches needs no brain. A number is a regressor, with the training's mean in place of a
    missing one and an indicator of it; a text is an indicator of each value that the training has,
    so that a site which was left out has none.

    Attributes:
        columns: their names.
        texts: scan -> text of each column; "" for none.
    """

    columns: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]] = field(repr=False)
    name: str = CONFOUNDS

    def settings(self) -> dict[str, Any]:
        """The columns; nothing else can be chosen."""
        columns = {"columns": list(self.columns), "columns_hash": hash_of_columns(self.texts)}
        return {"features": self.name, **columns}

    def fit(self, train_scans: Sequence[Scan], seed: int, folder: Path) -> Scorer:
        """Fit."""
        columns = [
            _regressors([self.texts[scan.scan][place] for scan in train_scans])
            for place in range(len(self.columns))
        ]

        def features(scans: Sequence[Scan]) -> np.ndarray:
            texts = (
                [self.texts[scan.scan][place] for scan in scans]
                for place in range(len(self.columns))
            )
            return np.hstack([of(column) for of, column in zip(columns, texts, strict=True)])

        predict = fit_linear(features(train_scans), train_scans, seed)
        return lambda scans: predict(features(scans))


def _regressors(own: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """What turns texts of a column into regressors [S, k], by the training's texts."""
    known = [value for text in own if (value := number(text)) is not None]
    present = [text for text in own if text]
    if present and len(known) == len(present):
        mean = float(np.mean(known))

        def of_numbers(texts: Sequence[str]) -> np.ndarray:
            values = [number(text) for text in texts]
            filled = [mean if value is None else value for value in values]
            return np.column_stack([filled, [float(value is None) for value in values]])

        return of_numbers
    kinds = sorted({category(text).lower() for text in present})

    def of_categories(texts: Sequence[str]) -> np.ndarray:
        found = [[float(category(text).lower() == kind) for kind in kinds] for text in texts]
        return np.array(found).reshape(len(texts), len(kinds))

    return of_categories


@dataclass(frozen=True)
class MLPOnFC:
    """A network with one hidden layer on correlations between regions.

    The correlations are standardised and rotated onto the principal axes of the training scans,
    which keeps all that distinguishes these. Early stopping on a tenth of the training scans, L2
    penalty 1.

    Attributes:
        measured: features that other baselines have computed, too.
    """

    measured: Measured = field(repr=False, compare=False)
    name: str = MLP

    def settings(self) -> dict[str, Any]:
        """The features and the width."""
        return {"features": "FC", "hidden": WIDTH}

    def fit(self, train_scans: Sequence[Scan], seed: int, folder: Path) -> Scorer:
        """Fit."""
        x = self.measured.of("FC", train_scans)
        labels = np.array([scan.label for scan in train_scans])
        how: dict[str, Any] = {
            "hidden_layer_sizes": (WIDTH,),
            "alpha": 1.0,
            "batch_size": min(_BATCH, len(labels)),
            "n_iter_no_change": _PATIENCE,
            "early_stopping": len(labels) >= _VALIDATED,
            "max_iter": 200 if len(labels) >= _VALIDATED else 50,
            "random_state": seed,
        }
        rotated = make_pipeline(StandardScaler(), Rotation()).fit(x)
        x = rotated.transform(x)
        size = np.sqrt((x**2).mean()) or 1.0  # one number: the axes keep their proportions
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last epoch is as good
            scaling = standardising(labels) if labels.dtype.kind == "f" else None
            if scaling is not None:
                wanted = (labels - scaling.center) / scaling.scale
                network = MLPRegressor(**how).fit(x / size, wanted)
            else:
                network = MLPClassifier(**how).fit(x / size, labels)

        def scores(scans: Sequence[Scan]) -> np.ndarray:
            new = rotated.transform(self.measured.of("FC", scans)) / size
            if scaling is None:
                return np.asarray(network.predict_proba(new))
            return np.asarray(network.predict(new) * scaling.scale + scaling.center)[:, None]

        return scores
