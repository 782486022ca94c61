"""One self-contained HTML page from run folders: no network, pictures embedded.

``Page`` and its parts know nothing about models; the ``*_card`` functions make tables from a run
folder. The text and pictures of a particular report are put together by its entry point.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from neuromamba.pages.templates import template

# Words of a command; quotes hold a word together.
_FEW = 5  # columns: with more, the names beside the cells take less room than above them
_LONG = 40  # characters of a cell, which a narrow screen breaks into many lines
_WORDS = re.compile(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""")


class Link(NamedTuple):
    """A cell that leads to a picture of the page, by its anchor."""

    text: str
    anchor: str

    def __str__(self) -> str:
        return self.text


class FileLink(NamedTuple):
    """A cell that leads to a file beside the page, by its name."""

    text: str
    href: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        rows: cells, row by row.
        sortable: whether a click on a column's head sorts by it.
        header: names of the columns; empty for a list of properties.
        title, note: above and below it.
        numbers: columns to align right.
        strong: number of the row to emphasise, or -1.
    """

    rows: Sequence[Sequence[str | Link | FileLink]]
    header: Sequence[str] = ()
    title: str = ""
    note: str = ""
    numbers: Sequence[int] = ()
    strong: int = -1
    sortable: bool = False

    @property
    def may_scroll(self) -> bool:
        """Whether it can need scrolling, for which a keyboard must reach it."""
        return self.sortable or len(self.header) > _FEW

    @property
    def on_phones(self) -> str:
        """How rows become lists on a narrow screen: "many" cells, long "texts"; "" if they fit."""
        columns = len(self.header)
        long = any(len(str(cell)) > _LONG for row in self.rows for cell in row)
        if long and 3 <= columns <= _FEW:
            return "texts"
        return "many" if columns > 3 else ""


@dataclass(frozen=True)
class Picture:
    """A PNG or GIF file with its caption.

    Attributes:
        path: of the file.
        caption: below it.
        alt: says in words what it shows.
        wide: whether it takes the whole width of the page.
        anchor: where links lead to.
        narrow: the same in an arrangement for phones, where the first would be too small to read.
    """

    path: Path
    caption: str
    alt: str
    wide: bool = False
    anchor: str = ""
    narrow: Path | None = None


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order.

    ``side_by_side``: tables beside tables and pictures beside pictures, if there is room.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    code: str = ""
    side_by_side: bool = False


@dataclass(frozen=True)
class Page:
    """A report; ``notice`` is a sentence that must not be overlooked."""

    title: str
    summary: Sequence[str]
    sections: Sequence[Section]
    notice: str = ""

    @property
    def sortable(self) -> bool:
        """True if a table can be sorted, which takes a script."""
        return any(table.sortable for section in self.sections for table in section.tables)


def wrap_command(command: str, width: int = 88) -> str:
    """A command on several lines that a shell takes as one.

    It is broken before flags where that is enough, else between any two words, but not in quotes.
    """
    lines = [""]
    for part in command.replace(" --", "\n--").replace(" && ", "\n&& ").split("\n"):
        words = _WORDS.findall(part)
        if len(part) <= width or " ".join(words) != part:  # short, or cut within quotes
            words = [part]
        for word in words:
            if lines[-1] and len(lines[-1]) + len(word) > width:
                lines.append("   ")
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return " \\\n".join(lines)


def render(page: Page) -> str:
    """The page as HTML; every text is escaped."""
    return template("report.html.j2").render(page=page)


# ------------------------------------------------------------------------------ tables
