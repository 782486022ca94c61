"""Known facts of the validation subjects, which a pre-training predicts from its features.

Without ``--watch_task`` these are the facts that the store holds: data set and repetition time from
the headers; sex, age and other targets of the cohort, site and motion from the tables in
``metadata/``. Labels are read for the validation subjects alone, and nothing is trained on them.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import category, number, some_of
from neuromamba.config.tasks import TASKS
from neuromamba.data.cohorts.cohort_store import Store
from neuromamba.data.cohorts.grouping import column_by_split_unit
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.cohorts.tables import tables_of
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.known_facts import FEWEST, Fact
from neuromamba.evaluation.subject_keys import subject_key

logger = logging.getLogger(__name__)
FLAG = "--watch_task"
TR, DATASET, SITE, MOTION = "tr", "dataset", "site", "motion"
HOW_ACQUIRED = (TR, DATASET, SITE)  # says nothing about a person
# Names under which tables have them, compared without case; the first one that is there counts.
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    SITE: ("site", "site_id", "site_name", "scanner", "scanner_id"),
    MOTION: (
        "mean_fd",
        "func_mean_fd",
        "fd_mean",
        "meanfd",
        "mean_framewise_displacement",
        "framewise_displacement_mean",
        "framewise_displacement",
        "motion",
    ),
    "sex": ("sex", "gender"),
    "age": ("age",),
}
_TARGETS = tuple(name for name in TASKS if name != "age_group")  # it is age again
FOUND = (*_TARGETS, SITE, MOTION)  # looked for in tables, in this order
_MOST_NUMBERS = 10  # a column with more different numbers is a quantity, not classes

Values = dict[int, str]


def watched_facts(data: RunData, names: tuple[str, ...] = ()) -> dict[str, Fact]:
    """Facts to watch, by name.

    Args:
        data: of the pre-training.
        names: asked for: ``tr``, ``dataset``, tasks, ``site``, ``motion``, or columns of the
            tables. Empty for those that are there and differ between validation subjects.

    Raises:
        UserInputError: a name that was asked for and is not there.
    """
    if not any(data.subjects["val"]):
        return {}
    found: dict[str, Fact] = {}
    few = []
    for name in names or (DATASET, TR, *FOUND):
        values = _acquired(data, name) if name in (TR, DATASET) else _of_tables(data, name, names)
        fact = _fact(name, values, named=bool(names))
        differs = len(set(fact.values.values())) > 1
        if names or (differs and len(fact.values) >= FEWEST):
            found[name] = fact
        if differs and len(fact.values) < FEWEST:
            few.append(f"{name} ({len(fact.values)})")
    sizes = {name: len(fact.values) for name, fact in found.items()}
    if listed := [f"{name} ({size} subjects)" for name, size in sizes.items() if size >= FEWEST]:
        logger.info("watched in the features of validation subjects: %s", some_of(listed))
    if few:
        logger.info(
            "known of too few validation subjects to be watched (%d are needed): %s",
            FEWEST,
            some_of(few),
        )
    return found


def _acquired(data: RunData, name: str) -> Values:
    """Data set, or repetition time to 0.01 s, of each validation subject that has only one."""
    seen: dict[int, set[str]] = defaultdict(set)
    for number_, (store, chosen) in enumerate(zip(data.stores, data.subjects["val"], strict=True)):
        for header in store.runs_of(chosen)[1]:
            key = subject_key(store.split_unit_of(header), number_)
            if name == DATASET:
                seen[key].add(str(number_))
            elif not math.isnan(header.tr):
                seen[key].add(f"{header.tr:.2f}")
    return {key: next(iter(values)) for key, values in seen.items() if len(values) == 1}


def _of_tables(data: RunData, name: str, asked: tuple[str, ...]) -> Values:
    """Text of a column for each validation subject that has a value, whatever its store."""
    found: Values = {}
    problems = []
    for number_, (store, chosen) in enumerate(zip(data.stores, data.subjects["val"], strict=True)):
        headers = store.runs_of(chosen)[1]
        subject_of = {store.split_unit_of(header): header.subject for header in headers}
        try:
            column = _column(store, name)
            if column is None:
                continue
            texts = column_by_split_unit(
                FLAG, column, DATASETS[store.dataset], store.image_path, None, subject_of
            )
        except UserInputError as error:
            problems.append(str(error))
            continue
        target = DATASETS[store.dataset].targets.get(name)
        for unit, text in texts.items():
            if target is not None and target.mapping:  # 1 is male in one cohort, female in another
                code = target.mapping.get(category(text).lower())
                text = "" if code is None else TASKS[name].class_names[code]
            if text:
                found[subject_key(unit, number_)] = text
    if asked and not found:
        folders = ", ".join(str(Path(store.image_path) / "metadata") for store in data.stores)
        raise UserInputError(
            f"{FLAG}: '{name}' is not known of the validation subjects; {TR} and {DATASET} are in "
            f"the store, and others need a column in a table of subjects in {folders}"
            f"{': ' + problems[0] if problems else '. ' + _there(data)}"
        )
    for problem in problems if not asked else ():
        logger.info("%s is not watched: %s", name, problem)
    return found


def _there(data: RunData) -> str:
    tables = [
        table.summary
        for store in data.stores
        for table in tables_of(Path(store.image_path) / "metadata")
    ]
    return f"Found: {'; '.join(tables) or 'no table'}."


def _column(store: Store, name: str) -> str | None:
    """The column of a fact in the tables of a store, as it is written there; None without one."""
    there = {
        column.lower(): column
        for table in reversed(tables_of(Path(store.image_path) / "metadata"))
        for column in table.columns
    }
    wanted = (*DATASETS[store.dataset].columns_of(name), *_COLUMNS.get(name, ()))
    return next((there[one.lower()] for one in wanted if one.lower() in there), None)


def _fact(name: str, values: Values, named: bool) -> Fact:
    """Classes or numbers from text; a class of a single subject is left out."""
    numbers = {key: number(text) for key, text in values.items()}
    numeric = [value for value in numbers.values() if value is not None]
    task = TASKS.get(name)
    if task is not None:
        quantity = task.type == "regression"
    elif name in (MOTION, TR, DATASET, SITE):
        quantity = name == MOTION
    else:
        quantity = len(numeric) == len(values) and len(set(numeric)) > _MOST_NUMBERS
    if quantity:
        kept = {key: value for key, value in numbers.items() if value is not None}
        return Fact(kept, named=named)
    texts = {key: category(text) for key, text in values.items()}
    counts = Counter(texts.values())
    order = sorted(one for one, count in counts.items() if count > 1)
    classes = {key: float(order.index(text)) for key, text in texts.items() if text in order}
    return Fact(classes, classes=max(1, len(order)), named=named)
