"""Subject-wise splits into training, validation and test set.

Windows are never split: all windows of a split unit belong to one part. The split unit is the
subject, unless sessions or runs are asked for (``Grouping``). ``split_files`` keeps them in files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.shares import largest_remainder
from neuromamba.common.text import names_for_message

PARTS = ("train", "val", "test")
_MOST_DRAWS = 1000  # in search of one with all classes in all parts


@dataclass(frozen=True)
class Split:
    """Subjects of the three parts; one in two of them raises ``UserInputError``."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        assert_disjoint(self)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Every subject, training first."""
        return self.train + self.val + self.test

    @property
    def text(self) -> str:
        """The reference's text file: a line ``<part>_subjects``, then names, for each part."""
        return "".join(_section(part, getattr(self, part)) for part in PARTS)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the split's text, names sorted in each part."""
        ordered = [(part, sorted(getattr(self, part))) for part in PARTS]
        text = "".join(_section(part, names) for part, names in ordered)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def restricted_to(self, subjects: Iterable[str]) -> Split:
        """The same split without the subjects that are not in ``subjects``.

        For exclusions (``--bad_subj_path``): they then move nobody to another part.
        """
        kept = set(subjects)
        return Split(*(tuple(s for s in getattr(self, part) if s in kept) for part in PARTS))


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """What is split, what stays together, and what is spread evenly.

    Attributes:
        split_unit: what the names of a split stand for, of ``config.SPLIT_UNITS``.
        family_column, stratify_by: columns of the metadata; recorded beside the split.
        family: name -> family, whose members stay in one part; who is not in it stands alone.
        stratum: name -> stratum, which every part gets an equal share of.
        target, classes: name of a classification, and name -> class, where the parts of a draw
            without it would lack a class (``class_balance``); recorded beside the split.
    """

    split_unit: str = "subject"
    family_column: str = ""
    stratify_by: tuple[str, ...] = ()
    family: Mapping[str, str] = field(default_factory=dict)
    stratum: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """The columns and the split unit in plain containers."""
        return {
            "unit": self.split_unit,
            "family_column": self.family_column,
            "stratify_by": list(self.stratify_by),
            **({"stratified_by_target": self.target} if self.target else {}),
        }


BY_SUBJECT = Grouping()


def _section(part: str, names: Iterable[str]) -> str:
    return "\n".join((f"{part}_subjects", *names)) + "\n"


def assert_disjoint(split: Split) -> None:
    """Leak guard: no subject may be in two parts, or twice in one.

    Raises:
        UserInputError: names the subjects.
    """
    counts = Counter(split.subjects)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise UserInputError(
            f"the split lists {len(repeated)} subject(s) more than once, within or across train, "
            f"val and test: {names_for_message(repeated)}. Keep each subject in one part."
        )


def _sizes(n_subjects: int, fractions: Sequence[float]) -> list[int]:
    """Whole subjects per part by the largest remainder, one at least where the fraction is > 0."""
    wanted = [fraction if fraction > 1e-9 else 0.0 for fraction in fractions]
    n_parts = sum(fraction > 0 for fraction in wanted)
    if n_subjects < n_parts:
        raise UserInputError(
            f"--train_split/--val_split: {n_subjects} subject(s) cannot fill the {n_parts} parts "
            f"with a positive fraction; expected at least {n_parts}. Add subjects, or set a "
            f"fraction to 0 (the test set gets what train and val leave)."
        )
    sizes = largest_remainder(n_subjects, wanted)
    for i, fraction in enumerate(wanted):
        if fraction > 0 and sizes[i] == 0:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[i] = 1
    return sizes


def draw_split(
    subjects: Iterable[str],
    split_num: int,
    train_fraction: float,
    val_fraction: float,
    grouping: Grouping = BY_SUBJECT,
) -> Split:
    """Draw a split; the test set gets what training and validation leave.

    The result depends on the set of subjects, not on their order, on ``split_num`` and on the
    families and strata alone.

    Args:
        subjects: the subjects of a store (or its sessions or runs); repetitions are ignored.
        split_num: seed, ``--dataset_split_num``.
        train_fraction, val_fraction: above 0 and from 0; their sum is at most 1.
        grouping: families and strata.

    Raises:
        UserInputError: fractions out of range, or too few subjects or families to fill every part.
    """
    if split_num < 0:
        raise UserInputError(f"--dataset_split_num: got {split_num}, expected 0 or more.")
    if not 0 < train_fraction <= 1 or val_fraction < 0 or train_fraction + val_fraction > 1 + 1e-9:
        raise UserInputError(
            f"--train_split/--val_split: got {train_fraction} and {val_fraction}, expected a "
            f"positive training fraction and a sum of at most 1."
        )
    ordered = sorted(set(subjects))
    fractions = (train_fraction, val_fraction, 1 - train_fraction - val_fraction)
    _sizes(len(ordered), fractions)  # refuses what cannot be filled
    if grouping.classes:
        return _draw_with_classes(ordered, split_num, fractions, grouping)
    return _draw_once(ordered, [split_num], fractions, grouping)


