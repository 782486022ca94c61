"""Labels of windows: event files in the form of BIDS, and the windows that lie within events.

A file has the columns ``onset`` and ``duration`` (seconds from the first frame of the run as it
was scanned) and one with the label. Further columns (``subject``, ``session``, ``task``, ``run``),
where present, say which runs a line belongs to; so does the name of a file that is called as in
BIDS (``sub-01_task-x_acq-A_run-1_events.tsv``). A folder is searched for ``*_events.tsv``.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from neuromamba.common.errors import UserInputError, see
from neuromamba.common.files import without_leftovers
from neuromamba.common.text import ABSENT, category, names_for_message, number, some_of
from neuromamba.config.data import DataConfig
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.labels import own_task
from neuromamba.data.cohorts.tables import Table, read_table
from neuromamba.data.store.header import RunHeader

logger = logging.getLogger(__name__)
LABEL_COLUMN = "trial_type"  # BIDS
# A run's name in the store -> columns of an event file, and entities of a file name, that say it.
_SELECTORS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "subject": (("subject", "participant_id", "sub"), "sub"),
    "session": (("session", "session_id", "ses"), "ses"),
    "task": (("task",), "task"),
    "run": (("run", "run_id"), "run"),
}
_FRAME_SLACK = 1e-6  # of a frame: onsets are decimal numbers


@dataclass(frozen=True)
class Event:
    """An event of a run: seconds from its first scanned frame, and its label as text or number."""

    onset: float
    duration: float
    label: str


@dataclass(frozen=True)
class _Line:
    """A line of an event file, and the runs it belongs to ("" matches any)."""

    names: Mapping[str, str]
    event: Event


def plain_name(name: str, text: str, key: Callable[[str], str]) -> str:
    """A subject's, session's or run's name in the form in which names are compared."""
    if name == "subject":
        return key(text)
    bare = re.sub(rf"^{_SELECTORS[name][1]}-", "", category(text.strip()))
    return (bare.lstrip("0") or "0") if bare.isdecimal() else bare


