"""The columns that every imported scan has under one name: site, age, sex, motion, and targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.text import category, some_of
from neuromamba.config.tasks import TASKS
from neuromamba.data.cohorts.registry import Cohort
from neuromamba.data.regions.collections.labels import Labels

# Name in the file -> columns of tables, best first, in any case.
ROLES: Mapping[str, tuple[str, ...]] = {
    "site": ("site", "site_id", "siteid", "site_id_l", "center", "centre", "scanner", "acq_site"),
    "age": ("age", "age_at_scan", "age_at_mri", "age_in_yrs", "interview_age", "age_years"),
    "sex": ("sex", "gender"),
    "motion": (
        "func_mean_fd",
        "mean_fd",
        "meanfd",
        "fd_mean",
        "mean_framewise_displacement",
        "framewise_displacement",
        "motion",
        "fd",
    ),
}
_LETTERS = {"f": "female", "female": "female", "m": "male", "male": "male"}


def roles_of(labels: Labels, words: Sequence[str]) -> dict[str, str]:
    """Name in the file -> column of the tables, for what the tables have.

    Args:
        labels: the tables.
        words: of ``--columns``: ``site=SCANNER``; ``site=`` is none.

    Raises:
        UserInputError: a word of another form, another name, or no such column.
    """
    told: dict[str, str] = {}
    for word in words:
        role, equals, column = word.partition("=")
        if not equals:
            raise UserInputError(
                f"--columns: got '{word}', expected NAME=COLUMN with one of {', '.join(ROLES)}."
            )
        look_up(role, ROLES, "--columns")
        told[role] = look_up(column, labels.columns, f"--columns: {role}, column") if column else ""
    lower = {name.lower(): name for name in reversed(labels.columns)}
    found = {}
    for role, usual in ROLES.items():
        target = labels.cohort.targets.get(role)
        own = () if target is None else (target.column, *target.other_columns)
        names = (*own, role, *(lower[name] for name in usual if name in lower))
        column = told.get(role, next((name for name in names if name in labels.columns), ""))
        if column:
            found[role] = column
    return found


def added_columns(
    row: Mapping[str, str], roles: Mapping[str, str], cohort: Cohort
) -> dict[str, str]:
    """Values of the names in ``ROLES``, and of the cohort's targets by the names of their classes.

    Args:
        row: of the table.
        roles: of ``roles_of``.
        cohort: whose codes of classes are known.
    """
    found = {role: row.get(column, "") for role, column in roles.items()}
    if "sex" in found and "sex" not in cohort.targets:
        found["sex"] = _LETTERS.get(found["sex"].lower(), found["sex"])
    for task, target in cohort.targets.items():
        names = (target.column, *target.other_columns)
        column = roles.get(task, next((name for name in names if name in row), None))
        if column is None:
            continue
        text = row[column]
        if target.mapping and column in names:
            index = target.mapping.get(category(text).lower())
            text = text if index is None else TASKS[task].class_names[index]
        found[task] = text
    return found


def counted(values: Sequence[str]) -> str:
    """``NYU 131, UM_1 80 ...``, the most frequent first."""
    counts = Counter(value or "(missing)" for value in values)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return some_of((f"{name} {count}" for name, count in ordered), 25)
