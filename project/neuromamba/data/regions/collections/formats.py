"""The formats in which public collections of region series come; ``FORMATS`` lists them.

To add one, write a function that tells whether a folder has it and one that finds its scans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.similar_paths import did_you_mean
from neuromamba.common.text import some_of
from neuromamba.config.names import COLLECTION_FORMATS
from neuromamba.data.ingest.sources import PassedOver
from neuromamba.data.regions.collections.file_formats import (
    find_concatenated,
    find_files,
    find_list,
    has_files,
    npz_of,
)
from neuromamba.data.regions.collections.found import Collection
from neuromamba.data.regions.collections.listing import (
    CONCATENATED,
    FLAG,
    Listing,
    list_folder,
)
from neuromamba.data.regions.collections.named_formats import (
    find_athena,
    find_pcp,
    has_athena,
    has_pcp,
)
from neuromamba.data.regions.series_files import READERS

_LISTS = (".pickle", ".npy", ".csv", ".tsv")


@dataclass(frozen=True)
class Format:
    """A format of folders.

    Attributes:
        description: one line for messages.
        recognise: whether a folder has it.
        find: its scans; the second argument is ``--atlas``.
    """

    description: str
    recognise: Callable[[Listing], bool]
    find: Callable[[Listing, str | None], Collection]


def _find_npz(listing: Listing, atlas: str | None) -> Collection:
    path, array = npz_of(listing, atlas)
    return find_concatenated(path, array)


# The first that fits is taken.
FORMATS: Mapping[str, Format] = {
    "pcp": Format("Preprocessed Connectomes Project: <FILE_ID>_rois_<atlas>.1D", has_pcp, find_pcp),
    "athena": Format("ADHD-200 (Athena): *_<atlas>_TCs.1D", has_athena, find_athena),
    "npz": Format(
        "one .npz file: all scans' frames in one array, and their lengths",
        lambda listing: bool(listing.concatenated),
        _find_npz,
    ),
    "files": Format(
        f"a file for each scan ({', '.join(READERS)})",
        has_files,
        find_files,
    ),
}
LIST = "list"
assert (*FORMATS, LIST) == COLLECTION_FORMATS


def find_collection(
    source: Path, format_name: str, atlas: str | None, exclude: Sequence[Path]
) -> Collection:
    """The scans of a folder or file.

    Args:
        source: folder or file.
        format_name: of ``COLLECTION_FORMATS``, or "auto": the first that fits.
        atlas: ``--atlas``; None takes the only one.
        exclude: files that are no scans: those of ``--labels``, the output.

    Raises:
        UserInputError: nothing there can be imported; says what is there, and the remedy.
    """
    look_up(format_name, ("auto", *COLLECTION_FORMATS), "--format")
    if not source.exists():
        raise UserInputError(f"{FLAG}: '{source}' does not exist.{did_you_mean(source)}")
    if not source.is_dir():
        return _of_file(source, format_name, atlas)
    if format_name == LIST:
        raise UserInputError(f"--format {LIST}: '{source}' is a folder, expected {_lists()}.")
    listing = list_folder(source, exclude)
    kinds = {name: one for name, one in FORMATS.items() if one.recognise(listing)}
    if not kinds:
        raise _nothing(listing)
    if format_name != "auto" and format_name not in kinds:
        raise UserInputError(
            f"--format {format_name}: '{source}' has no file of it "
            f"({FORMATS[format_name].description}); it looks like {', '.join(kinds)}."
        )
    chosen = next(iter(kinds)) if format_name == "auto" else format_name
    found = kinds[chosen].find(listing, atlas)
    taken = {scan.path for scan in found.scans}
    passed = {one.name for one in found.passed_over}
    others = [
        PassedOver(str(path), "of another format, or a file of other scans")
        for path in (*listing.series, *listing.concatenated)
        if listing.root / path not in taken and str(path) not in passed
    ]
    if listing.images:
        others.append(
            PassedOver(
                f"{listing.images} images", "neuromamba regions extract makes series of them"
            )
        )
    others += [
        PassedOver(place, f"a folder that cannot be read ({why})")
        for place, why in listing.unreadable
    ]
    tables = {path.resolve() for path in found.tables}
    others = [one for one in others if (listing.root / one.name).resolve() not in tables]
    return dataclasses.replace(found, passed_over=(*found.passed_over, *others))


def _of_file(source: Path, format_name: str, atlas: str | None) -> Collection:
    suffix = source.suffix.lower()
    is_list = suffix in _LISTS
    if format_name not in ("auto", LIST if is_list else "npz") or not (
        is_list or suffix == CONCATENATED
    ):
        raise UserInputError(
            f"{FLAG}: '{source}' is a file; expected a folder, an .npz file of the format npz, or "
            f"{_lists()}."
        )
    return find_list(source) if is_list else find_concatenated(source, atlas)


def _lists() -> str:
    return f"a file of a list of scans ({', '.join(_LISTS)})"


def _extract(root: Path) -> str:
    return f"neuromamba regions extract --input {root} --atlas ATLAS makes series of them"


def _nothing(listing: Listing) -> UserInputError:
    """What to do about a folder without series."""
    if listing.images:
        tables = f" --label_csv {listing.root / listing.tables[0]}" if listing.tables else ""
        return UserInputError(
            f"{FLAG}: '{listing.root}' has {listing.images} images (as nilearn's "
            f"fetch_development_fmri and fetch_adhd leave them) and no series of regions: "
            f"{_extract(listing.root)}{tables} -- the result is ready for neuromamba regions train."
        )
    reasons = some_of((f"'{place}' cannot be read ({why})" for place, why in listing.unreadable), 3)
    return UserInputError(
        f"{FLAG}: '{listing.root}' has no series of regions"
        + (f"; {reasons}" if reasons else "")
        + ". Expected "
        + "; ".join(one.description for one in FORMATS.values())
        + "."
    )
