"""``quarantine.tsv`` of a store: the files that were not converted, and why."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from neuromamba.common.atomic_files import atomic_path, locked
from neuromamba.common.csv_cells import CsvWriter, csv_rows
from neuromamba.common.errors import UserInputError

QUARANTINE = "quarantine.tsv"
_COLUMNS = ("file", "reason")


def update_quarantine(
    image_path: str | Path, handled: Collection[Path], failed: Mapping[Path, str]
) -> int:
    """Bring the list up to date after a call; without entries there is no file.

    Entries of files that this call converted vanish. Those of other calls (other folders, other
    shards) stay as long as their file is there.

    Args:
        image_path: folder of the store.
        handled: the sources that this call has dealt with.
        failed: those of them that were not converted -> the reason.

    Returns:
        The number of entries in the list.

    Raises:
        UserInputError: the folder cannot be written, or the list is damaged.
    """
    path = Path(image_path) / QUARANTINE
    if not failed and not path.exists():
        return 0
    done = {os.path.abspath(file) for file in handled}
    try:
        with locked(path):
            kept = {
                file: reason
                for file, reason in read_quarantine(image_path).items()
                if file not in done and os.path.lexists(file)
            }
            rows = kept | {os.path.abspath(file): reason for file, reason in failed.items()}
            if not rows:
                path.unlink(missing_ok=True)
                return 0
            with (
                atomic_path(path) as temporary,
                open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as out,
            ):
                writer = CsvWriter(out, delimiter="\t")
                writer.writerow(_COLUMNS)
                writer.writerows(sorted(rows.items()))
    except OSError as error:
        raise UserInputError(f"{path}: cannot be written ({error.strerror}).") from error
    return len(rows)


def read_quarantine(image_path: str | Path) -> dict[str, str]:
    """Absolute path of a file -> why it was not converted; empty if there is no list.

    Raises:
        UserInputError: not a list of this form.
    """
    path = Path(image_path) / QUARANTINE
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as stream:
            lines = list(csv_rows(stream, delimiter="\t"))
    except FileNotFoundError:
        return {}
    except (OSError, csv.Error) as error:
        raise UserInputError(f"{path}: cannot be read ({error}). Remove or correct it.") from None
    if not lines or tuple(lines[0]) != _COLUMNS or any(len(line) != 2 for line in lines):
        raise UserInputError(
            f"{path}: not a list with the columns {' and '.join(_COLUMNS)}. Remove it: the next "
            f"call writes a new one."
        )
    return dict(lines[1:])
