"""Scans named on a command line: files, BIDS derivatives, stores."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.bids import parse, sibling_mask, sidecar
from neuromamba.data.ingest.filenames import RunName, name_run
from neuromamba.data.ingest.layouts import find_runs
from neuromamba.data.ingest.sources import (
    SUFFIXES,
    SURFACES,
    Choice,
    PassedOver,
    Source,
    Tree,
    stem_of,
)
from neuromamba.data.store.reader import list_runs, read_header

Places: TypeAlias = str | Path | Sequence[str | Path]  # of scans: one, or a list
_RUN = ".h5"


@dataclass(frozen=True, kw_only=True)
class ScanFile:
    """A scan to use a model on.

    Attributes:
        path: NIfTI file, or run of a store (``.h5``).
        name: unique among the scans of a call; names its files in the output folder.
        subject, session, run: from the file's name or the store; "" where there is none.
        source: of a NIfTI file, as the converter takes it.
        error: why it cannot be used, known before it is read; else "".
    """

    path: Path
    name: str
    subject: str
    session: str = ""
    run: str = ""
    source: Source | None = None
    error: str = ""


def run_of(task: str, run: str) -> str:
    """``ScanFile.run`` of a task and a run, each of which may be ""."""
    return "-".join(part for part in (task, run) if part)


def only_scan(scans: Sequence[ScanFile], place: str | Path) -> ScanFile:
    """The scan that a place holds.

    Raises:
        UserInputError: it holds none, or several.
    """
    if len(scans) != 1:
        raise UserInputError(
            f"prepare: '{place}' holds {len(scans)} scans, expected one. Give the file "
            f"of one scan; for many there are neuromamba predict and model.predict_many."
        )
    return scans[0]


def listed(places: Places) -> list[Path]:
    """Places as paths; a single one is a list of one, and not of its letters."""
    return [Path(places)] if isinstance(places, str | Path) else [*map(Path, places)]


def find_scans(places: Places, *, native: bool = False) -> tuple[list[ScanFile], list[PassedOver]]:
    """List the scans that files and folders hold, each once, in the order given.

    Args:
        places: NIfTI files; folders of them (the layouts of the converter: BIDS derivatives, HCP,
            any folder); stores, and runs of a store. One, or a list.
        native: whether the model is of native space, so that native versions of runs are taken.

    Returns:
        The scans, and images of folders that are none, with the reason.

    Raises:
        UserInputError: nothing there; names what was found.
    """
    scans: dict[Path, ScanFile] = {}
    passed: list[PassedOver] = []
    for place in listed(places):
        found: list[ScanFile]
        if place.is_dir() and _is_store(place):
            found = [_of_store(path) for path in list_runs(place)]
        elif place.is_dir():
            runs = find_runs(place, choice=Choice("native" if native else ""), flag="BOLD")
            found = [scan_of(source) for source in runs.sources]
            passed += runs.passed_over
        elif place.name.endswith(_RUN) and place.is_file():
            found = [_of_store(place)]
        else:
            found = [scan_of(source_of_file(place))]
        for scan in found:
            scans.setdefault(scan.path.resolve(), scan)
    return with_unique_names(list(scans.values())), passed


def _is_store(folder: Path) -> bool:
    return (folder / "hdf5").is_dir() or next(folder.glob(f"*{_RUN}"), None) is not None


def _of_store(path: Path) -> ScanFile:
    try:
        header = read_header(path)
    except UserInputError as error:
        return ScanFile(path=path, name=path.stem, subject=path.stem, error=str(error))
    return ScanFile(
        path=path,
        name=header.label,
        subject=header.subject,
        session=header.session,
        run=run_of(header.task, header.run),
    )


def scan_of(source: Source) -> ScanFile:
    """A NIfTI file as a scan."""
    return ScanFile(
        path=source.path,
        name=_name_of(source),
        subject=source.subject,
        session=source.session,
        run=run_of(source.task, source.run),
        source=source,
        error=source.error,
    )


def _name_of(source: Source) -> str:
    """The name of a scan's files: of BIDS entities, else that of the file if it tells whose it is.

    A store names runs by entities. Here ``f64_1e8_x`` would become ``f64_run-1e8-x``, and its
    attribution would no longer be found beside it.
    """
    stem = stem_of(source.path)
    of_file = RunName(source.subject, source.session, source.task, source.run)
    if parse(PurePosixPath(source.path.name)) is None and name_run(stem) == of_file:
        return stem
    return source.output[: -len(_RUN)]


def source_of_file(path: Path) -> Source:
    """One NIfTI file as the converter takes it: its names, and mask and JSON file beside it.

    A missing file, or one of another kind, is a source with an ``error``. JSON files of folders
    above it count (BIDS) if one of these folders holds dataset_description.json.
    """
    stem = stem_of(path)
    if not path.is_file():
        return Source(path=path, name=str(path), subject=stem, error=f"{path}: no such file.")
    if path.name.endswith(SURFACES):
        error = (
            f"{path}: a surface or CIFTI file, expected a volume. Give the same run as a 4D NIfTI "
            f"file in MNI space (of HCP: <run>.nii.gz beside <run>_Atlas.dtseries.nii)."
        )
        return Source(path=path, name=str(path), subject=stem, error=error)
    if not path.name.endswith(SUFFIXES):
        error = (
            f"{path}: expected a 4D NIfTI file (.nii, .nii.gz), a folder of them or a store. "
            f"Convert it first: a pair of .hdr and .img with FSL's fslchfiletype NIFTI_GZ, DICOM "
            f"with dcm2niix, other images with FreeSurfer's mri_convert."
        )
        return Source(path=path, name=str(path), subject=stem, error=error)
    tree, inside = _tree_around(path)
    name = parse(inside)
    if name is None:
        return Source(
            path=path,
            name=path.name,
            **name_run(stem)._asdict(),
            mask=sibling_mask(tree, inside),
            sidecar=tree.first(inside.parent, [f"{stem}.json"]),
        )
    return Source(
        path=path,
        name=path.name,
        subject=f"sub-{name.get('sub')}",
        session=name.get("ses"),
        task=name.get("task"),
        run=name.run_name,
        mask=sibling_mask(tree, inside),
        sidecar=sidecar(tree, name),
        space=name.space,
    )


def _tree_around(path: Path) -> tuple[Tree, PurePosixPath]:
    """The images and JSON files in a file's folder, and JSON files of the data set above it."""
    folder = path.parent
    above = [folder, *folder.absolute().parents][:5]
    roots = [one for one in above if (one / "dataset_description.json").is_file()]
    root = roots[0] if roots else folder
    folders = [folder]
    while folders[-1].absolute() != root.absolute():
        folders.append(folders[-1].absolute().parent)
    volumes, json = [], []
    for place in folders:
        relative = PurePosixPath(place.absolute().relative_to(root.absolute()).as_posix())
        for name in sorted(os.listdir(place)):
            if name.endswith(".json"):
                json.append(relative / name)
            elif place is folder and name.endswith(SUFFIXES):
                volumes.append(relative / name)
    tree = Tree(
        root=root,
        volumes=tuple(volumes),
        surfaces=(),
        json=tuple(json),
        unreadable=(),
        archives=0,
    )
    own = PurePosixPath(folder.absolute().relative_to(root.absolute()).as_posix())
    return tree, own / path.name


def with_unique_names(scans: list[ScanFile]) -> list[ScanFile]:
    """Number scans whose files have the same name in different folders."""
    taken: set[str] = set()
    named = []
    for scan in scans:
        name, number = scan.name, 2
        while name.lower() in taken:
            name, number = f"{scan.name}_{number}", number + 1
        taken.add(name.lower())
        named.append(dataclasses.replace(scan, name=name))
    return named
