"""Splits into training and test scans, with whole groups (subjects, families) on either side."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.files import safe_name
from neuromamba.common.text import number, some_of
from neuromamba.data.regions.cohort import Cohort
from neuromamba.evaluation.intervals import FEWEST

HOLDOUT = 5  # one in so many groups
HOLDOUT_NAME = "holdout"
EXTERNAL = "external"  # scans of another file, tested by the models of the holdouts
LEFT_OUT = "without_"  # begins the name of a split by --leave_out
_CATEGORIES = 10  # a column with more different numbers is divided into quarters

# By the type of the task: what a value of --leave_out must have to be tested.
_NEEDED = {
    "classification": "scans of every class",
    "regression": f"scans of {FEWEST} subjects",
}


class Split(NamedTuple):
    """A division of scans.

    Attributes:
        name: ``fold_1`` ..., ``without_<value>`` or ``holdout``.
        train, test: int, indices into ``Cohort.scans``.
    """

    name: str
    train: np.ndarray
    test: np.ndarray


def splits_of(
    cohort: Cohort,
    seed: int,
    folds: int,
    cross_validation: bool = True,
    *,
    stratify_by: Sequence[str] = (),
    leave_out: str | None = None,
) -> list[Split]:
    """The splits of the cross-validation of a seed, and last its holdout.

    A fifth of the groups is held out; the rest, on which the holdout's model is fitted, is cut into
    folds. Both are stratified by class, in a regression by the quarter that the value is in. With
    ``leave_out`` the splits of the cross-validation are the values of a column instead (sites):
    each is tested by a model of all the others.

    Args:
        cohort: the data set.
        seed: of the draw.
        folds: of the cross-validation.
        cross_validation: without it there is the holdout only.
        stratify_by: columns whose values every part has in the same shares, too; numbers count by
            quarters.
        leave_out: column whose values are left out in turn.

    Raises:
        UserInputError: too few groups of a class for every side to have it; no such column; a group
            with several values of ``leave_out``.
    """
    everything = np.arange(len(cohort.scans))
    strata = _strata(cohort, stratify_by)
    fitted, held = _divide(
        cohort,
        strata,
        everything,
        HOLDOUT,
        seed,
        f"only; the holdout is one part of {HOLDOUT}",
        "More subjects are needed.",
    )[0]
    found = []
    if leave_out is not None:
        found += _left_out(cohort, leave_out)
    elif cross_validation:
        where = f"outside the holdout, fewer than the {folds} folds"
        remedy = "Take fewer folds, or more subjects."
        parts = _divide(cohort, strata, fitted, folds, seed, where, remedy)
        for number, (train, test) in enumerate(parts, start=1):
            found.append(Split(f"fold_{number}", train, test))
    holdout = Split(HOLDOUT_NAME, fitted, held)
    for split in [holdout] if leave_out is not None else [*found, holdout]:
        _check(cohort, split)
    return [*found, holdout]


def _strata(cohort: Cohort, columns: Sequence[str]) -> np.ndarray:
    """Text [scans] of what parts have the same shares of: the class, with the columns' values."""
    found = cohort.strata.astype(str).astype(object)
    for name in columns:
        texts = cohort.column(name, "--stratify_by")
        numbers = [number(text) for text in texts]
        known = np.array([value for value in numbers if value is not None])
        if len(np.unique(known)) > _CATEGORIES and len(known) > len(texts) / 2:
            edges = np.quantile(known, (0.25, 0.5, 0.75))
            texts = np.array(["" if v is None else str(np.searchsorted(edges, v)) for v in numbers])
        found = found + "|" + texts.astype(object)
    return found.astype(str)


def rare_strata(cohort: Cohort, columns: Sequence[str]) -> int:
    """Combinations of class and columns with too few groups for every part of the holdout's cut."""
    strata, groups = _strata(cohort, columns), cohort.groups
    return sum(len(np.unique(groups[strata == one])) < HOLDOUT for one in np.unique(strata))


