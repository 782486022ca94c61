"""Who stays together, who is spread evenly and who is paired, from columns of the metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import names_for_message, number
from neuromamba.config.data import DataConfig
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.matching import match_within
from neuromamba.data.cohorts.registry import Cohort
from neuromamba.data.cohorts.splits import PARTS, Grouping, Split
from neuromamba.data.cohorts.tables import Table, read_table, tables_of, values_of_subjects

logger = logging.getLogger(__name__)

NO_STRATA = ("none",)  # --stratify_by none
_QUARTERS = 4
_MOST_STRATA = 10  # numbers with more different values are put into quarters


def _tables(image_path: str | Path, task: DownstreamConfig | None) -> list[Table]:
    """Tables of subjects: those of the store, and the user's own."""
    tables = tables_of(Path(image_path) / "metadata")
    if task is not None and task.label_csv is not None:
        tables.append(read_table(Path(task.label_csv)))
    return tables


def column_by_split_unit(
    flag: str,
    name: str,
    cohort: Cohort,
    image_path: str | Path,
    task: DownstreamConfig | None,
    subject_of: Mapping[str, str],
) -> dict[str, str]:
    """Read a column as text by split unit; those without a value are absent.

    Args:
        flag: that named the column.
        name: of the column.
        cohort, image_path, task: whose tables may have it.
        subject_of: split unit -> subject.

    Raises:
        UserInputError: no table has the column, or a subject has two values.
    """
    if task is not None and task.subject_column is not None:
        subject_columns = (task.subject_column, *cohort.subject_columns)
    else:
        subject_columns = cohort.subject_columns
    tables = _tables(image_path, task)
    cells = values_of_subjects(
        tables,
        subject_columns,
        cohort.columns_of(name),
        cohort.key,
        map(cohort.key, subject_of.values()),
        cohort.missing_codes,
    )
    if cells is None:
        found = "; ".join(table.summary for table in tables) or "no table"
        raise UserInputError(
            f"{flag}: no table in '{Path(image_path) / 'metadata'}' has a subject column "
            f"({' or '.join(cohort.subject_columns)}) and the column '{name}'. Found: {found}."
        )
    return {
        name: cells[key].text
        for name, subject in subject_of.items()
        if (key := cohort.key(subject)) in cells
    }


def read_grouping(
    cohort: Cohort,
    image_path: str | Path,
    config: DataConfig,
    task: DownstreamConfig | None,
    subject_of: Mapping[str, str],
) -> Grouping:
    """Unit, families and strata of a split.

    Args:
        cohort: says which strata are its own.
        image_path: the store's folder, with ``metadata/``.
        config: the columns asked for.
        task: its ``--label_csv`` may hold the columns too.
        subject_of: split unit -> subject.

    Raises:
        UserInputError: no table has the column, or a subject has two values.
    """
    family: dict[str, str] = {}
    if config.family_column:
        family = column_by_split_unit(
            "--family_column", config.family_column, cohort, image_path, task, subject_of
        )
        _tell_missing("--family_column", config.family_column, "alone", family, subject_of)
    chosen = config.stratify_by or cohort.stratify_by
    chosen = () if chosen == NO_STRATA else chosen
    flag = "--stratify_by"
    if chosen and not config.stratify_by:
        flag = f"--stratify_by (none switches the stratification of {cohort.name} off)"
    strata = []
    for name in chosen:
        values = column_by_split_unit(flag, name, cohort, image_path, task, subject_of)
        _tell_missing("--stratify_by", name, "a stratum of their own", values, subject_of)
        strata.append(_in_quarters(values))
    stratum = {}
    if strata:
        stratum = {
            name: " / ".join(values.get(name, "not recorded") for values in strata)
            for name in subject_of
        }
    return Grouping(
        split_unit=config.group_by,
        family_column=config.family_column or "",
        stratify_by=chosen,
        family=family,
        stratum=stratum,
    )


def _tell_missing(
    flag: str, column: str, fate: str, values: Mapping[str, str], everybody: Mapping[str, str]
) -> None:
    missing = everybody.keys() - values.keys()
    if missing:
        logger.warning(
            "warning: %s %s: %d without a value (%s), taken as %s",
            flag,
            column,
            len(missing),
            names_for_message(missing),
            fate,
        )


def _in_quarters(values: Mapping[str, str]) -> dict[str, str]:
    """Strata of a column: its values, or the quarter of a number among many different ones."""
    numbers = {name: number(text) for name, text in values.items()}
    distinct = set(numbers.values())
    if None in distinct or len(distinct) <= _MOST_STRATA:
        return dict(values)
    ordered = np.array(sorted(float(value) for value in numbers.values() if value is not None))
    steps = np.arange(1, _QUARTERS) / _QUARTERS
    edges = np.quantile(ordered, steps)
    return {
        name: f"quarter {int(np.searchsorted(edges, value, side='left')) + 1}"
        for name, value in numbers.items()
        if value is not None
    }


def matched_split(
    split: Split,
    labels: Mapping[str, int | float],
    cohort: Cohort,
    image_path: str | Path,
    config: DataConfig,
    task: DownstreamConfig,
    subject_of: Mapping[str, str],
) -> Split:
    """The split without those whom ``--match_on`` finds no partner for in their part.

    Args:
        split: to thin out.
        labels: split unit -> class.
        others: as in ``read_grouping``.

    Raises:
        UserInputError: not two classes, no such column, or no pair of training subjects.
    """
    if task.task_type != "classification" or len(task.class_names) != 2:
        raise UserInputError("--match_on: pairs two classes; the task has another kind of target.")
    values = [
        column_by_split_unit("--match_on", name, cohort, image_path, task, subject_of)
        for name in config.match_on
    ]
    complete = set(split.subjects).intersection(*values)
    left_out = set(split.subjects) - complete
    if left_out:
        logger.warning(
            "warning: --match_on: %d without a value of %s are left out: %s",
            len(left_out),
            " or ".join(config.match_on),
            names_for_message(left_out),
        )
    parts = [[name for name in getattr(split, part) if name in complete] for part in PARTS]
    found = match_within(parts, labels, values, config.match_caliper)
    for part, names, matched in zip(PARTS, parts, found, strict=True):
        logger.info(
            "--match_on: %s: %d of %d kept in pairs; largest standardised mean difference %.2f, "
            "before %.2f",
            part,
            len(matched.subjects),
            len(names),
            matched.difference_after,
            matched.difference_before,
        )
    empty = [p for p, n, m in zip(PARTS, parts, found, strict=True) if n and not m.subjects]
    if found[0].subjects and empty:
        logger.warning(
            "warning: --match_on: no pair is left in %s. Use a larger --match_caliper, fewer "
            "columns or another --dataset_split_num.",
            " and ".join(empty),
        )
    if not found[0].subjects:
        raise UserInputError(
            f"--match_on: no pair of training subjects agrees in {', '.join(config.match_on)} "
            f"within --match_caliper {config.match_caliper:g}. Use a larger caliper or fewer "
            f"columns."
        )
    return split.restricted_to(name for matched in found for name in matched.subjects)
