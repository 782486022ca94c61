"""Containers that came out of a file: not nested without end, no numbers beyond all bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEEPEST = 32  # containers in containers
MOST_BITS = 64  # of a whole number
MOST_CONTAINERS = 200_000  # each counted as often as it is met


def check_plain(root: Any, most: int = MOST_CONTAINERS) -> None:
    """Refuse what a program that prints or counts it would not finish with.

    A few bytes can stand for a list of lists ... that is endless when it is written out: by
    references to what was there before (YAML, pickles), or by depth.

    Args:
        root: the object.
        most: containers that may be met.

    Raises:
        ValueError: deep or circular nesting, containers that repeat, numbers or texts that cannot
            be written.
    """
    waiting = [(root, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, int):
            if value.bit_length() > MOST_BITS:
                raise ValueError(f"a number of {value.bit_length()} bits")
            continue
        if isinstance(value, str):
            value.encode("utf-8")  # UnicodeEncodeError: half a character
            continue
        if isinstance(value, Mapping):
            parts: list[Any] = [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            parts = list(value)
        elif getattr(getattr(value, "dtype", None), "hasobject", False):
            parts = value.ravel().tolist()  # an array of objects
        else:
            continue
        most -= 1
        if depth >= DEEPEST or most < 0:
            raise ValueError(f"it is nested more than {DEEPEST} deep, or repeats without end")
        waiting += [(part, depth + 1) for part in parts]
