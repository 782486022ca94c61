"""Reading and writing short texts: numbers, categories, lists of names."""

from __future__ import annotations

from collections.abc import Iterable


def number(text: str) -> float | None:
    """Parse a finite number; None if the text is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None  # NaN compares false


def category(text: str) -> str:
    """Normalise the name of a class; a spreadsheet may have turned 1 into 1.0."""
    head, _, zeros = text.partition(".")
    return head if head.lstrip("-").isdecimal() and zeros and not zeros.strip("0") else text


def some_of(names: Iterable[object], most: int = 10, hint: str = "") -> str:
    """List the first names, in their order, and say how many more there are: "a, b and 3 more".

    Args:
        names: anything that can be printed.
        most: how many to list.
        hint: where the others can be found; added in parentheses if there are others.
    """
    found = list(map(str, names))
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more + (f" ({hint})" if more and hint else "")


def names_for_message(names: Iterable[str]) -> str:
    """List the first ten names, sorted, and say how many more there are."""
    return some_of(sorted(names))


def plain_subject(name: str) -> str:
    """Return the form in which names of people are compared: 50002 for sub-0050002 and 50002.0.

    Spreadsheets write whole numbers as 50002.0 or 5.00020E+04, and drop leading zeros; BIDS puts
    "sub-" in front.
    """
    plain = name.strip()
    plain = plain[4:] if plain[:4].lower() == "sub-" else plain
    if not plain.isdecimal() and plain[:1].isdecimal():
        value = number(plain)
        if value is not None and value == int(value) and ("e" in plain.lower() or "." in plain):
            plain = str(int(value))
    return (plain.lstrip("0") or "0") if plain.isdecimal() else plain
