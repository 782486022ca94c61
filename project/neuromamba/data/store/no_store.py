"""Errors of ``--image_path`` for a place that is no store: what it holds, and what takes that."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from neuromamba.common.errors import UserInputError
from neuromamba.common.similar_paths import did_you_mean
from neuromamba.data.store.header import CONVERT, CONVERT_REFERENCE

_COUNT_UP_TO = 1000  # a message need not walk a whole file system
# Files of series: the first are nothing else here, while a table may hold anything.
_SERIES = (".pickle", ".pkl", ".npy", ".npz", ".1d", ".parquet")
_TABLES = (".csv", ".tsv")
_REGIONS = (
    "Series of regions are for another family of models: neuromamba regions train takes them, "
    "neuromamba regions import brings those of a collection into one file, and neuromamba regions "
    "extract makes them of images. Both check each scan."
)


def no_store(path: str | Path) -> UserInputError:
    """The error of ``--image_path`` for a folder that is not there."""
    return UserInputError(
        f"--image_path: no folder '{path}'. Give the folder that {CONVERT} wrote."
        f"{did_you_mean(path)}"
    )


def is_a_file(path: Path) -> UserInputError:
    """The error of ``--image_path`` for a file."""
    hint = f" {_REGIONS}" if path.suffix.lower() in (*_SERIES, *_TABLES) else ""
    return UserInputError(
        f"--image_path: '{path}' is a file; expected a folder that holds hdf5/.{hint}"
    )


def no_runs(root: Path, found: str) -> UserInputError:
    """The error of ``--image_path`` for a folder without runs.

    Args:
        root: the folder.
        found: what is there instead of runs, of the store's own layout.
    """
    start = f"--image_path: '{root}' holds no runs ({found})"
    images = _count(path for suffix in ("*.nii", "*.nii.gz") for path in root.rglob(suffix))
    if images:
        return UserInputError(
            f"{start}, but {images} NIfTI file(s): convert them first with {CONVERT} --input "
            f"{root} --output FOLDER, and give that FOLDER."
        )
    if next(root.rglob("frame_*.pt"), None) is not None:
        return UserInputError(
            f"{start}, but the reference's frame_<t>.pt: convert them first with "
            f"{CONVERT_REFERENCE} --input {root} --output FOLDER --tr SECONDS, and give that "
            f"FOLDER."
        )
    for kinds, least, what in ((_SERIES, 1, "of series"), (_TABLES, 2, "that may be series")):
        files = [path for path in root.rglob("*") if path.suffix.lower() in kinds]
        if len(files) >= least:
            return UserInputError(
                f"{start}, but {len(files)} file(s) {what} of regions, such as "
                f"{min(files).name}. Expected the folder that {CONVERT} wrote from volumes. "
                f"{_REGIONS}"
            )
    return UserInputError(f"{start}. Give the folder that {CONVERT} wrote.")


def _count(paths: Iterable[Path]) -> str:
    """How many there are, counted up to a limit; "" for none."""
    count = sum(1 for _ in islice(paths, _COUNT_UP_TO))
    return f"{count} or more" if count == _COUNT_UP_TO else str(count or "")
