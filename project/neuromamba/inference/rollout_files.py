"""Files of a rollout: images in the space of the scan's own file, a table, a record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.atomic_files import atomic_path, make_folder, write_text_atomically
from neuromamba.common.csv_cells import CsvWriter
from neuromamba.common.files import refuse_other_content
from neuromamba.inference.rollout import Rollout
from neuromamba.inference.source_space import save_image, to_source_image

PREDICTED, TRUE = "predicted.nii.gz", "true.nii.gz"
TABLE, RECORD = "rollout.csv", "rollout.json"


def refuse_others(folder: Path) -> None:
    """Refuse a folder with anything but the files of an earlier rollout.

    Raises:
        UserInputError: names it.
    """
    refuse_other_content(folder, (RECORD, TABLE, PREDICTED), "-o")


def write_rollout(found: Rollout, folder: Path, more: Mapping[str, Any]) -> list[Path]:
    """Write the images, ``rollout.csv`` (a row per generated frame) and ``rollout.json``.

    Images hold intensities in the units, shape and affine of the scan's own file, and 0 outside the
    brain. There is no image of true frames where the scan ends with the prompt.

    Args:
        found: the rollout.
        folder: made if absent; files of an earlier call are replaced.
        more: model, scan and so on, for the record, in plain containers.

    Returns:
        The files.

    Raises:
        UserInputError: the folder cannot be written, or holds something else.
    """
    refuse_others(folder)
    make_folder(folder, "-o")
    files = [folder / PREDICTED]
    _write_image(found, found.predicted, folder / PREDICTED)
    if len(found.true):
        _write_image(found, found.true, folder / TRUE)
        files.append(folder / TRUE)
    else:
        (folder / TRUE).unlink(missing_ok=True)
    rows = list(found.rows())
    with (
        atomic_path(folder / TABLE) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        CsvWriter(stream).write_records(list(rows[0]), rows)
    text = json.dumps({**more, **found.record()}, indent=1)
    write_text_atomically(folder / RECORD, text + "\n")
    return [*files, folder / TABLE, folder / RECORD]


def _write_image(found: Rollout, scaled: np.ndarray, path: Path) -> None:
    header = dataclasses.replace(found.header, tr=found.seconds)
    # Whole runs: what a higher level saves in size costs more in time.
    save_image(to_source_image(found.intensities(scaled), found.voxels, header), path, level=1)
