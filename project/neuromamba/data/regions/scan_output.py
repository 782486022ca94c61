"""The file of scans that ``neuromamba regions train`` reads, and the record beside it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json

# Names in the record of a command by which the next call knows the files for its own.
OWN_RECORD = ("atlas_hash", "left_out")


def check_output(output: Path, others: Sequence[str] = (".json", ".html")) -> None:
    """Refuse a name that cannot be written, or that others have.

    Args:
        output: the file of scans.
        others: suffixes of the files beside it.

    Raises:
        UserInputError: it is such a name.
    """
    if output.suffix not in (".pickle", ".npy"):
        raise UserInputError(f"--output: got '{output}', expected a name in .pickle or .npy.")
    files = [output, *(output.with_suffix(suffix) for suffix in others)]
    for path in files:
        if path.is_dir():
            raise UserInputError(f"--output: '{path}' is a folder. Choose another name.")
    there = next((path for path in files if path.exists()), None)
    if there is None:
        return
    try:
        record = parse_json(output.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not (isinstance(record, dict) and all(name in record for name in OWN_RECORD)):
        raise UserInputError(
            f"--output: '{there}' exists and was not written by this command. Choose another name, "
            f"or remove it."
        )


def write_scan_file(output: Path, scans: Sequence[Mapping[str, Any]]) -> None:
    """Write a list of ``{"roiTimeseries": [N, T], "pheno": {...}}``, complete or not at all."""
    with atomic_path(output) as temporary, open(temporary, "wb") as stream:
        if output.suffix == ".npy":
            array = np.empty(len(scans), dtype=object)
            array[:] = scans
            np.save(stream, array, allow_pickle=True)
        else:
            pickle.dump(list(scans), stream)
