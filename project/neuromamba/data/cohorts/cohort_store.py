"""A store of runs with its cohort, its split and its targets.

A split unit is what is split and scored as one: a subject, or with ``--group_by`` a session or a
run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuromamba.data.cohorts.events import LabelledEvent
from neuromamba.data.cohorts.splits import Grouping, Split
from neuromamba.data.store.reader import RunHeader


@dataclass(frozen=True)
class Store:
    """A folder of runs, its split and its targets.

    Attributes:
        dataset: name of the cohort.
        image_path: the folder.
        paths, headers: runs, in the order of the file names.
        grouping: split unit, families and strata of the split.
        split: units of the three parts, those left out removed.
        labels: split unit -> target, if each has one.
        events: label of a run -> its events, if windows have targets of their own.
    """

    dataset: str
    image_path: Path
    paths: tuple[Path, ...]
    headers: tuple[RunHeader, ...]
    grouping: Grouping
    split: Split
    labels: Mapping[str, int | float] | None = None
    events: Mapping[str, tuple[LabelledEvent, ...]] | None = None

    def split_unit_of(self, header: RunHeader) -> str:
        """Name the split unit that a run belongs to."""
        return split_unit_name(header, self.grouping.split_unit)

    def runs_of(self, names: Sequence[str]) -> tuple[list[Path], list[RunHeader]]:
        """Return the runs of these split units, in the order of the file names."""
        wanted = set(names)
        chosen = [
            (p, h)
            for p, h in zip(self.paths, self.headers, strict=True)
            if self.split_unit_of(h) in wanted
        ]
        return [p for p, _ in chosen], [h for _, h in chosen]


def split_unit_name(header: RunHeader, split_unit: str) -> str:
    """``sub-01``, ``sub-01_ses-1`` or the run's own name."""
    if split_unit == "run":
        return header.label
    if split_unit == "session" and header.session:
        return f"{header.subject}_ses-{header.session}"
    return header.subject