class EventFiles:
    """The events of ``--events``.

    Of a folder, the BIDS rule of inheritance decides: a file applies to the runs whose entities
    contain all of its own (``acq-``, ``dir-`` and the like included) and that lie below its folder;
    of several the nearest applies alone, and those above it are overridden. What is below
    ``sourcedata/`` counts only if there are no other files.

    Args:
        path: a file, or a folder that is searched for ``*_events.tsv``.
        column: of the labels; None for ``trial_type``.

    Raises:
        UserInputError: nothing there, a column missing, or a time that is not a number.
    """

    def __init__(self, path: str, column: str | None) -> None:
        self.path, self.column = Path(path), column or LABEL_COLUMN
        self.without_time = 0
        if self.path.is_dir():
            found = [*self.path.rglob("*_events.tsv"), *self.path.rglob("*_events.csv")]
            files = without_leftovers(found)
            original = [file for file in files if "sourcedata" not in self._folders(file)]
            files = original or files
            if not files:
                raise UserInputError(f"--events: no *_events.tsv in '{path}' or below.")
        elif self.path.is_file():
            files = [self.path]
        else:
            raise UserInputError(f"--events: no file or folder '{path}'.")
        self._files = [_File(file, self._depth(file), self._entities(file)) for file in files]
        self._lines = {file.path: self._read(read_table(file.path)) for file in self._files}

    def _folders(self, file: Path) -> tuple[str, ...]:
        return file.relative_to(self.path).parts[:-1]

    def _depth(self, file: Path) -> int:
        return len(self._folders(file)) if self.path.is_dir() else 0

    def _entities(self, file: Path) -> dict[str, str]:
        """Entities of a BIDS name, and subject and session of the folders that a file is in."""
        found: dict[str, str] = {}
        if self.path.is_dir():
            for folder in self._folders(file):
                found |= dict(re.findall(r"^(sub|ses)-(.+)$", folder))
        if file.stem.endswith("_events"):
            found |= dict(re.findall(r"(?:^|_)([A-Za-z]+)-([^_]+)", file.stem))
        return found

    @property
    def labels(self) -> list[str]:
        """Labels of all events, as text."""
        return [line.event.label for lines in self._lines.values() for line in lines]

    def _read(self, table: Table) -> list[_Line]:
        labels = table.column(self.column, "--target_column")
        onsets, durations = (table.column(name, "--events") for name in ("onset", "duration"))
        names = self._names_of(table)
        lines = []
        for i, label in enumerate(labels):
            if label.lower() in ABSENT:
                continue
            if onsets[i].lower() in ABSENT or durations[i].lower() in ABSENT:
                self.without_time += 1  # BIDS allows n/a
                continue
            onset, duration = number(onsets[i]), number(durations[i])
            if onset is None or duration is None or duration < 0:
                raise UserInputError(
                    f"{table.path}: the event '{label}' has onset '{onsets[i]}' and duration "
                    f"'{durations[i]}', expected seconds. Correct the line, or empty its "
                    f"'{self.column}' to leave the event out."
                )
            lines.append(_Line(names[i], Event(onset, duration, category(label))))
        return lines

    def _names_of(self, table: Table) -> list[dict[str, str]]:
        """The runs of each line, by the file's columns."""
        columns = {
            name: table.column(column, "--events")
            for name, (columns, _) in _SELECTORS.items()
            if (column := next((c for c in columns if c in table.columns), None))
        }
        return [{name: cells[i] for name, cells in columns.items()} for i in range(len(table.rows))]

    def of_run(self, header: RunHeader, key: Callable[[str], str]) -> list[Event]:
        """Events of a run, in the order of the file that applies to it.

        Args:
            header: of the run.
            key: the form of a subject's name to compare (``Cohort.key``).

        Raises:
            UserInputError: two files apply to the run alike.
        """
        own = {name: plain_name(name, getattr(header, name), key) for name in _SELECTORS}
        entities = _entities_of(header, own)
        file = self._applicable(header, entities, key)
        if file is None:
            return []
        # The file's name has been compared; columns of the same names say it again, or more.
        own["run"] = entities.get("run", own["run"])
        return [
            line.event
            for line in self._lines[file.path]
            if all(
                plain_name(name, text, key) in (own[name], plain_name(name, header.run, key))
                if name == "run"
                else plain_name(name, text, key) == own[name]
                for name, text in line.names.items()
                if text
            )
        ]

    def _applicable(
        self, header: RunHeader, entities: Mapping[str, str], key: Callable[[str], str]
    ) -> _File | None:
        """The file that applies to a run: the nearest of those whose entities the run has."""
        fitting = [
            file
            for file in self._files
            if all(
                _plain_entity(name, text, key) == entities.get(name)
                for name, text in file.entities.items()
            )
        ]
        if not fitting:
            return None
        best = max((file.depth, len(file.entities)) for file in fitting)
        nearest = [file for file in fitting if (file.depth, len(file.entities)) == best]
        if len(nearest) > 1:
            raise UserInputError(
                f"--events: {len(nearest)} files apply to the run '{header.label}' alike: "
                f"{some_of((file.path for file in nearest), 3)}. Name them as in BIDS, so that "
                f"their entities distinguish the runs, or put them into one file with the columns "
                f"subject, session, task and run."
            )
        return nearest[0]


class _File(NamedTuple):
    """A file of events: how deep below the folder, and the entities of its name and folders."""

    path: Path
    depth: int
    entities: Mapping[str, str]


def _plain_entity(name: str, text: str, key: Callable[[str], str]) -> str:
    """The value of an entity in the form in which it is compared."""
    fields = {entity: field for field, (_, entity) in _SELECTORS.items()}
    return plain_name(fields[name], text, key) if name in fields else text


def _entities_of(header: RunHeader, own: Mapping[str, str]) -> dict[str, str]:
    """Entities of a run, by its names in the store.

    The store's ``run`` holds the value of ``run-`` and all other entities: ``1-acq-mb4-dir-AP``.
    """
    found = {_SELECTORS[name][1]: value for name, value in own.items() if name != "run" and value}
    parts = header.run.split("-") if header.run else []
    if len(parts) % 2:
        found["run"] = plain_name("run", parts.pop(0), str)
    return found | dict(zip(parts[::2], parts[1::2], strict=True))


def event_task(path: str, column: str | None, task_type: str) -> tuple[str, ...]:
    """Classes of an event file's labels; see ``labels.own_task``."""
    files = EventFiles(path, column)
    return own_task(task_type, files.labels, files.column, "--events")


