"""Subject-wise splits into training, validation and test set, kept in files.

A split is drawn once per store and split number, written beside the data as the reference's
``split_fixed_<N>.txt`` and as JSON (parameters and hash), and used unchanged from then on. Windows
are never split: all windows of a unit belong to one part. The unit is the subject, unless sessions
or runs are asked for (``Grouping``).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.shares import largest_remainder
from neuromamba.common.text import names_for_message

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test")


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
        unit: what the names of a split stand for, of ``config.SPLIT_UNITS``.
        family_column, stratify_by: columns of the metadata; recorded beside the split.
        family: name -> family, whose members stay in one part; who is not in it stands alone.
        stratum: name -> stratum, which every part gets an equal share of.
    """

    unit: str = "subject"
    family_column: str = ""
    stratify_by: tuple[str, ...] = ()
    family: Mapping[str, str] = field(default_factory=dict)
    stratum: Mapping[str, str] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """The columns and the unit in plain containers."""
        return {
            "unit": self.unit,
            "family_column": self.family_column,
            "stratify_by": list(self.stratify_by),
        }


def split_stem(split_num: int, unit: str) -> str:
    """Name of a split's files, without suffix."""
    return f"split_fixed_{split_num}" + ("" if unit == "subject" else f"_by_{unit}")


BY_SUBJECT = Grouping()


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
    n_train, n_val, _ = _sizes(len(ordered), fractions)
    if grouping.family or grouping.stratum:
        return _draw_grouped(ordered, split_num, fractions, grouping)
    order = np.random.default_rng([split_num]).permutation(len(ordered))
    shuffled = [ordered[i] for i in order]
    ends = (0, n_train, n_train + n_val, len(ordered))
    return Split(*(tuple(sorted(shuffled[a:b])) for a, b in pairwise(ends)))


