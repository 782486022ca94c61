"""The data set ``Dummy``: synthetic fMRI written as NIfTI, so that it goes through the converter.

What a run looks like is in ``brain.py``. As a command::

    neuromamba synthetic --output DIR --subjects 60
"""

from __future__ import annotations

import functools
import gzip
import json
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from tqdm import tqdm

from neuromamba.common.atomic_files import atomic_path, temporary_beside
from neuromamba.common.csv_cells import CsvWriter
from neuromamba.common.errors import UserInputError
from neuromamba.common.workers import available_cpus
from neuromamba.data.ingest.convert import ConversionOptions
from neuromamba.data.ingest.folder import convert_folder
from neuromamba.data.synthetic.brain import generate_subject
from neuromamba.data.synthetic.spec import SyntheticSpec

logger = logging.getLogger(__name__)


def _write_subject(spec: SyntheticSpec, output_dir: Path, index: int) -> dict[str, Any]:
    """Generate a subject and write its run as int16 NIfTI, atomically; returns its labels."""
    volume, affine, labels = generate_subject(spec, index)
    image = nibabel.Nifti1Image(np.rint(volume).astype(np.int16), affine)
    image.header.set_zooms((*[spec.voxel_mm] * 3, spec.tr))
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=4)  # 4: MNI152
    image.set_qform(affine, code=4)
    path = output_dir / f"{labels['subject']}_task-rest_bold.nii.gz"
    with atomic_path(path) as temporary:
        # Level 1 is the fastest; no time stamp, so that equal specs give equal files.
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    return labels


def _prepare_folder(output_dir: Path, overwrite: bool) -> None:
    """Make the folder; ``overwrite`` removes an earlier data set's files, and only those."""
    if output_dir.exists() and not output_dir.is_dir():
        raise UserInputError(f"--output: '{output_dir}' is a file; expected a folder.")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        if not overwrite:
            raise UserInputError(
                f"--output: the folder '{output_dir}' is not empty. Choose another one, or give "
                f"--overwrite to replace the synthetic data set in it."
            )
        (output_dir / "participants.csv").unlink(missing_ok=True)
        for old in output_dir.glob("sub-*_task-rest_bold.nii.gz*"):
            old.unlink()
    output_dir.mkdir(parents=True, exist_ok=True)


def write_nifti_dataset(
    spec: SyntheticSpec, output_dir: str | Path, workers: int = 1, *, overwrite: bool = False
) -> None:
    """Write ``sub-<n>_task-rest_bold.nii.gz`` for every subject, and last ``participants.csv``.

    Args:
        spec: what to generate.
        output_dir: must be empty or absent unless ``overwrite``.
        workers: processes.
        overwrite: replace an earlier data set.

    Raises:
        UserInputError: the folder is not empty, or ``workers`` is below 1.
    """
    if workers < 1:
        raise UserInputError(f"--num_workers: got {workers}, expected 1 or more.")
    output_dir = Path(output_dir)
    _prepare_folder(output_dir, overwrite)
    task = functools.partial(_write_subject, spec, output_dir)
    if workers == 1:
        rows = _with_progress(map(task, range(spec.subjects)), spec.subjects)
    else:
        # spawn: a fork would copy the thread pools of torch and BLAS in an unusable state.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, spec.subjects), mp_context=context) as pool:
            rows = _with_progress(pool.map(task, range(spec.subjects)), spec.subjects)
    with (
        atomic_path(output_dir / "participants.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        CsvWriter(stream, lineterminator="\r\n").write_records(list(rows[0]), rows)


def _with_progress(results: Iterator[dict[str, Any]], total: int) -> list[dict[str, Any]]:
    """Collect results: a bar on a terminal, a plain line every tenth of the way in a log."""
    rows = []
    on_terminal = sys.stderr.isatty()
    bar = tqdm(results, total=total, desc="subjects", unit="run", disable=not on_terminal)
    for done, row in enumerate(bar, start=1):
        rows.append(row)
        if not on_terminal and (done == total or done * 10 // total > (done - 1) * 10 // total):
            print(f"synthetic subjects: {done} of {total}", file=sys.stderr, flush=True)
    return rows


def ensure_dummy_store(
    path: str | Path,
    *,
    subjects: int,
    frames: int,
    grid: tuple[int, ...],
    effect_size: float,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Make a store of synthetic subjects at ``path`` unless it is there, through the converter.

    The store appears whole or not at all, so several processes may ask for it at once. It holds
    ``hdf5/*.h5``, ``manifest.csv``, ``metadata/participants.csv`` and ``synthetic.json``.

    Args:
        path: folder of the store (``--image_path``).
        subjects, frames, grid, effect_size, seed: see ``SyntheticSpec``.
        workers: processes; None takes one per processor.

    Raises:
        UserInputError: ``path`` holds something else, or cannot be written.
    """
    path = Path(path)
    spec = SyntheticSpec(
        subjects=subjects, frames=frames, grid=tuple(grid), effect_size=effect_size, seed=seed
    )
    facts = asdict(spec)
    facts.pop("effect")  # always the same, and stores of earlier versions do not tell of it
    record = json.dumps(facts, indent=1) + "\n"
    if path.exists():
        _check_store(path, record)
        return
    workers = workers or available_cpus()
    work = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
        (work / "metadata").mkdir()
        write_nifti_dataset(spec, work / "nifti", workers)
        x, y, z = spec.grid
        outcomes = convert_folder(
            work / "nifti",
            work,
            ConversionOptions(img_size=(x, y, z), dataset="Dummy"),
            num_workers=workers,
            report=logger.debug,
        )
        failed = [outcome.message for outcome in outcomes if outcome.status == "failed"]
        if failed:
            raise UserInputError(f"{len(failed)} synthetic runs were not converted: {failed[0]}")
        os.replace(work / "nifti" / "participants.csv", work / "metadata" / "participants.csv")
        shutil.rmtree(work / "nifti")
        (work / "synthetic.json").write_text(record, encoding="utf-8")
        try:
            os.rename(work, path)
        except OSError:
            _check_store(path, record)  # another process was faster
    except OSError as error:
        raise UserInputError(
            f"--image_path: the synthetic store '{path}' cannot be written ({error.strerror}). "
            f"Choose a folder that can be written."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_store(path: Path, record: str) -> None:
    found = path / "synthetic.json"
    if not found.is_file() or found.read_text(encoding="utf-8") != record:
        raise UserInputError(
            f"--image_path: '{path}' is there already and is not the synthetic store asked for. "
            f"Delete it, or choose another folder."
        )