@dataclass(frozen=True)
class LabelledEvent:
    """An event with its target.

    Attributes:
        number: counts the run's events, from 0, those of other classes included.
        starts: first frames of its windows.
        target: class index, or value.
    """

    number: int
    starts: tuple[int, ...]
    target: int | float


def window_starts(event: Event, header: RunHeader, config: DataConfig, delay: float) -> list[int]:
    """First frames of the windows that lie within an event.

    Frame f of the store was taken at (f + dropped_frames) * TR. A window belongs to an event if its
    first frame is taken no earlier than the onset and its last one before the end, both moved by
    ``delay`` seconds (of the haemodynamic response).
    """
    first = (event.onset + delay) / header.tr - header.dropped_frames
    end = first + event.duration / header.tr
    start = max(0, math.ceil(first - _FRAME_SLACK))
    stop = min(header.n_frames, math.ceil(end - _FRAME_SLACK))
    return list(range(start, stop - config.window_span + 1, config.window_step))


def _overlap(events: list[LabelledEvent], span: int) -> bool:
    """Whether windows of different targets share a frame."""
    windows = sorted((start, event.target) for event in events for start in event.starts)
    latest: dict[int | float, int] = {}  # target -> last frame of its windows so far
    for start, target in windows:
        if any(last >= start for other, last in latest.items() if other != target):
            return True
        latest[target] = start + span - 1
    return False


def label_runs(
    headers: list[RunHeader], key: Callable[[str], str], config: DataConfig, task: DownstreamConfig
) -> dict[str, tuple[LabelledEvent, ...]]:
    """Events of each run that have a target and hold at least one window.

    Args:
        headers: of the runs.
        key: see ``EventFiles.of_run``.
        config: says how long a window is.
        task: names file and column, classes and delay.

    Returns:
        label of the run -> its events; runs without any are left out.

    Raises:
        UserInputError: no event fits any run, events too short for a window, or a run whose TR is
            not known.
    """
    assert task.events is not None
    files = EventFiles(task.events, task.target_column)
    numbers = {name: i for i, name in enumerate(task.target_classes)}
    found: dict[str, tuple[LabelledEvent, ...]] = {}
    without, too_short, matched = [], 0, 0
    contradictory = []
    for header in headers:
        events = files.of_run(header, key)
        matched += len(events)
        labelled = []
        for count, event in enumerate(events):
            if task.task_type == "regression":
                target: int | float | None = number(event.label)
            else:
                target = numbers.get(event.label)
            if target is None:
                continue  # a class that was not asked for
            if not math.isfinite(header.tr):
                raise UserInputError(
                    f"--events: the TR of the run '{header.label}' is not known, so its onsets "
                    f"have no frames. Convert it again with neuromamba preprocess --tr SECONDS."
                )
            starts = window_starts(event, header, config, task.event_delay)
            too_short += not starts
            if starts:
                labelled.append(LabelledEvent(count, tuple(starts), target))
        if labelled:
            found[header.label] = tuple(labelled)
            if _overlap(labelled, config.window_span):
                contradictory.append(header.label)
        else:
            without.append(header.label)
    if files.without_time:
        logger.warning(
            "warning: --events: %d event(s) without onset or duration (n/a) are left out.",
            files.without_time,
        )
    if not matched:
        raise UserInputError(
            f"--events: none of the {len(files.labels)} events in '{task.events}' belongs to a run "
            f"of the store ({names_for_message(header.label for header in headers)}). The columns "
            f"subject, session, task and run, or the names of the files, must agree with these. "
            f"{see('events')}"
        )
    if not found:
        raise UserInputError(
            f"--events: no event of the classes {', '.join(task.target_classes)} holds a window of "
            f"{config.window_span} frames ({too_short} are too short). Use a smaller "
            f"--sequence_length, or other --target_classes."
        )
    if contradictory:
        logger.warning(
            "warning: --events: in %d run(s) windows of different targets share frames, because "
            "events overlap: %s",
            len(contradictory),
            names_for_message(contradictory),
        )
    if too_short:
        logger.warning(
            "warning: --events: %d event(s) are shorter than a window of %d frames, or end after "
            "the run, and are left out.",
            too_short,
            config.window_span,
        )
    if without:
        logger.warning(
            "warning: --events: %d run(s) have no event with a window and are left out: %s",
            len(without),
            names_for_message(without),
        )
    return found