def _divide(
    cohort: Cohort,
    strata: np.ndarray,
    scans: np.ndarray,
    parts: int,
    seed: int,
    where: str,
    remedy: str,
) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold  # a second, only for those who split

    labels, groups = cohort.strata[scans], cohort.groups[scans]
    for label in np.unique(labels):
        there = len(np.unique(groups[labels == label]))
        if there < parts:
            what = f"a quarter of the values of {cohort.details.target}"
            if cohort.details.classes:
                what = cohort.details.classes[label]
            raise UserInputError(
                f"--folds: {what} has scans of {there} subjects (or families) {where}. {remedy}"
            )
    own = strata[scans]
    for stratum in np.unique(own):
        # Too few for every part: those of a class go together, so that their shares are even, too.
        if len(np.unique(groups[own == stratum])) < parts:
            own[own == stratum] = f"{stratum.split('|')[0]}|rare"
    divide = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # the rare ones together
        return [
            (scans[train], scans[test])
            for train, test in divide.split(np.zeros(len(scans)), own, groups)
        ]


def _left_out(cohort: Cohort, column: str) -> list[Split]:
    """A split for each value of a column that can be tested; the rest is trained on."""
    values = cohort.column(column, "--leave_out")
    absent = int((values == "").sum())
    if absent:
        raise UserInputError(
            f"--leave_out {column}: {absent} of {len(values)} scans have no value of it, so that "
            f"it is unknown what they are to be left out with. Complete the column."
        )
    of_group: dict[str, str] = {}
    for group, value in zip(cohort.groups.tolist(), values.tolist(), strict=True):
        if of_group.setdefault(group, value) != value:
            raise UserInputError(
                f"--leave_out {column}: '{group}' has scans of '{of_group[group]}' and of "
                f"'{value}', and would be trained on and tested. Leave out what a subject (or "
                f"family) has one value of."
            )
    found, names = [], set()
    for value in sorted(set(values.tolist())):
        test = np.flatnonzero(values == value)
        train = np.flatnonzero(values != value)
        if not _can_be_tested(cohort, test):
            continue
        name = f"{LEFT_OUT}{safe_name(value, more='_', runs=True)}"
        names.add(name)
        found.append(Split(name, train, test))
    if len(found) < 2 or len(names) < len(found):
        raise UserInputError(
            f"--leave_out {column}: {len(names)} values have {_NEEDED[cohort.details.task_type]} "
            f"and names that differ in letters and digits, expected 2 or more. Its values are "
            f"{some_of(sorted(set(values.tolist())))}."
        )
    for split in found:
        _check(cohort, split)
    return found


def rare_values(cohort: Cohort, column: str) -> list[str]:
    """Values of ``--leave_out`` whose scans cannot be tested, and stay in training."""
    values = cohort.column(column, "--leave_out")
    return [
        value
        for value in sorted(set(values.tolist()))
        if not _can_be_tested(cohort, np.flatnonzero(values == value))
    ]


def _can_be_tested(cohort: Cohort, scans: np.ndarray) -> bool:
    """Whether scans have every class; of a regression, whether they are of enough subjects."""
    if cohort.details.is_regression:
        return len(np.unique(cohort.groups[scans])) >= FEWEST
    return len(set(cohort.labels[scans].tolist())) == len(cohort.details.classes)


def _check(cohort: Cohort, split: Split) -> None:
    """No group on both sides, every class on both."""
    assert not set(cohort.groups[split.train]) & set(cohort.groups[split.test]), split.name
    if cohort.details.is_regression:
        return
    for part, scans in (("trains on", split.train), ("is tested on", split.test)):
        absent = set(range(len(cohort.details.classes))) - set(cohort.labels[scans])
        if absent:
            names = ", ".join(cohort.details.classes[label] for label in sorted(absent))
            raise UserInputError(
                f"--folds: {split.name} {part} no scan of {names}; the classes are too rare or "
                f"too unevenly spread over subjects. Take fewer folds, or another seed."
            )
