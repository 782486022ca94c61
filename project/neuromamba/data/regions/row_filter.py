"""Conditions on columns that scans must meet: ``--keep qc871=1 'motion<0.2'``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import category, number, some_of, spelling

FLAG = "--keep"
_SIGNS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"(?P<column>[^<>=!]+)(?P<sign><=|>=|!=|=|<|>)(?P<value>.+)")


class Condition(NamedTuple):
    """A condition.

    Attributes:
        column: name.
        sign: of ``_SIGNS``.
        value: as it was given.
    """

    column: str
    sign: str
    value: str

    def __str__(self) -> str:
        return f"{self.column}{self.sign}{self.value}"

    def met_by(self, cell: Any) -> bool:
        """Whether a cell meets it; one without a value, or with text for a number, does not."""
        text, wanted = spelling(cell), number(self.value)
        found = number(text)
        if not text:
            return False
        if wanted is not None and found is not None:
            return _SIGNS[self.sign](found, wanted)
        if self.sign in ("=", "!="):
            return _SIGNS[self.sign](category(text).lower(), category(self.value).lower())
        return False


def conditions(texts: Sequence[str]) -> list[Condition]:
    """Read conditions.

    Raises:
        UserInputError: one is none; names the flag.
    """
    found = []
    for text in texts:
        parts = _FORM.fullmatch(text)
        if parts is None:
            raise UserInputError(
                f"{FLAG}: got '{text}', expected COLUMN=VALUE, or one of != < <= > >= in place of "
                f"=, such as qc=1 or 'motion<0.2' (in quotes, because of the shell)."
            )
        one = Condition(*(part.strip() for part in parts.groups()))
        if one.sign not in ("=", "!=") and number(one.value) is None:
            raise UserInputError(f"{FLAG} {text}: '{one.value}' is no number to compare with.")
        found.append(one)
    return found


def kept_rows(
    rows: Sequence[Mapping[str, Any]], wanted: Sequence[Condition], where: str
) -> tuple[list[int], list[str]]:
    """Places of the rows that meet all conditions, and a note on each condition.

    Args:
        rows: of each scan, what its pheno and its subject's row of the table say.
        wanted: of ``conditions``.
        where: the flag and file, for messages.

    Raises:
        UserInputError: no row has such a column, or none meets the conditions.
    """
    kept, notes = list(range(len(rows))), []
    for one in wanted:
        if not any(one.column in row for row in rows):
            names = dict.fromkeys(str(name) for row in rows for name in row)
            raise UserInputError(
                f"{FLAG} {one}: there is no column '{one.column}' ({some_of(names, 12)})."
            )
        left = [place for place in kept if one.met_by(rows[place].get(one.column))]
        empty = sum(not spelling(rows[place].get(one.column)) for place in kept)
        without = f", {empty} of them without a value" if empty else ""
        lost = len(kept) - len(left)
        notes.append(f"{FLAG} {one}: {lost} of {len(kept)} scans left out{without}.")
        kept = left
    if not kept:
        shown = " ".join(map(str, wanted))
        raise UserInputError(f"{FLAG} {shown}: no scan of {where} meets this.")
    return kept, notes
