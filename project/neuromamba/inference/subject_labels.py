"""Labels of subjects from a table of the user's own, to colour a map and to score probes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import ABSENT, category, names_for_message, number, plain_subject
from neuromamba.data.cohorts.tables import Table, read_table

MOST_CLASSES = 8  # that a figure can tell apart


class SubjectLabels(NamedTuple):
    """Labels of subjects.

    Attributes:
        column: its name.
        of_subject: subject -> class index or value.
        classes: names; () of values.
    """

    column: str
    of_subject: Mapping[str, int | float]
    classes: tuple[str, ...]

    def among(self, subjects: Sequence[str]) -> SubjectLabels | None:
        """The labels of some subjects, with the classes that they have; None if none has one."""
        found = {name: self.of_subject[name] for name in subjects if name in self.of_subject}
        if not found:
            return None
        if not self.classes:
            return self._replace(of_subject=found)
        present = sorted({int(index) for index in found.values()})
        index = {name: present.index(int(value)) for name, value in found.items()}
        return SubjectLabels(self.column, index, tuple(self.classes[i] for i in present))


def read_subject_labels(path: Path, column: str, subjects: Sequence[str]) -> SubjectLabels:
    """Read a column of a table of subjects, whose names are compared as ``plain_subject`` does.

    A column of numbers with more than eight different values is a regression, others are classes.
    Subjects without a value are left out.

    Raises:
        UserInputError: no such column; no column of subjects; no value for anybody; two values for
            one subject; too many classes.
    """
    table = read_table(path)
    texts = table.column(column, "--label_column")
    wanted = {plain_subject(subject): subject for subject in subjects}
    text_of: dict[str, str] = {}
    for name, text in zip(_subject_column(table, wanted), texts, strict=True):
        if name not in wanted or text.lower() in ABSENT:
            continue
        if text_of.setdefault(name, text) != text:
            raise UserInputError(
                f"--labels: '{path}' has two values of {column} for {wanted[name]}: "
                f"{text_of[name]} and {text}. Keep one row."
            )
    plain = {subject: plain_subject(subject) for subject in subjects}
    found = {subject: text_of[name] for subject, name in plain.items() if name in text_of}
    if not found:
        raise UserInputError(
            f"--labels: '{path}' has no value of {column} for any of the {len(subjects)} subjects: "
            f"{names_for_message(subjects)}. Check the column of subjects."
        )
    values = {subject: number(text) for subject, text in found.items()}
    numbers = {subject: value for subject, value in values.items() if value is not None}
    if len(numbers) == len(found) and len(set(numbers.values())) > MOST_CLASSES:
        return SubjectLabels(column, numbers, ())
    classes = tuple(sorted({category(text) for text in found.values()}))
    if len(classes) > MOST_CLASSES:
        raise UserInputError(
            f"--label_column: '{column}' has {len(classes)} different texts, expected numbers or "
            f"at most {MOST_CLASSES} classes."
        )
    index = {subject: classes.index(category(text)) for subject, text in found.items()}
    return SubjectLabels(column, index, classes)


def _subject_column(table: Table, wanted: Mapping[str, str]) -> list[str]:
    """The column in which most of the subjects are found; their plain names."""
    columns = [
        [plain_subject(cell) for cell in table.column(name, "--labels")] for name in table.columns
    ]
    hits = [len(set(cells) & wanted.keys()) for cells in columns]
    if not hits or max(hits) == 0:
        raise UserInputError(
            f"--labels: no column of {table.summary} holds the names of the subjects, such as "
            f"{min(wanted.values())}."
        )
    return columns[hits.index(max(hits))]
