"""Reading and writing short texts: numbers, categories, lists of names."""

from __future__ import annotations


def number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None  # NaN compares false


def category(text: str) -> str:
    """A class as text; a spreadsheet may have turned 1 into 1.0."""
    head, _, zeros = text.partition(".")
    return head if head.lstrip("-").isdecimal() and zeros and not zeros.strip("0") else text
