"""``Analysis/Explainability/<DATASET>/seed_<SEED>/``: one file per scan, and what they share.

``subj_<scan>.npz`` holds, without any pickle: subject_id, scan_id, label, pred, target, probs,
logits, pathways [P], path_maps [P, N], drops [P], weights [P], cpa [N], dominant [N] (1 to P),
atlas, roi_ids [N], ablation, gradient, classes, schema_version. ``randomised.npz`` holds scan_id
[S], cpa [S, N] and dominant [S, N] of the same model with random weights. ``settings.json`` says
what they were made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.errors import UserInputError
from neuromamba.common.files import safe_name

SCHEMA_VERSION = 1
RANDOMISED = "randomised.npz"
LONGEST = 160  # characters of a name; a file's has 255 at most, its temporary name among them


class ScanMap(NamedTuple):
    """The file of a scan; see the module for the fields."""

    subject_id: str
    scan_id: str
    label: int
    pred: int
    target: int
    probs: np.ndarray
    logits: np.ndarray
    pathways: np.ndarray
    path_maps: np.ndarray
    drops: np.ndarray
    weights: np.ndarray
    cpa: np.ndarray
    dominant: np.ndarray
    atlas: str
    roi_ids: np.ndarray
    ablation: str
    gradient: str
    classes: np.ndarray
    schema_version: int = SCHEMA_VERSION

    @property
    def correct(self) -> bool:
        """Whether the prediction is right."""
        return self.label == self.pred

    @property
    def file_name(self) -> str:
        """``subj_<scan>.npz``."""
        return f"subj_{map_name(self.scan_id)}.npz"


def map_name(text: str) -> str:
    """Return the name of a scan or a class as a part of a file name."""
    return safe_name(text, more="_.")


def check_names(scans: Iterable[str], classes: Iterable[str] = ()) -> None:
    """Refuse names of which one's file would take the place of another's, or that are too long.

    Raises:
        UserInputError: there are such.
    """
    for what, names in (("scan", scans), ("class", classes)):
        known: dict[str, str] = {}
        for name in names:
            if len(name) > LONGEST:
                raise UserInputError(
                    f"--analysis: the {what} '{name[:40]} ...' has a name of {len(name)} "
                    f"characters, expected at most {LONGEST}: it names a file."
                )
            other = known.setdefault(map_name(name), name)
            if other != name:
                raise UserInputError(
                    f"--analysis: the {what} '{other}' and the {what} '{name}' would both be "
                    f"written to files named {map_name(name)}. Give them names that differ in "
                    f"letters, digits, '.', '_' or '-'."
                )


def write_scan_map(folder: Path, found: ScanMap) -> Path:
    """Write the file of a scan."""
    path = folder / found.file_name
    write_arrays(path, found._asdict())
    return path


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write a compressed npz atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def read_arrays(path: Path, flag: str, fields: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an npz.

    Raises:
        UserInputError: it cannot be read, or lacks a field.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in fields if name not in archive]
            arrays = {name: archive[name] for name in fields if name in archive}
    except Exception as error:  # zipfile and numpy raise their own
        raise UserInputError(
            f"{flag}: '{path}' cannot be read ({' '.join(str(error).split())}). Write it again "
            f"with tester.py --analysis."
        ) from None
    if missing:
        raise UserInputError(
            f"{flag}: '{path}' lacks {', '.join(missing)}. Expected a file of tester.py --analysis."
        )
    return arrays


def read_scan_map(path: Path, flag: str = "--root") -> ScanMap:
    """Read the file of a scan.

    Raises:
        UserInputError: see ``read_arrays``; or of another version.
    """
    arrays = read_arrays(path, flag, ScanMap._fields)
    version = int(arrays["schema_version"])
    if version != SCHEMA_VERSION:
        raise UserInputError(
            f"{flag}: '{path}' has schema_version {version}, expected {SCHEMA_VERSION}. Write it "
            f"again with tester.py --analysis."
        )
    return ScanMap._make(
        arrays[name].item() if arrays[name].ndim == 0 else arrays[name] for name in ScanMap._fields
    )
