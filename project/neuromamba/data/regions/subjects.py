"""Subjects of a data set: their table, the label of each scan, families.

Where a data set has a table of subjects, labels and families are read there; else from the scans'
``pheno``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import category, number, some_of, spelling
from neuromamba.data.cohorts.suspicious import check_classes, check_values
from neuromamba.data.cohorts.tables import read_table
from neuromamba.data.regions.cohort import COMMON
from neuromamba.data.regions.registry import DatasetDetails
from neuromamba.data.regions.scan_files import RawScan, ScanFile

MOST_NUMBERS = 12  # that can be classes; more are ages, scores ...
SUBJECT_COLUMNS = ("Subject", "subjectId", "subject", "participant_id", "Subj")


def read_subjects(path: Path, flag: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV or TSV table of subjects: text, indexed by their names.

    Args:
        path: of the file.
        flag: what named it, or the folder it is in.
        columns: it must have.

    Raises:
        UserInputError: it cannot be read, lacks a column, or has two different rows of a subject.
    """
    if not path.is_file():
        wanted = ", ".join((SUBJECT_COLUMNS[0], *columns))
        raise UserInputError(
            f"{flag}: '{path}' does not exist; it has the columns {wanted}. docs/region_data.md "
            f"says where it comes from."
        )
    read = read_table(path)
    table = pd.DataFrame(read.rows, columns=list(read.columns), dtype=object).drop_duplicates()
    subject = next((name for name in SUBJECT_COLUMNS if name in table), None)
    absent = [name for name in columns if name not in table]
    if subject is None or absent:
        missing = ", ".join(absent) or " or ".join(SUBJECT_COLUMNS)
        raise UserInputError(
            f"{flag}: '{path}' has no column {missing}; its columns are "
            f"{some_of(table.columns, 12)}."
        )
    doubled = table[subject][table[subject].duplicated()]
    if len(doubled):
        raise UserInputError(
            f"{flag}: '{path}' has different rows of {some_of(doubled)}. Keep one row per subject."
        )
    return table.set_index(subject)


def subject_table(
    details: DatasetDetails, data_dir: Path, group_column: str | None
) -> pd.DataFrame | None:
    """The table of a data set; None if it has none."""
    if details.pheno_file is None:
        return None
    columns = [*details.pheno_keep]
    columns += [name for name in (details.pheno_target, group_column) if name]
    return read_subjects(data_dir / details.pheno_file, "--data_dir", columns)


def known_subjects(
    raw: list[RawScan],
    table: pd.DataFrame,
    details: DatasetDetails,
    file: ScanFile,
    notes: list[str],
) -> list[RawScan]:
    """Select the scans of subjects that are in the table and are to be kept."""
    unknown = sorted({item.subject for item in raw} - set(table.index))
    if len(unknown) == len({item.subject for item in raw}):
        raise file.error(
            f"has no subject ({some_of(unknown)}) of '{details.pheno_file}' "
            f"({some_of(table.index)}); are they written in the same way?"
        )
    if unknown:
        notes.append(f"{len(unknown)} subjects are not in the table and were left out: {unknown}.")
    kept = table
    for column, value in details.pheno_keep.items():
        kept = kept[kept[column] == value]
    found = [item for item in raw if item.subject in kept.index]
    if details.pheno_keep:
        wanted = ", ".join(f"{key} {value}" for key, value in details.pheno_keep.items())
        if not found:
            raise file.error(f"has no subject with {wanted} in '{details.pheno_file}'.")
        notes.append(f"kept the {len(found)} of {len(raw)} scans of subjects with {wanted}.")
    return found


def labelled(
    raw: Sequence[RawScan],
    table: pd.DataFrame | None,
    details: DatasetDetails,
    file: ScanFile,
    notes: list[str],
    missing_codes: Sequence[str] = (),
) -> tuple[list[RawScan], list[str]]:
    """Scans with a label, and the class of each by name, or its value as text.

    Args:
        raw, table, details, file: of the data set.
        notes: are added to.
        missing_codes: labels that mean "not recorded".

    Raises:
        UserInputError: no such label; labels that are values and not classes, or text where values
            are expected, codes for missing values, or spelled in two ways.
    """
    key, codes = details.target, {category(code).lower() for code in missing_codes}
    if details.pheno_target is not None and table is not None:
        cells = list(table.loc[[item.subject for item in raw], details.pheno_target])
    else:
        cells = [item.pheno.get(key) for item in raw]
        if not any(key in item.pheno for item in raw):
            names = dict.fromkeys(name for item in raw for name in item.pheno)
            common = [name for name in COMMON if name in names]
            known = some_of([*common, *(name for name in names if name not in COMMON)], 12)
            raise UserInputError(
                f"--target: no scan of '{file.path}' has '{key}' in its pheno "
                f"({known or 'it has none'})."
            )
    kept, found, without = [], [], []
    for item, cell in zip(raw, cells, strict=True):
        text = spelling(cell)
        if not text or text.lower() in codes:
            without.append(item.subject)
            continue
        label = details.labels.get(text.lower()) if details.labels else text
        if not label:
            raise UserInputError(
                f"--target: '{key}' of {item.subject} is '{text}', expected one of "
                f"{', '.join(sorted(details.labels))}."
            )
        kept.append(item)
        found.append(label)
    if details.is_regression:
        notes += _check_values(kept, found, key, file)
    elif not details.labels:
        _check_classes(found, key)
    if without:
        notes.append(f"{len(without)} scans without a '{key}' were left out ({some_of(without)}).")
    return kept, found


