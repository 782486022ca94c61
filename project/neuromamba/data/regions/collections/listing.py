"""The files of a folder that may hold series of regions, and the tables of labels among them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from neuromamba.common.errors import UserInputError
from neuromamba.common.files import without_leftovers
from neuromamba.common.text import some_of
from neuromamba.data.ingest.sources import SUFFIXES, walk_files
from neuromamba.data.regions.scan_tables import SUFFIXES as TABLES
from neuromamba.data.regions.series_files import READERS

FLAG = "SOURCE"
CONCATENATED = ".npz"
# Names of tables that describe subjects: PCP, ADHD-200, BIDS, and what people call their own.
_LABELS = re.compile(r"phenotyp|participants|(^|_)(pheno|demographics?|labels|subjects)(_|\.|$)")
_UPWARDS = 3  # folders above the scans in which the Preprocessed Connectomes have their table
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Listing:
    """A folder's files, relative to it and sorted.

    Attributes:
        root: the folder.
        series: files that a reader of series knows by their suffix, tables of labels left out.
        concatenated: ``.npz`` files.
        tables: of labels.
        images: number of NIfTI files.
        unreadable: folders that cannot be listed, and why.
    """

    root: Path
    series: tuple[PurePosixPath, ...]
    concatenated: tuple[PurePosixPath, ...]
    tables: tuple[PurePosixPath, ...]
    images: int
    unreadable: tuple[tuple[str, str], ...]


def is_label_table(name: str) -> bool:
    """Whether a file name is that of a table of subjects."""
    return name.lower().endswith(TABLES) and bool(_LABELS.search(name.lower()))


def list_folder(root: Path, exclude: Sequence[Path]) -> Listing:
    """List a folder and all below it.

    Args:
        root: the folder.
        exclude: files that are no scans: those of ``--labels``, the output.
    """
    wanted = (*READERS, CONCATENATED, *SUFFIXES)
    unreadable: list[tuple[str, str]] = []
    names = sorted(walk_files(root, unreadable, lambda name: name.lower().endswith(wanted)))
    given = {path.resolve() for path in exclude}
    series, tables, concatenated, images = [], [], [], 0
    for name in names:
        if (root / name).resolve() in given:
            continue
        if name.name.lower().endswith(SUFFIXES):
            images += 1
        elif name.suffix.lower() == CONCATENATED:
            concatenated.append(name)
        elif is_label_table(name.name):
            tables.append(name)
        else:
            series.append(name)
    return Listing(
        root, tuple(series), tuple(concatenated), tuple(tables), images, tuple(unreadable)
    )


def tables_near(listing: Listing) -> tuple[Path, ...]:
    """Tables of labels below the folder, else in the nearest folder above that has one."""
    if listing.tables:
        return tuple(listing.root / name for name in listing.tables)
    place = listing.root.resolve()
    for _ in range(_UPWARDS):
        place = place.parent
        try:
            there = [path for path in place.iterdir() if path.is_file()]
        except OSError:
            break
        if found := [path for path in without_leftovers(there) if is_label_table(path.name)]:
            return tuple(found)
    return ()


def tokens(name: str) -> set[str]:
    """Parts of a file's name, in lower case; ``atlas-cc200`` is ``cc200`` as well."""
    parts = re.split(r"[_.]", name.lower())
    return {*parts, *(part.partition("-")[2] for part in parts)} - {""}


def of_one_atlas(
    found: Mapping[str, Sequence[_Item]], wanted: str | None, root: Path
) -> tuple[str, Sequence[_Item]]:
    """Choose the files of one atlas.

    Args:
        found: atlas -> files.
        wanted: ``--atlas``, or None.
        root: for messages.

    Raises:
        UserInputError: there are several, or not the one that is wanted.
    """
    lower = {name.lower(): name for name in found}
    if wanted is not None and wanted.lower() in lower:
        name = lower[wanted.lower()]
        return name, found[name]
    counts = some_of(
        f"{name or 'none named'} ({len(files)} files)" for name, files in found.items()
    )
    if wanted is not None:
        raise UserInputError(f"--atlas: got '{wanted}'; '{root}' has series of {counts}.")
    if len(found) > 1:
        raise UserInputError(
            f"--atlas: '{root}' has series of several atlases: {counts}. Name one of them."
        )
    name = next(iter(found))
    return name, found[name]


def refuse_repeated(keys: Iterable[tuple[str, PurePosixPath]], root: Path) -> None:
    """Refuse scans that are there in several folders: pipelines or strategies.

    Args:
        keys: scan and file.
        root: for messages.

    Raises:
        UserInputError: a scan is there twice; names the folders and the remedy.
    """
    listed = list(keys)
    counts = Counter(scan for scan, _ in listed)
    twice = [scan for scan, count in counts.items() if count > 1]
    if twice:
        folders = sorted({str(path.parent) for scan, path in listed if counts[scan] > 1})
        raise UserInputError(
            f"{FLAG}: '{root}' has {len(twice)} scans in several folders ({some_of(folders, 6)}), "
            f"such as {twice[0]}: versions of one scan must not be counted as several. Give one of "
            f"these folders in place of '{root}'."
        )
