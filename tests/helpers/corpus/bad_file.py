"""A bad file of the corpus: what it is, how it is written and read, and what is to be said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BadFile:
    """A bad file.

    Attributes:
        name: what it is, in words.
        read: writes it into an empty folder and reads it.
        found: part of the message that says what is wrong.
    """

    name: str
    read: Callable[[Path], object]
    found: str


def written(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    """Write a file into the folder; returns its path."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class Call:
    """An object whose pickle makes the folder "evil" when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        import os

        return os.mkdir, ("evil",)
