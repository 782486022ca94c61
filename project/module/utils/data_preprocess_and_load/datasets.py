"""The cohorts: ``DATASETS`` says where each one keeps its labels. To add a cohort, add an entry.

A cohort's entry names the column of subjects and, for each task, the column of the target in the
CSV files of ``<image_path>/metadata/``. Names of subjects in a store and in a CSV are compared by
``Cohort.key``, which knows the cohort's habits (``sub-`` prefixes, ``<eid>_20227_2_0``, leading
zeros). Nothing here opens an image.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from project.module.config import DATASET_NAMES, TASKS, UserInputError, look_up
from project.module.utils.data_preprocess_and_load.splits import names_for_message


@dataclass(frozen=True)
class Target:
    """Where a cohort keeps the target of a task.

    Attributes:
        column: name of the column.
        mapping: for a classification, value in lower case -> class index (the order of
            ``TASKS[...].class_names``); empty for a regression, whose values are numbers.
        other_columns: further names of the same column, in other releases of the cohort.
    """

    column: str
    mapping: Mapping[str, int] = field(default_factory=dict)
    other_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cohort:
    """A data set a user can name in ``--dataset_name``.

    Attributes:
        name: as in ``config.DATASET_NAMES``.
        description: one line for messages and reports.
        subject_column: the column of the subjects' names in the metadata.
        targets: task (a key of ``TASKS``) -> where its target is.
        other_subject_columns: further names of the subject column.
        crop_offset: index in the store's grid = index in the LAS source + offset, on X, Y, Z; None
            centres. Positions are index-based, so one cohort must not mix offsets.
        subject_pattern: regular expression whose first group is the name in the metadata, for
            stores that call their subjects otherwise; "" means the names agree.
        missing_codes: values that stand for "not recorded", besides empty fields and NA.
    """

    name: str
    description: str
    subject_column: str
    targets: Mapping[str, Target]
    other_subject_columns: tuple[str, ...] = ()
    crop_offset: tuple[int, int, int] | None = None
    subject_pattern: str = ""
    missing_codes: tuple[str, ...] = ()

    def key(self, subject: str) -> str:
        """The form of a subject's name that is compared between store and metadata.

        ``sub-100206`` and ``100206`` are one subject, so are ``0050002`` and ``50002`` (a
        spreadsheet drops the zeros) and ``NDAR_INV1`` and ``NDARINV1`` (BIDS allows no ``_``).
        """
        name = subject.strip().removeprefix("sub-")
        if self.subject_pattern and (found := re.fullmatch(self.subject_pattern, name)):
            name = found.group(1)
        name = name.replace("NDAR_INV", "NDARINV")
        return (name.lstrip("0") or "0") if name.isdecimal() else name


_SEX_LETTERS = {"f": 0, "female": 0, "m": 1, "male": 1}

DATASETS: Mapping[str, Cohort] = {
    cohort.name: cohort
    for cohort in (
        Cohort(
            "S1200",
            "Human Connectome Project, young adults (S1200 release)",
            "Subject",
            {
                "sex": Target("Gender", _SEX_LETTERS),
                "age": Target("age", other_columns=("Age_in_Yrs",)),
                "intelligence": Target("CogTotalComp_AgeAdj"),
            },
        ),
        Cohort(
            "ABCD",
            "Adolescent Brain Cognitive Development study",
            "subjectkey",
            {
                "sex": Target("sex", {**_SEX_LETTERS, "1": 1, "2": 0}),
                "age": Target("age"),
                "intelligence": Target("nihtbx_totalcomp_uncorrected"),
            },
        ),
        Cohort(
            "UKB",
            "UK Biobank",
            "eid",
            {
                "sex": Target("sex", {**_SEX_LETTERS, "0": 0, "1": 1}),
                "age": Target("age"),
                "intelligence": Target("fluid"),
            },
            subject_pattern=r"(\d+)_20227_\d+_\d+",
        ),
        Cohort(
            "HBN",
            "Healthy Brain Network",
            "EID",
            {
                # HBN codes 0 male, 1 female: the opposite of UK Biobank.
                "sex": Target("Sex", {**_SEX_LETTERS, "0": 1, "1": 0}),
                "age": Target("Age"),
            },
            other_subject_columns=("participant_id", "Identifiers"),
        ),
        Cohort(
            "ABIDE",
            "Autism Brain Imaging Data Exchange",
            "SUB_ID",
            {
                "sex": Target("SEX", {**_SEX_LETTERS, "1": 1, "2": 0}),
                "age": Target("AGE_AT_SCAN"),
                "intelligence": Target("FIQ"),
                "diagnosis": Target("DX_GROUP", {"1": 1, "2": 0}),
            },
            missing_codes=("-9999",),
        ),
        Cohort(
            "Dummy",
            "synthetic fMRI (synthetic.py); only sex is visible in the images",
            "subject",
            {
                "sex": Target("sex", _SEX_LETTERS),
                "age": Target("age"),
                "intelligence": Target("intelligence"),
                "diagnosis": Target("diagnosis", {"control": 0, "patient": 1}),
            },
        ),
    )
}
assert tuple(DATASETS) == DATASET_NAMES, "DATASETS and config.DATASET_NAMES disagree"
for _cohort in DATASETS.values():
    for _task, _target in _cohort.targets.items():
        _classes = set(range(TASKS[_task].num_classes)) if _target.mapping else set()
        assert set(_target.mapping.values()) == _classes, f"{_cohort.name}: classes of {_task}"
        assert bool(_classes) == (TASKS[_task].type == "classification"), f"{_cohort.name}: {_task}"


def target_of(cohort: Cohort, task: str) -> Target:
    """Where the cohort keeps a task's target.

    Raises:
        UserInputError: unknown task, or one that the cohort has no target for.
    """
    look_up(task, TASKS, "--downstream_task")
    if task not in cohort.targets:
        raise UserInputError(
            f"--downstream_task: the data set {cohort.name} has no target for '{task}'; it has "
            f"{', '.join(cohort.targets)}."
        )
    return cohort.targets[task]


def read_labels(
    cohort: Cohort, image_path: str | Path, task: str, subjects: Iterable[str]
) -> dict[str, int | float]:
    """Targets of ``subjects`` from ``<image_path>/metadata/*.csv``.

    Args:
        cohort: an entry of ``DATASETS``.
        image_path: the store's folder.
        task: a key of ``TASKS``.
        subjects: names as in the store.

    Returns:
        subject as given -> class index (classification, int) or value (regression, float).

    Raises:
        UserInputError: no file or column, a subject without label, an unknown value, or a subject
            with two different labels. The message lists what was found.
    """
    target = target_of(cohort, task)
    folder = Path(image_path) / "metadata"
    names = sorted(set(subjects))
    wanted = {cohort.key(name) for name in names}
    raw = _raw_labels(cohort, folder, (target.column, *target.other_columns), wanted)

    missing = [name for name in names if cohort.key(name) not in raw]
    if missing:
        raise UserInputError(
            f"{folder}: column '{target.column}' has no label for {len(missing)} of "
            f"{len(names)} subjects: {names_for_message(missing)}. Complete the CSV, or exclude "
            f"them with --bad_subj_path FILE (one name a line)."
        )
    labels: dict[str, int | float] = {}
    unknown: list[str] = []
    for name in names:
        text = raw[cohort.key(name)]
        value = _class_of(text, target.mapping) if target.mapping else _number(text)
        if value is None:
            unknown.append(f"{name}: '{text}'")
        else:
            labels[name] = value
    if unknown:
        expected = f"one of {', '.join(target.mapping)}" if target.mapping else "finite numbers"
        raise UserInputError(
            f"{folder}: column '{target.column}' holds unknown values for {len(unknown)} "
            f"subject(s) ({names_for_message(unknown)}); expected {expected}. Correct the CSV, or "
            f"exclude the subjects with --bad_subj_path FILE."
        )
    return labels


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _class_of(text: str, mapping: Mapping[str, int]) -> int | None:
    # A spreadsheet may have turned 1 into 1.0.
    return mapping.get(re.sub(r"^(\d+)\.0+$", r"\1", text).lower())


def _header(path: Path) -> tuple[list[str], str]:
    """Column names and delimiter of a CSV file (comma, semicolon or tab)."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            first = stream.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(f"{path}: cannot read the metadata ({error}).") from None
    delimiter = max(",;\t", key=first.count)
    return [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])], delimiter


def _raw_labels(
    cohort: Cohort, folder: Path, columns: tuple[str, ...], wanted: set[str]
) -> dict[str, str]:
    """Text of the label by subject key, from every file that has both columns."""
    files = sorted([*folder.glob("*.csv"), *folder.glob("*.tsv")])
    if not files:
        raise UserInputError(
            f"--image_path: no CSV or TSV file in '{folder}'; expected one with the columns "
            f"'{cohort.subject_column}' and '{columns[0]}' ({cohort.description})."
        )
    subject_columns = (cohort.subject_column, *cohort.other_subject_columns)
    found: list[str] = []
    labels: dict[str, str] = {}
    usable = False
    for path in files:
        header, delimiter = _header(path)
        found.append(f"{path.name} ({', '.join(header[:20])}{' ...' if len(header) > 20 else ''})")
        subject_column = next((c for c in subject_columns if c in header), None)
        label_column = next((c for c in columns if c in header), None)
        if subject_column is None or label_column is None:
            continue
        usable = True
        positions = [header.index(subject_column), header.index(label_column)]
        for subject, label in _two_columns(path, delimiter, positions, cohort.missing_codes):
            key = cohort.key(subject)
            if key not in wanted:
                continue
            if labels.setdefault(key, label) != label:
                raise UserInputError(
                    f"{path}: subject '{subject}' has conflicting values in column "
                    f"'{label_column}': '{labels[key]}' and '{label}'. Keep one row a subject."
                )
    if not usable:
        raise UserInputError(
            f"{folder}: no file has both a subject column ({' or '.join(subject_columns)}) and the "
            f"column {' or '.join(columns)}. Found: {'; '.join(found)}. Rename the columns or add "
            f"a CSV with these two ({cohort.description})."
        )
    return labels


def _two_columns(
    path: Path, delimiter: str, positions: list[int], missing_codes: tuple[str, ...]
) -> list[tuple[str, str]]:
    """(subject, label) of the rows that have a label."""
    absent = {"", "na", "n/a", "nan", "none", "null", *missing_codes}
    pairs = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = csv.reader(stream, delimiter=delimiter)
            width = len(next(rows))
            for row in rows:
                if any(cell.strip() for cell in row[width:]):
                    # The columns would be shifted: a label could belong to another column.
                    raise UserInputError(
                        f"{path}, line {rows.line_num}: found {len(row)} fields, expected {width} "
                        f"as in the first line. Quote the fields that hold a '{delimiter}'."
                    )
                subject, label = (row[i].strip() if i < len(row) else "" for i in positions)
                if label.lower() not in absent:
                    pairs.append((subject, label))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserInputError(f"{path}: cannot read the metadata ({error}).") from None
    return pairs
