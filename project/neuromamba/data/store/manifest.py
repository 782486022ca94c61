"""``manifest.csv`` of a store: one line per run, written from the headers of the files."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.csv_cells import CsvWriter, csv_rows
from neuromamba.common.errors import UserInputError
from neuromamba.common.files import without_leftovers
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.header_cache import read_headers

MANIFEST = "manifest.csv"


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """A line of the manifest.

    Attributes:
        file: relative to the store's folder, such as "hdf5/sub-01_task-rest.h5".
        tr: seconds; NaN if unknown.
        n_voxels: brain voxels kept; kept_fraction: their share of the target grid.
        others: as in ``RunHeader``.
    """

    file: str
    subject: str
    session: str
    task: str
    run: str
    dataset: str
    n_frames: int
    tr: float
    tr_source: str
    n_voxels: int
    kept_fraction: float
    mask_source: str
    source: str
    source_sha256: str


def manifest_row(file: str, header: RunHeader) -> ManifestRow:
    """The line of a run."""
    shared = {f.name for f in dataclasses.fields(ManifestRow)} - {"file", "kept_fraction"}
    values = {name: getattr(header, name) for name in shared}
    return ManifestRow(file=file, kept_fraction=round(header.brain_fraction, 6), **values)


def write_manifest(image_path: str | Path, rows: Iterable[ManifestRow]) -> Path:
    """Replace ``<image_path>/manifest.csv``, sorted by file; whole or not at all.

    Raises:
        UserInputError: the folder cannot be written.
    """
    path = Path(image_path) / MANIFEST
    try:
        with (
            atomic_path(path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as stream,
        ):
            CsvWriter(stream, lineterminator="\r\n").write_records(
                [f.name for f in dataclasses.fields(ManifestRow)],
                map(dataclasses.asdict, sorted(rows, key=lambda row: row.file)),
            )
    except OSError as error:
        raise UserInputError(f"{path}: cannot be written ({error.strerror}).") from error
    return path


def read_manifest(image_path: str | Path) -> list[ManifestRow]:
    """The lines of ``<image_path>/manifest.csv``.

    Raises:
        UserInputError: no manifest, columns missing or a value that is not a number.
    """
    path = Path(image_path) / MANIFEST
    convert = {"str": str, "int": int, "float": float}
    fields = dataclasses.fields(ManifestRow)
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv_rows(stream)
            columns = next(reader, [])
            missing = {f.name for f in fields} - set(columns)
            if missing:
                raise UserInputError(
                    f"{path}: columns missing: {', '.join(sorted(missing))}. Run neuromamba "
                    f"preprocess again on the same folders: it rebuilds the file."
                )
            return [
                ManifestRow(
                    **{f.name: convert[str(f.type)](line[columns.index(f.name)]) for f in fields}
                )
                for line in reader
                if line
            ]
    except OSError as error:
        raise UserInputError(f"{path}: cannot be read ({error.strerror}).") from None
    except UserInputError:
        raise
    except (IndexError, ValueError, csv.Error) as error:
        raise UserInputError(f"{path}: a line is damaged ({error}).") from None


def rebuild_manifest(image_path: Path) -> list[str]:
    """Write the manifest from the headers of all files; returns warnings about the store.

    Other shards may finish files meanwhile. The process that writes last also looks
    last: as long as the files have changed since they were read, the manifest is written again.
    """
    folder, read = image_path / "hdf5", None
    headers: Mapping[str, RunHeader] = {}
    warnings: list[str] = []
    while read != (there := _state(folder)):
        read = there
        headers, errors = read_headers(
            image_path, without_leftovers(folder.glob("*.h5")), write=True
        )
        warnings = [str(error) for error in errors]
        if headers:
            rows = [manifest_row(f"hdf5/{name}", header) for name, header in headers.items()]
            write_manifest(image_path, rows)
    by_source: dict[str, list[str]] = {}
    for name, header in headers.items():
        if header.source_sha256:
            by_source.setdefault(header.source_sha256, []).append(f"hdf5/{name}")
    warnings += [
        f"the same source under {len(files)} names: {', '.join(files)}; remove all but one"
        for files in by_source.values()
        if len(files) > 1
    ]
    for what, values in (
        ("grids", Counter(str(header.grid) for header in headers.values())),
        ("spaces", Counter(header.space for header in headers.values() if header.space)),
    ):
        if len(values) > 1:
            warnings.append(f"several {what} in one store: {dict(values)}")
    return warnings


def _state(folder: Path) -> dict[str, Any]:
    """Files of a store with what changes when they are replaced."""
    state = {}
    for path in folder.glob("*.h5"):
        status = path.stat()
        state[path.name] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return state
