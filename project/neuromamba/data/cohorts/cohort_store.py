"""A store of runs with its cohort, its split and its targets.

A unit is what is split and scored as one: a subject, or with ``--group_by`` a session or a run.
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
        grouping: unit, families and strata of the split.
        split: units of the three parts, those left out removed.
        labels: unit -> target, if there is one a unit.
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

    def unit(self, header: RunHeader) -> str:
        """Name of the unit that a run belongs to."""
        return unit_name(header, self.grouping.unit)

    def runs_of(self, units: Sequence[str]) -> tuple[list[Path], list[RunHeader]]:
        """Runs of these units, in the order of the file names."""
        wanted = set(units)
        chosen = [
            (p, h) for p, h in zip(self.paths, self.headers, strict=True) if self.unit(h) in wanted
        ]
        return [p for p, _ in chosen], [h for _, h in chosen]


def unit_name(header: RunHeader, unit: str) -> str:
    """``sub-01``, ``sub-01_ses-1`` or the run's own name."""
    if unit == "run":
        return header.label
    if unit == "session" and header.session:
        return f"{header.subject}_ses-{header.session}"
    return header.subject