def _draw_once(
    names: Sequence[str], seed: Sequence[int], fractions: Sequence[float], grouping: Grouping
) -> Split:
    if grouping.family or grouping.stratum:
        return _draw_grouped(names, seed, fractions, grouping)
    n_train, n_val, _ = _sizes(len(names), fractions)
    order = np.random.default_rng(seed).permutation(len(names))
    shuffled = [names[i] for i in order]
    ends = (0, n_train, n_train + n_val, len(names))
    return Split(*(tuple(sorted(shuffled[a:b])) for a, b in pairwise(ends)))


def absent_classes(split: Split, classes: Mapping[str, int]) -> dict[str, set[int]]:
    """Part -> classes that none of its labelled subjects has; parts without subjects left out."""
    found = {}
    for part in PARTS:
        present = {classes[name] for name in getattr(split, part) if name in classes}
        if getattr(split, part) and set(classes.values()) - present:
            found[part] = set(classes.values()) - present
    return found


def _draw_with_classes(
    names: Sequence[str], split_num: int, fractions: Sequence[float], grouping: Grouping
) -> Split:
    """A draw stratified by class; where a part still lacks one, the first of many that does not.

    Where none of them has all classes in all parts, the draw without classes is returned.
    """
    by_class = {
        name: f"{grouping.classes.get(name, '')} / {grouping.stratum.get(name, '')}"
        for name in names
    }
    stratified = replace(grouping, stratum=by_class)
    tries = [([split_num], stratified)]
    tries += [([split_num, attempt], grouping) for attempt in range(1, _MOST_DRAWS + 1)]
    for seed, way in tries:
        try:
            found = _draw_once(names, seed, fractions, way)
        except UserInputError:  # families or strata of this order leave a part empty
            continue
        if not absent_classes(found, grouping.classes):
            return found
    return _draw_once(names, [split_num], fractions, grouping)


def _draw_grouped(
    names: Sequence[str], seed: Sequence[int], fractions: Sequence[float], grouping: Grouping
) -> Split:
    """Families in random order, stratum after stratum, each to the part that lacks most.

    What a small stratum leaves over counts for the next one, so that the parts have their sizes
    over all strata too.
    """
    families: dict[str, list[str]] = {}
    for name in names:
        # A family's name could be that of a subject.
        own = f"family {grouping.family[name]}" if name in grouping.family else f"alone {name}"
        families.setdefault(own, []).append(name)
    strata: dict[str, list[list[str]]] = {}
    for key in sorted(families):
        members = Counter(grouping.stratum.get(name, "") for name in families[key])
        stratum = min(members, key=lambda value: (-members[value], value))
        strata.setdefault(stratum, []).append(families[key])
    rng = np.random.default_rng(seed)
    parts: tuple[list[str], ...] = ([], [], [])
    done = 0
    for stratum in sorted(strata):
        for i in rng.permutation(len(strata[stratum])):
            family = strata[stratum][i]
            done += len(family)
            lacks = [round(f * done - len(p), 9) for f, p in zip(fractions, parts, strict=True)]
            parts[lacks.index(max(lacks))].extend(family)
    empty = [p for p, f, n in zip(PARTS, fractions, parts, strict=True) if f > 1e-9 and not n]
    if empty:
        raise UserInputError(
            f"--train_split/--val_split: {len(names)} subjects in {len(families)} families cannot "
            f"fill {' and '.join(empty)}. Add subjects, or set the fraction to 0."
        )
    return Split(*(tuple(sorted(part)) for part in parts))


def assert_families_whole(split: Split, family: Mapping[str, str], where: object) -> None:
    """Leak guard: the members of a family may not be in different parts.

    Raises:
        UserInputError: names the families; ``where`` is the file of the split.
    """
    parts: dict[str, set[str]] = {}
    for part in PARTS:
        for name in getattr(split, part):
            if name in family:
                parts.setdefault(family[name], set()).add(part)
    divided = [name for name, found in parts.items() if len(found) > 1]
    if divided:
        raise UserInputError(
            f"--family_column: {where} puts members of {len(divided)} families into different "
            f"parts: {names_for_message(divided)}. Use another --dataset_split_num, or delete the "
            f"file and its JSON to draw a split that keeps families together."
        )
