"""What a table of real subjects consists of; ``tables`` lists the tables and makes them.

A table is a ``RealTable`` in a module of its own: the commands that it runs, and a function that
collects their results in groups of rows. Making, continuing, writing and drawing are the same for
all (``tables``, ``writing``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from neuromamba.evaluation.intervals import Interval

REAL_TABLES = (
    "abide",
    "painted",
    "sherlock",
    "stages",
)  # names; ``tables.real_tables`` has the tables


class Request(NamedTuple):
    """What a user asks for.

    Attributes:
        data: folder of the table's files.
        out: receives the runs.
        seeds: of splits and fits.
        extra: flags for every training, such as ``--device 0``.
    """

    data: Path
    out: Path
    seeds: tuple[int, ...]
    extra: tuple[str, ...] = ()


class Step(NamedTuple):
    """A command, which continues an interrupted run if it is given again.

    Attributes:
        name: of the step; no other of the table has it.
        command: words after ``neuromamba``.
        makes: a file or folder that is there once it has finished.
        training: whether the flags after ``--`` are given to it.
        module: that takes the words of ``command``, where it is no command of ``neuromamba``.
    """

    name: str
    command: tuple[str, ...]
    makes: Path
    training: bool = True
    module: str = ""


class Row(NamedTuple):
    """A model's results.

    Attributes:
        model: its name.
        values: metric -> value with its interval, in the order of the columns.
        less: the first row's main metric less this one's, on the same splits or subjects; None of
            the first row, and where they have none in common.
        seconds: of a fit, the median; None where it was not measured.
        note: what a reader must know of it.
    """

    model: str
    values: Mapping[str, Interval]
    less: Interval | None = None
    seconds: float | None = None
    note: str = ""


class Pair(NamedTuple):
    """A row beside another than the first one, on the splits that both have.

    Attributes:
        model, other: names of the rows.
        difference: of the group's main metric, the model's less the other's.
        splits: number of them.
    """

    model: str
    other: str
    difference: Interval
    splits: int

    @property
    def name(self) -> str:
        """Both models, as tables name the difference."""
        return f"{self.model} less {self.other}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are compared: one target, one protocol, the same splits.

    Attributes:
        name: key in the JSON and CSV files.
        title: what is predicted of whom, and how it is tested.
        main: metric that the rows are compared by, and the figure shows.
        rows: the first is the model that the others are compared with.
        subjects: that are tested in one split or more.
        splits: number of them.
        split_hash: of the names of the subjects tested in each split (``hash_of``).
        intervals: what the intervals cover, a sentence.
        chance: value of ``main`` without any information; None if there is none.
        unit: of the target's values.
        notes: sentences below the table.
        pairs: of rows that are compared with each other as well.
    """

    name: str
    title: str
    main: str
    rows: tuple[Row, ...]
    subjects: int
    splits: int
    split_hash: str
    intervals: str
    chance: float | None = None
    unit: str = ""
    notes: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RealTable:
    """A table of real subjects.

    Attributes:
        name: of ``--table``.
        title: heading.
        folder: of its files below ``../shared/data``, where they are looked for.
        source: what the files are and who published them, a sentence.
        document: where it is described, such as ``docs/results.md``.
        seeds: unless ``--seeds`` says otherwise.
        one_seed: it takes one seed only.
        present: whether a folder holds the files.
        steps: the commands, in order.
        collect: the groups of what has finished; none where nothing has.
    """

    name: str
    title: str
    folder: str
    source: str
    document: str
    seeds: tuple[int, ...]
    one_seed: bool = False
    present: Callable[[Path], bool]
    steps: Callable[[Request], Sequence[Step]]
    collect: Callable[[Request], Sequence[Group]]


def hash_of(tested: Any) -> str:
    """12 hexadecimal digits of plain containers: whether two tables have the same splits."""
    text = json.dumps(tested, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
