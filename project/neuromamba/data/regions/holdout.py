"""Splits into training and test scans, with whole groups (subjects, families) on either side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.cohort import Cohort

HOLDOUT = 5  # one in so many groups
HOLDOUT_NAME = "holdout"


class Split(NamedTuple):
    """A division of scans.

    Attributes:
        name: ``fold_1`` ... or ``holdout``.
        train, test: int, indices into ``Cohort.scans``.
    """

    name: str
    train: np.ndarray
    test: np.ndarray


def splits_of(cohort: Cohort, seed: int, folds: int, cross_validation: bool = True) -> list[Split]:
    """The folds of a seed, and last its holdout: refitted on all that the folds are made of.

    A fifth of the groups, stratified by class, is held out; the rest is cut into stratified folds.

    Args:
        cohort: the data set.
        seed: of the draw.
        folds: of the cross-validation.
        cross_validation: without it there is the holdout only.

    Raises:
        UserInputError: too few groups of a class for every side to have it.
    """
    everything = np.arange(len(cohort.scans))
    fitted, held = _divide(
        cohort,
        everything,
        HOLDOUT,
        seed,
        f"only; the holdout is one part of {HOLDOUT}",
        "More subjects are needed.",
    )[0]
    found = []
    if cross_validation:
        where = f"outside the holdout, fewer than the {folds} folds"
        parts = _divide(cohort, fitted, folds, seed, where, "Take fewer folds, or more subjects.")
        for number, (train, test) in enumerate(parts, start=1):
            found.append(Split(f"fold_{number}", train, test))
    found.append(Split(HOLDOUT_NAME, fitted, held))
    for split in found:
        _check(cohort, split)
    return found


def _divide(
    cohort: Cohort, scans: np.ndarray, parts: int, seed: int, where: str, remedy: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    labels, groups = cohort.labels[scans], cohort.groups[scans]
    for label in np.unique(labels):
        there = len(np.unique(groups[labels == label]))
        if there < parts:
            raise UserInputError(
                f"--folds: {cohort.details.classes[label]} has scans of {there} subjects (or "
                f"families) {where}. {remedy}"
            )
    divide = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    return [
        (scans[train], scans[test])
        for train, test in divide.split(np.zeros(len(scans)), labels, groups)
    ]


def _check(cohort: Cohort, split: Split) -> None:
    """No group on both sides, every class on both."""
    assert not set(cohort.groups[split.train]) & set(cohort.groups[split.test]), split.name
    for part, scans in (("trains on", split.train), ("is tested on", split.test)):
        absent = set(range(len(cohort.details.classes))) - set(cohort.labels[scans])
        if absent:
            names = ", ".join(cohort.details.classes[label] for label in sorted(absent))
            raise UserInputError(
                f"--folds: {split.name} {part} no scan of {names}; the classes are too rare or "
                f"too unevenly spread over subjects. Take fewer folds, or another seed."
            )
