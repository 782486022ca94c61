"""Labels that are probably none: codes for "not recorded", and classes that are spelled twice.

Tables write a missing value as -9999, 999 or 9, which trains without a word. Whether such a number
is a code cannot be known from it alone; it is taken for one if it lies far outside all others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from neuromamba.common.errors import UserInputError, see
from neuromamba.common.text import names_for_message, number, some_of

# -9999, -999, -99, -9, 9, 99, 999, 9999 and the like, and those of REDCap and HCP.
CODES = frozenset(sign * int(digit * n) for sign in (-1, 1) for digit in "789" for n in range(1, 7))
_APART = 0.5  # of the others' range: how far outside it a code lies
_FAR = 20.0  # interquartile ranges from the median
_FEWEST = 4  # other values, to have a range


def probable_codes(values: Iterable[float]) -> list[float]:
    """Those of the values that are codes for "not recorded", by their place beside the others."""
    distinct = sorted(set(values))
    found: list[float] = []
    usual = [one for one in distinct if one not in CODES]
    for value in distinct:
        others = [one for one in usual if one != value] if value in CODES else []
        if len(others) < 2:
            continue
        low, high = min(others), max(others)
        margin = _APART * max(high - low, 1e-12)
        if value < low - margin or value > high + margin:
            found.append(value)
    return found


def check_values(values: Mapping[str, float], column: str, where: str) -> str:
    """Refuse values of a regression that are probably codes.

    Args:
        values: name of a subject -> value.
        column: of the table; where: the table, for messages.

    Returns:
        A warning about other values that lie absurdly far out; "" if there are none.

    Raises:
        UserInputError: lists the codes and how many subjects have them.
    """
    codes = probable_codes(values.values())
    if codes:
        counted = [f"{_short(c)} ({sum(v == c for v in values.values())} times)" for c in codes]
        kept = [value for value in values.values() if value not in codes]
        raise UserInputError(
            f"{where}: the column '{column}' holds {some_of(counted)}, and otherwise "
            f"{_short(min(kept))} to {_short(max(kept))}: probably codes for a missing value. "
            f"Leave those subjects out with --missing_codes {' '.join(map(_short, codes))}, or "
            f"empty the cells. {see('missing-codes')}"
        )
    array = np.array(list(values.values()), dtype=float)
    if len(array) < 2 * _FEWEST:
        return ""
    low, median, high = np.percentile(array, (25, 50, 75))
    far = {n: v for n, v in values.items() if abs(v - median) > _FAR * max(high - low, 1e-12)}
    if not far or high == low:
        return ""
    return (
        f"the column '{column}' of {where} holds values absurdly far from the others (median "
        f"{_short(median)}): {some_of(f'{name} {_short(value)}' for name, value in far.items())}; "
        f"check them."
    )


def check_classes(classes: Collection[str], column: str, where: str, remedy: str) -> None:
    """Refuse classes that differ only by case, or that are probably codes.

    Args:
        classes: as the table spells them, each once.
        column: of the table; where: the flag or file, for messages.
        remedy: how a code is declared as one, a sentence.

    Raises:
        UserInputError: lists them.
    """
    spellings: dict[str, list[str]] = {}
    for name in sorted(classes):
        spellings.setdefault(name.casefold(), []).append(name)
    twice = [" and ".join(names) for names in spellings.values() if len(names) > 1]
    if twice:
        raise UserInputError(
            f"{where}: classes of '{column}' differ only by case: {names_for_message(twice)}. "
            f"Write each class in one way. {see('classes-by-case')}"
        )
    numbers = {value: name for name in classes if (value := number(name)) is not None}
    codes = probable_codes(numbers) if len(numbers) == len(classes) else []
    # Among words, only a number of several nines is surely a code.
    codes += [v for v in numbers if len(numbers) < len(classes) and v in CODES and abs(v) >= 9]
    if codes:
        raise UserInputError(
            f"{where}: the classes of '{column}' are {some_of(sorted(classes))}; "
            f"{some_of(numbers[code] for code in codes)} is probably a code for a missing value. "
            f"{remedy}"
        )


def _short(value: float) -> str:
    return f"{value:.6g}"
