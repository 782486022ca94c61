"""Files of a split: text as the reference writes it, and JSON with parameters and hash.

A split is drawn once per store and split number, written beside the data as the reference's
``split_fixed_<N>.txt`` and as JSON, and used unchanged from then on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.common.text import names_for_message
from neuromamba.data.cohorts.splits import (
    BY_SUBJECT,
    PARTS,
    Grouping,
    Split,
    assert_families_whole,
    draw_split,
)

logger = logging.getLogger(__name__)


def split_stem(split_num: int, split_unit: str) -> str:
    """Name of a split's files, without suffix."""
    return f"split_fixed_{split_num}" + ("" if split_unit == "subject" else f"_by_{split_unit}")


def write_split_txt(path: str | Path, split: Split) -> None:
    """Write the reference's text file (a line ``<part>_subjects``, then names), atomically."""
    write_text_atomically(Path(path), split.text)


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
        record = parse_json(path.read_text(encoding="utf-8"))
        stored = float(record["train_fraction"]), float(record["val_fraction"])
        stored_hash = record["hash"]
        # Absent in records of older versions, which knew neither.
        columns = record.get("family_column", ""), tuple(record.get("stratify_by", ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserInputError(
            f"{path}: damaged ({error!r}). Delete it to use the text file beside it as it is."
        ) from None
    drawn = {"--train_split": stored[0], "--val_split": stored[1]}
    wanted = {"--train_split": train_fraction, "--val_split": val_fraction}
    other = [flag for flag in drawn if abs(drawn[flag] - wanted[flag]) > 1e-9]
    texts = [{flag: f"{flag} {value:g}" for flag, value in one.items()} for one in (drawn, wanted)]
    asked = grouping.family_column, grouping.stratify_by
    for flag, old, new in zip(("--family_column", "--stratify_by"), columns, asked, strict=True):
        other += [flag] if old != new else []
        for text, value in zip(texts, (old, new), strict=True):
            names = [value] if isinstance(value, str) else value
            text[flag] = " ".join([flag, *names]) if value else f"no {flag}"
    if other:
        old, new = (", ".join(text[flag] for flag in other) for text in texts)
        raise UserInputError(
            f"{'/'.join(other)}: {path} holds a split drawn with {old}, but asked for was {new}. "
            f"Give the flags of that split, another --dataset_split_num, or delete its files."
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


def has_split(image_path: str | Path, split_num: int, grouping: Grouping) -> bool:
    """Whether a store has this split already, so that none will be drawn."""
    stem = split_stem(split_num, grouping.split_unit)
    return (Path(image_path) / "splits" / f"{stem}.txt").exists()


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
            where the split unit is not the subject.
        write: keep a newly drawn split.

    Returns:
        A split of exactly ``subjects``. Subjects that only the file names are left out (logged).
        A store that cannot be written is a logged warning: the draw is reproducible anyway.

    Raises:
        UserInputError: the file is malformed, overlaps, misses subjects of the store or was drawn
            with other fractions or columns; it divides a family; or too few subjects to draw from.
    """
    folder = Path(image_path) / "splits"
    path = folder / f"{split_stem(split_num, grouping.split_unit)}.txt"
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
