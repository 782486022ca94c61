"""Baselines that are no linear model of a scan: confounds alone, and a small network on FC."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
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
from neuromamba.neurossm.linear import Measured, fit_and_predict, hash_of_columns

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

    def fit_and_score(
        self, train_scans: Sequence[Scan], test_scans: Sequence[Scan], seed: int, folder: Path
    ) -> np.ndarray:
        """Fit and score."""
        x, new = self._features(train_scans, test_scans)
        return fit_and_predict(x, new, train_scans, seed)

    def _features(
        self, train: Sequence[Scan], test: Sequence[Scan]
    ) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for place in range(len(self.columns)):
            own, other = ([self.texts[scan.scan][place] for scan in s] for s in (train, test))
            parts.append(_regressors(own, other))
        x, new = (np.hstack([part[side] for part in parts]) for side in (0, 1))
        return x, new


def _regressors(own: Sequence[str], other: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Regressors [S, k] of the training and of the test scans, of one column."""
    known = [value for text in own if (value := number(text)) is not None]
    present = [text for text in own if text]
    if present and len(known) == len(present):
        mean = float(np.mean(known))
        found = []
        for texts in (own, other):
            values = [number(text) for text in texts]
            filled = [mean if value is None else value for value in values]
            found.append(np.column_stack([filled, [float(value is None) for value in values]]))
        return found[0], found[1]
    kinds = sorted({category(text).lower() for text in present})
    one, two = (
        np.array(
            [[float(category(text).lower() == kind) for kind in kinds] for text in texts]
        ).reshape(len(texts), len(kinds))
        for texts in (own, other)
    )
    return one, two


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

    def fit_and_score(
        self, train_scans: Sequence[Scan], test_scans: Sequence[Scan], seed: int, folder: Path
    ) -> np.ndarray:
        """Fit and score."""
        x, new = (
            np.stack([self.measured.of("FC", scan) for scan in part])
            for part in (train_scans, test_scans)
        )
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
        x, new = rotated.transform(x), rotated.transform(new)
        size = np.sqrt((x**2).mean()) or 1.0  # one number: the axes keep their proportions
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the last epoch is as good
            if labels.dtype.kind == "f":
                scaling = standardising(labels)
                wanted = (labels - scaling.center) / scaling.scale
                values = MLPRegressor(**how).fit(x / size, wanted).predict(new / size)
                return np.asarray(values * scaling.scale + scaling.center)[:, None]
            return np.asarray(MLPClassifier(**how).fit(x / size, labels).predict_proba(new / size))
