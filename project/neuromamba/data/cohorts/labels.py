"""Targets of subjects: from the metadata of their cohort, or from a table of the user's.

Classes are ints, values floats. A subject without a target, a value that means nothing and two
different targets of one subject are errors that list the names.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from neuromamba.common.errors import UserInputError, look_up, see
from neuromamba.common.text import ABSENT, category, names_for_message, number, some_of
from neuromamba.config.tasks import TASKS
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.registry import Cohort, Target
from neuromamba.data.cohorts.suspicious import check_classes, check_values
from neuromamba.data.cohorts.tables import Table, read_table, tables_of, values_of_subjects

logger = logging.getLogger(__name__)
MOST_CLASSES = 50  # a column of text with more values is names or remarks
_DECIMAL_COMMA = re.compile(r"'[-+]?\d+,\d+'")
_EXCLUDE = "exclude the subjects with --bad_subj_path FILE (one name per line)"


def target_of(cohort: Cohort, task: str) -> Target:
    """Look up the column that holds a task's target in a cohort.

    Raises:
        UserInputError: unknown task, or one that the cohort has no target for.
    """
    look_up(task, TASKS, "--downstream_task")
    if task not in cohort.targets:
        known = ", ".join(cohort.targets) or "none"
        raise UserInputError(
            f"--downstream_task: the data set {cohort.name} has no target for '{task}'; it has "
            f"{known}. A column of your own: --label_csv FILE --target_column COLUMN."
        )
    return cohort.targets[task]


def read_labels(
    cohort: Cohort,
    image_path: str | Path,
    task: str,
    subjects: Iterable[str],
    codes: Sequence[str] = (),
) -> dict[str, int | float]:
    """Targets of ``subjects`` from ``<image_path>/metadata/*.csv``.

    Args:
        cohort: an entry of ``DATASETS``.
        image_path: the store's folder.
        task: a key of ``TASKS``.
        subjects: names as in the store.
        codes: of ``--missing_codes``; subjects with one are left out.

    Returns:
        subject as given -> class index (classification, int) or value (regression, float).

    Raises:
        UserInputError: no file or column, a subject without label, an unknown value, or a subject
            with two different labels. The message lists what was found.
    """
    target = target_of(cohort, task)
    folder = Path(image_path) / "metadata"
    tables = tables_of(folder)
    if not tables:
        raise UserInputError(
            f"--image_path: no CSV or TSV file in '{folder}'; expected one with the columns "
            f"'{cohort.subject_column}' and '{target.column}' ({cohort.description})."
        )
    expected = f"one of {', '.join(target.mapping)}" if target.mapping else "finite numbers"
    found = _convert(
        cohort,
        tables,
        (target.column, *target.other_columns),
        subjects,
        _class_reader(target.mapping) if target.mapping else number,
        expected,
        codes,
    )
    if not target.mapping:
        _warn(check_values(found, target.column, str(folder)))
    return found


def _spellings(tables: list[Table], cohort: Cohort, missing: list[str], names: list[str]) -> str:
    """How the table writes subjects, where it has none of those asked for."""
    if len(missing) < len(names):
        return ""
    for table in tables:
        for column in cohort.subject_columns:
            if column in table.columns and table.rows:
                return f" (the table writes them as {some_of(table.column(column, ''), 3)})"
    return ""


def declared_missing(
    tables: list[Table],
    cohort: Cohort,
    columns: tuple[str, ...],
    names: Iterable[str],
    codes: Sequence[str],
) -> set[str]:
    """Names of the subjects whose label is a code of ``--missing_codes``; they are logged."""
    if not codes:
        return set()
    wanted = {category(code).lower() for code in codes}
    cells = values_of_subjects(
        tables, cohort.subject_columns, columns, cohort.key, map(cohort.key, names)
    )
    found = {
        name
        for name in names
        if (cell := (cells or {}).get(cohort.key(name))) is not None
        and category(cell.text).lower() in wanted
    }
    if found:
        logger.info(
            "--missing_codes: %d subjects without a label left out: %s",
            len(found),
            names_for_message(found),
        )
    return found


def _class_reader(mapping: Mapping[str, int]) -> Callable[[str], int | None]:
    return lambda text: mapping.get(category(text).lower())


def _convert(
    cohort: Cohort,
    tables: list[Table],
    columns: tuple[str, ...],
    subjects: Iterable[str],
    reader: Callable[[str], int | float | None],
    expected: str,
    codes: Sequence[str] = (),
) -> dict[str, int | float]:
    names = sorted(set(subjects))
    declared = declared_missing(tables, cohort, columns, names, codes)
    where = tables[0].path if len(tables) == 1 else tables[0].path.parent
    cells = values_of_subjects(
        tables,
        cohort.subject_columns,
        columns,
        cohort.key,
        map(cohort.key, names),
        (*cohort.missing_codes, *codes),
        # Two spellings of one class do not conflict; two unknown values do.
        lambda text: text if (value := reader(text)) is None else value,
    )
    if cells is None:
        raise UserInputError(
            f"{where}: no file has both a subject column ({' or '.join(cohort.subject_columns)}) "
            f"and the column {' or '.join(columns)}. Found: "
            f"{'; '.join(table.summary for table in tables)}. Rename the columns, or add a CSV "
            f"with these two ({cohort.description})."
        )
    if declared:
        names = [name for name in names if cohort.key(name) in cells or name not in declared]
    missing = [name for name in names if cohort.key(name) not in cells]
    if missing:
        spelt = _spellings(tables, cohort, missing, names)
        remedy = "Write them there as in the store" if spelt else "Complete the CSV"
        raise UserInputError(
            f"{where}: column '{columns[0]}' has no label for {len(missing)} of {len(names)} "
            f"subjects: {names_for_message(missing)}{spelt}. "
            f"{remedy}, or {_EXCLUDE}. {see('no-label')}"
        )
    labels: dict[str, int | float] = {}
    unknown: list[str] = []
    for name in names:
        text = cells[cohort.key(name)].text
        value = reader(text)
        if value is None:
            unknown.append(f"{name}: '{text}'")
        else:
            labels[name] = value
    if unknown:
        raise UserInputError(
            f"{where}: column '{columns[0]}' holds unknown values for {len(unknown)} subject(s) "
            f"({names_for_message(unknown)}); expected {expected}. Correct the CSV, or {_EXCLUDE}."
        )
    return labels


def _warn(message: str) -> None:
    if message:
        logger.warning("warning: %s", message)


# ------------------------------------------------------------------------- a table of one's own


def own_task(
    task_type: str,
    values: Iterable[str],
    column: str,
    flag: str,
    codes: Sequence[str] = (),
    chosen: Sequence[str] = (),
) -> tuple[str, ...]:
    """Classes of a column, in the order of the text; none for a regression.

    Args:
        task_type: "classification", "regression", or "" to conclude it from the values.
        values: of the column; those that mean "not recorded" are passed over.
        column: its name; flag: the flag that named the file; for messages.
        codes: of ``--missing_codes``.
        chosen: of ``--target_classes``, which say what is a class.

    Returns:
        The classes; empty for a regression.

    Raises:
        UserInputError: numbers without ``--downstream_task_type``, since they may be either; text
            where numbers are expected; or more values than classes can be.
    """
    absent = ABSENT | {category(code).lower() for code in codes}
    present = [value for value in values if category(value).lower() not in absent]
    distinct = sorted({category(value) for value in present})
    numeric = all(number(value) is not None for value in distinct)
    if not distinct:
        raise UserInputError(f"{flag}: the column '{column}' holds no value.")
    if task_type == "regression":
        if not numeric:
            text = [f"'{value}'" for value in distinct if number(value) is None]
            commas = all(_DECIMAL_COMMA.fullmatch(value) for value in text)
            remedy = "Write decimals with a point" if commas else "Correct it"
            raise UserInputError(
                f"{flag}: the column '{column}' holds text ({some_of(text)}), a regression needs "
                f"numbers. {remedy}, or leave the cells empty."
            )
        return ()
    if not task_type and numeric:
        raise UserInputError(
            f"--downstream_task_type: the column '{column}' holds numbers ({len(distinct)} "
            f"different ones), which may be classes or values; say classification or regression. "
            f"{see('classes-or-values')}"
        )
    if len(distinct) > MOST_CLASSES:
        raise UserInputError(
            f"{flag}: the column '{column}' has {len(distinct)} different values, more than the "
            f"{MOST_CLASSES} that can be classes. Choose some with --target_classes, or give "
            f"--downstream_task_type regression."
        )
    if not chosen:
        remedy = "Give --missing_codes CODE, or name the classes with --target_classes."
        check_classes(distinct, column, flag, remedy)
    return tuple(distinct)


def own_classes(
    task_type: str,
    path: str,
    column: str,
    codes: Sequence[str] = (),
    chosen: Sequence[str] = (),
) -> tuple[str, ...]:
    """Classes of ``--target_column`` in ``--label_csv``; see ``own_task``."""
    table = read_table(Path(path))
    values = table.column(column, "--target_column")
    return own_task(task_type, values, column, "--label_csv", codes, chosen)


def read_own_labels(
    cohort: Cohort, task: DownstreamConfig, subjects: Iterable[str]
) -> dict[str, int | float]:
    """Targets of ``subjects`` from ``--label_csv``.

    Subjects of a class that is none of ``--target_classes`` are left out, and logged.

    Raises:
        UserInputError: as in ``read_labels``.
    """
    assert task.label_csv is not None and task.target_column is not None
    table = read_table(Path(task.label_csv))
    table.column(task.target_column, "--target_column")
    if task.subject_column is not None:
        table.column(task.subject_column, "--subject_column")
        cohort = cohort.with_subject_column(task.subject_column)
    elif not set(cohort.subject_columns) & set(table.columns):
        raise UserInputError(
            f"--subject_column: not given, and {table.path} has none of the usual columns of "
            f"subjects ({', '.join(cohort.subject_columns)}); it has {some_of(table.columns)}. "
            f"Name that of the subjects."
        )
    columns, names, codes = (task.target_column,), list(subjects), task.missing_codes
    if task.task_type == "regression":
        values = _convert(cohort, [table], columns, names, number, "finite numbers", codes)
        _warn(check_values(values, task.target_column, str(table.path)))
        return values
    numbers = {name: i for i, name in enumerate(task.target_classes)}
    others = -1  # a label, but not one of the classes asked for
    found = _convert(
        cohort,
        [table],
        columns,
        names,
        lambda text: numbers.get(category(text), others),
        "",
        codes,
    )
    left_out = [name for name, value in found.items() if value == others]
    if left_out:
        logger.info(
            "--target_classes: %d subjects of other classes left out: %s",
            len(left_out),
            names_for_message(left_out),
        )
    return {name: value for name, value in found.items() if value != others}
