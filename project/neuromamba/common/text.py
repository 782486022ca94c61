"""Reading and writing short texts: numbers, categories, lists of names."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Texts of cells, in small letters, that say that there is no value.
ABSENT = frozenset({"", "na", "n/a", "#n/a", "nan", "none", "null", "-", "--", "."})
# Control characters (C0, C1), and characters that show nothing but change what is shown around
# them: directions of writing, joiners, line separators, tags, halves of characters.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def is_invisible(character: str) -> bool:
    """Whether a character is one that ``visible`` shows by its code."""
    return bool(_INVISIBLE.fullmatch(character))


def visible(text: str, keep: str = "") -> str:
    """Return a text from data with its invisible characters shown by their codes (``\\u202e``).

    A name with a mark that turns the direction of writing, an escape sequence of terminals or a
    line break could otherwise show something that is not there.

    Args:
        text: to show.
        keep: characters to leave, such as a line break of our own text.
    """

    def code(found: re.Match[str]) -> str:
        if found[0] in keep:
            return found[0]
        number = ord(found[0])
        return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"

    return _INVISIBLE.sub(code, text)


def sentence(text: str) -> str:
    """Return a note as a sentence: with a full stop, unless it has one at its end already."""
    return text if text.endswith(".") else f"{text}."


def clause(text: str) -> str:
    """Return a note for the middle of a sentence: without a full stop at its end."""
    return text.removesuffix(".")


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


def spelling(value: object) -> str:
    """Return the text of a cell, where 1.0 is 1; "" if it is missing."""
    found = "" if value is None else category(str(value).strip())
    return "" if found.lower() in ABSENT else found


def some_of(names: Iterable[object], most: int = 10, hint: str = "") -> str:
    """List the first names, in their order, and say how many more there are: "a, b and 3 more".

    Args:
        names: anything that can be printed.
        most: how many to list.
        hint: where the others can be found; added in parentheses if there are others.
    """
    found = [visible(str(name)) for name in names]
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