def _check_classes(found: Sequence[str], key: str) -> None:
    """Refuse what is no set of classes."""
    counts = Counter(found)
    numbers = [text for text in counts if number(text) is not None]
    if len(numbers) == len(counts) > MOST_NUMBERS:
        raise UserInputError(
            f"--target: '{key}' has {len(counts)} different numbers "
            f"({some_of(sorted(counts), 5)}): values and not classes. Predict them with "
            f"--task_type regression, or give a key of classes."
        )
    check_classes(counts, key, "--target", "Leave those scans out with --missing_codes CODE.")


def _check_values(
    kept: Sequence[RawScan], found: Sequence[str], key: str, file: ScanFile
) -> list[str]:
    """Refuse what are no values of a regression; returns a note about extreme ones, if any."""
    text = sorted({one for one in found if number(one) is None})
    if text:
        raise UserInputError(
            f"--target: '{key}' holds text ({some_of(text)}), and a regression needs numbers. "
            f"Predict classes with --task_type classification, or correct the values."
        )
    values = {item.subject: number(one) or 0.0 for item, one in zip(kept, found, strict=True)}
    if len(set(values.values())) < 2:
        raise UserInputError(
            f"--target: '{key}' has the same value in all scans of '{file.path}'; there is nothing "
            f"to predict."
        )
    note = check_values(values, key, f"{file.flag}: '{file.path}'")
    return [note] if note else []


def families(
    raw: Iterable[RawScan], table: pd.DataFrame | None, column: str | None
) -> dict[str, str]:
    """Subject -> what may not be split: the subject, or its family where that is known."""
    found: dict[str, str] = {}
    for item in raw:
        row = item.pheno if table is None else table.loc[item.subject]
        if column is not None and column not in row:
            raise UserInputError(
                f"--group_column: a scan of {item.subject} has no '{column}' in its pheno "
                f"({', '.join(map(str, row)) or 'it has none'})."
            )
        value = "" if column is None else spelling(row[column])
        group = f"{column} {value}" if value else item.subject
        if found.setdefault(item.subject, group) != group:
            raise UserInputError(
                f"--group_column: scans of {item.subject} differ in '{column}'; a subject has one "
                f"family."
            )
    return found


def confound_values(
    raw: Sequence[RawScan],
    table: pd.DataFrame | None,
    details: DatasetDetails,
    columns: Sequence[str],
) -> dict[str, dict[str, str]]:
    """Read the columns of ``--confounds``: column -> subject -> text.

    Subjects without a value are absent. Where scans of a subject differ in a number (motion), the
    subject has their mean.

    Raises:
        UserInputError: there is no such column, it is the target, or scans of a subject differ in
            a text.
    """
    found: dict[str, dict[str, str]] = {}
    for name in columns:
        known = set(table.columns) if table is not None else {key for r in raw for key in r.pheno}
        if name not in known:
            where = "the subject table" if table is not None else "the scans' pheno"
            raise UserInputError(
                f"--confounds: {where} has no '{name}' ({some_of(sorted(map(str, known)), 12)})."
            )
        if name in (details.target, details.pheno_target):
            raise UserInputError(f"--confounds: '{name}' is the target itself; leave it out.")
        texts: dict[str, list[str]] = {}
        for item in raw:
            row = item.pheno if table is None else table.loc[item.subject]
            if text := spelling(row.get(name)):
                texts.setdefault(item.subject, []).append(text)
        found[name] = {subject: _one_value(name, subject, t) for subject, t in texts.items()}
    return found


def _one_value(column: str, subject: str, texts: Sequence[str]) -> str:
    if len(set(texts)) == 1:
        return texts[0]
    numbers = [number(text) for text in texts]
    if any(value is None for value in numbers):
        raise UserInputError(
            f"--confounds: scans of {subject} differ in '{column}' "
            f"({some_of(sorted(set(texts)))}), expected one value per subject, or numbers. "
            f"Correct the pheno of the scans."
        )
    return f"{sum(value for value in numbers if value is not None) / len(numbers):.9g}"


def scan_names(raw: Sequence[RawScan], labels: Sequence[str]) -> list[str]:
    """``subject``, or ``subject_label`` or ``subject_2`` ... where there are several.

    Args:
        raw: the scans.
        labels: names of their classes; all alike in a regression.
    """
    subjects = Counter(item.subject for item in raw)
    pairs = Counter((item.subject, label) for item, label in zip(raw, labels, strict=True))
    seen: Counter[tuple[str, str]] = Counter()
    names = []
    for item, label in zip(raw, labels, strict=True):
        key = (item.subject, label)
        seen[key] += 1
        name = item.subject
        if subjects[item.subject] > pairs[key]:
            name += f"_{label}"
        if pairs[key] > 1:
            name += f"_{seen[key]}"
        names.append(name)
    return names
