"""Columns of confounds as regressors, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import category, number

_FEWEST = 10  # subjects; with fewer a line through them says nothing
_MOST = 1 / 3  # regressors for a test subject; more explain anything
_MOSTLY = 0.5  # a column is meant as numbers if more of its cells are


def regressors(columns: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Confound -> its regressors [S, k]: numbers, or an indicator of each category but one.

    Numbers are divided by the largest, so that squares of them stay finite.

    Args:
        columns: confound -> text of each subject.

    Raises:
        UserInputError: a column has the same value everywhere, or is of numbers but for some cells.
    """
    found = {}
    for name, texts in columns.items():
        numbers = [number(text) for text in texts]
        odd = [text for text, value in zip(texts, numbers, strict=True) if value is None]
        if odd and len(odd) < (1 - _MOSTLY) * len(texts):
            raise UserInputError(
                f"--confounds: '{name}' is a number for {len(texts) - len(odd)} subjects, but "
                f"'{odd[0]}' for one of the other {len(odd)}. Correct the table; a missing value "
                f"is an empty cell or n/a."
            )
        if not odd:
            values = np.array(numbers, dtype=float)[:, None]
            largest = np.abs(values).max()
            values = values / largest if largest > 0 else values
        else:
            kinds = [category(text).lower() for text in texts]
            values = np.array([[kind == one for one in sorted(set(kinds))[1:]] for kind in kinds])
        if not values.size or (values == values[0]).all():
            raise UserInputError(
                f"--confounds: '{name}' has the same value for all subjects; leave it out."
            )
        found[name] = values.astype(float)
    return found


def check_confounds(
    columns: Mapping[str, Mapping[str, str]], parts: Mapping[str, Sequence[str]]
) -> None:
    """Refuse, before a training, columns that say nothing after it.

    Args:
        columns: confound -> subject -> text; a subject without a value is absent.
        parts: "training and validation" and "test" -> subjects.

    Raises:
        UserInputError: too few subjects have values of all columns, a column is constant in a part,
            is of numbers but for some cells, or has too many categories.
    """
    complete = set.intersection(*(set(values) for values in columns.values()))
    known = {what: [name for name in names if name in complete] for what, names in parts.items()}
    for what, names in known.items():
        if len(names) < _FEWEST:
            raise UserInputError(
                f"--confounds: {len(names)} {what} subjects have values of {', '.join(columns)}, "
                f"expected {_FEWEST} or more. Complete the table, or leave out the column that "
                f"lacks them."
            )
        regressors({c: [values[name] for name in names] for c, values in columns.items()})
    everybody = [name for names in known.values() for name in names]
    table = regressors({c: [v[name] for name in everybody] for c, v in columns.items()})
    count, tested = sum(x.shape[1] for x in table.values()), len(known["test"])
    if count > _MOST * tested:
        most = max(table, key=lambda name: table[name].shape[1])
        raise UserInputError(
            f"--confounds: {count} regressors for {tested} test subjects would explain any score; "
            f"'{most}' has {table[most].shape[1]} of them. Leave it out, or merge categories in "
            f"the table."
        )
