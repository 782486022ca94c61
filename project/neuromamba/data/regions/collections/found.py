"""What a collection of region series holds, before anything of it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuromamba.data.ingest.sources import PassedOver
from neuromamba.data.regions.series_files import SeriesFile


@dataclass(frozen=True, kw_only=True)
class FoundScan:
    """A scan of a collection.

    Attributes:
        name: of the scan; no other scan of the collection has it.
        subject: as file or folder name it.
        session, run: "" if nothing says.
        source: the file, relative to the collection.
        path: of the file.
        read: its series [frames, regions] and the regions' names.
        columns: what the collection itself says of the scan: column -> value.
        version: letters of the preprocessing, where versions of a scan are named by them.
    """

    name: str
    subject: str
    session: str = ""
    run: str = ""
    source: str
    path: Path
    read: Callable[[], SeriesFile]
    columns: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A collection.

    Attributes:
        format: key of ``FORMATS``.
        root: folder that names are relative to.
        atlas: name; "" if nothing says.
        scans: all of them, by name.
        passed_over: other files, and why.
        tables: of labels, that lie beside the scans.
        in_order: whether the rows of the table are the scans, which have no names of their own.
        fixed_axes: whether the format itself says which axis is time.
        notes: what a user should know, a sentence each.
    """

    format: str
    root: Path
    atlas: str
    scans: tuple[FoundScan, ...]
    passed_over: tuple[PassedOver, ...] = ()
    tables: tuple[Path, ...] = ()
    in_order: bool = False
    fixed_axes: bool = False
    notes: tuple[str, ...] = ()