def _draw_grouped(
    names: Sequence[str], split_num: int, fractions: Sequence[float], grouping: Grouping
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
    rng = np.random.default_rng([split_num])
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


def _section(part: str, names: Iterable[str]) -> str:
    return "\n".join((f"{part}_subjects", *names)) + "\n"


def write_split_txt(path: str | Path, split: Split) -> None:
    """Write the reference's text file (a line ``<part>_subjects``, then names), atomically."""
    write_text_atomically(Path(path), "".join(_section(p, getattr(split, p)) for p in PARTS))


def read_split_txt(path: str | Path) -> Split:
    """Read the reference's text file; blank lines are ignored.

    Raises:
        UserInputError: unreadable, no section line, no training subjects, or a subject twice.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(f"{path}: cannot read the split file ({error}).") from None
    parts: dict[str, list[str]] = {f"{part}_subjects": [] for part in PARTS}
    current: list[str] | None = None
    for number, name in enumerate(map(str.strip, lines), start=1):
        if name in parts:
            current = parts[name]
        elif name and current is None:
            raise UserInputError(
                f"{path}, line {number}: found '{name}', expected {' or '.join(parts)} first."
            )
        elif name and current is not None:
            current.append(name)
    if not parts["train_subjects"]:
        raise UserInputError(f"{path}: no training subjects below a line 'train_subjects'.")
    try:
        return Split(*map(tuple, parts.values()))
    except UserInputError as error:
        raise UserInputError(f"{path}: {error}") from None


def split_record(
    split: Split,
    dataset_name: str,
    split_num: int,
    train_fraction: float,
    val_fraction: float,
    grouping: Grouping = BY_SUBJECT,
) -> dict[str, Any]:
    """The split as plain containers: parameters, hash and names (the JSON file's content)."""
    return {
        "format_version": 1,
        "dataset_name": dataset_name,
        "split_num": split_num,
        "train_fraction": train_fraction,
        "val_fraction": val_fraction,
        **grouping.record,
        "hash": split.hash,
        **{part: list(getattr(split, part)) for part in PARTS},
    }


def write_split_files(folder: str | Path, split: Split, record: Mapping[str, Any]) -> None:
    """Write ``split_fixed_<N>.json`` and then ``.txt`` (whose presence makes the split fixed)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = split_stem(record["split_num"], record["unit"])
    write_text_atomically(folder / f"{stem}.json", json.dumps(record, indent=1) + "\n")
    write_split_txt(folder / f"{stem}.txt", split)


def _check_record(
    path: Path, split: Split, train_fraction: float, val_fraction: float, grouping: Grouping
) -> None:
    """Compare the JSON beside a split file with the file and with what was asked for."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        stored = float(record["train_fraction"]), float(record["val_fraction"])
        stored_hash = record["hash"]
        # Absent in records of older versions, which knew neither.
        columns = record.get("family_column", ""), tuple(record.get("stratify_by", ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserInputError(
            f"{path}: damaged ({error!r}). Delete it to use the text file beside it as it is."
        ) from None
    if max(abs(stored[0] - train_fraction), abs(stored[1] - val_fraction)) > 1e-9:
        raise UserInputError(
            f"--train_split/--val_split: {path} holds a split drawn with {stored[0]:g} and "
            f"{stored[1]:g}, but {train_fraction:g} and {val_fraction:g} were asked for. Use "
            f"those fractions, another --dataset_split_num, or delete the split's files."
        )
    wanted = grouping.family_column, grouping.stratify_by
    for flag, old, new in zip(("--family_column", "--stratify_by"), columns, wanted, strict=True):
        if old != new:
            raise UserInputError(
                f"{flag}: {path} holds a split drawn with {old or 'none'}, but {new or 'none'} was "
                f"asked for. Use that, another --dataset_split_num, or delete the split's files."
            )
    if stored_hash != split.hash:
        raise UserInputError(
            f"{path}: the hash {stored_hash} is not that of the text file beside it "
            f"({split.hash}): one of them was edited. Delete the JSON file if the text is right."
        )


def _match(split: Split, subjects: set[str], path: Path) -> Split:
    """The file's split in the store's names; a leading ``sub-`` is ignored in the comparison."""
    prefix = "sub-" if len({n.removeprefix("sub-") for n in subjects}) == len(subjects) else ""
    store = {name.removeprefix(prefix): name for name in subjects}
    in_file = {name.removeprefix(prefix) for name in split.subjects}
    unnamed = [name for key, name in store.items() if key not in in_file]
    if unnamed:
        raise UserInputError(
            f"{path}: {len(unnamed)} subject(s) of the store are in no part of this split: "
            f"{names_for_message(unnamed)}. Use another --dataset_split_num, or delete the file "
            f"and its JSON to draw a new split."
        )
    absent = in_file - set(store)
    if absent:
        listed = names_for_message(absent)
        logger.info("%s names %d subject(s) not in the store: %s", path, len(absent), listed)
    keys = (tuple(n.removeprefix(prefix) for n in getattr(split, part)) for part in PARTS)
    matched = Split(*(tuple(store[k] for k in part if k in store) for part in keys))
    if not matched.train:
        raise UserInputError(f"{path}: none of its training subjects is in the store.")
    return matched


def load_or_draw_split(
    image_path: str | Path,
    dataset_name: str,
    subjects: Iterable[str],
    split_num: int,
    train_fraction: float,
    val_fraction: float,
    *,
    grouping: Grouping = BY_SUBJECT,
    write: bool = True,
) -> Split:
    """Use ``<image_path>/splits/split_fixed_<N>.txt`` if it is there, else draw and write it.

    Args:
        image_path: the store's folder.
        dataset_name: recorded in the JSON.
        subjects: **all** subjects of the store; exclude some with ``Split.restricted_to`` later.
        split_num, train_fraction, val_fraction: as in ``draw_split``.
        grouping: what is split, families and strata; the file is ``split_fixed_<N>_by_<unit>.txt``
            where the unit is not the subject.
        write: keep a newly drawn split.

    Returns:
        A split of exactly ``subjects``. Subjects that only the file names are left out (logged).
        A store that cannot be written is a logged warning: the draw is reproducible anyway.

    Raises:
        UserInputError: the file is malformed, overlaps, misses subjects of the store or was drawn
            with other fractions or columns; it divides a family; or too few subjects to draw from.
    """
    folder = Path(image_path) / "splits"
    path = folder / f"{split_stem(split_num, grouping.unit)}.txt"
    known = set(subjects)
    if path.exists():
        split = read_split_txt(path)
        record_path = path.with_suffix(".json")
        if record_path.exists():  # absent beside the reference's own files
            _check_record(record_path, split, train_fraction, val_fraction, grouping)
        split = _match(split, known, path)
        assert_families_whole(split, grouping.family, path)
        return split
    split = draw_split(known, split_num, train_fraction, val_fraction, grouping)
    if write:
        record = split_record(
            split, dataset_name, split_num, train_fraction, val_fraction, grouping
        )
        try:
            write_split_files(folder, split, record)
        except OSError as error:
            logger.warning("the split is not kept in %s (%s)", folder, error)
    return split
