"""Which files of a folder are runs, and what they are called in the store."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from project.module.config import UserInputError
from project.module.utils.data_preprocess_and_load.run_header import run_file_name
from project.module.utils.data_preprocess_and_load.run_names import name_runs

_SUFFIXES = (".nii.gz", ".nii")
# BIDS suffixes (last part of the name) of images that accompany a run but are none.
_COMPANIONS = {"mask", "boldref", "sbref", "dseg", "probseg", "dwi", "dwiref", "asl", "m0scan"}
_COMPANIONS |= {"t1w", "t2w", "pdw", "flair", "t2star", "t2starw"}
_COMPANIONS |= {"epi", "fieldmap", "phasediff", "magnitude", "magnitude1", "magnitude2"}
_COMPANIONS |= {"phase1", "phase2"}


@dataclass(frozen=True)
class Source:
    """A run to convert: a NIfTI file, or what ``reference_layouts.py`` reads.

    Attributes:
        path: of the file or folder.
        name: relative to the input folder.
        subject, session, task, run: see ``RunHeader``.
        output: name of the store's file.
        error: why it cannot be converted, known from the names alone; else "".
    """

    path: Path
    name: str
    subject: str
    session: str = ""
    task: str = ""
    run: str = ""
    error: str = ""

    @property
    def output(self) -> str:
        return run_file_name(self.subject, self.session, self.task, self.run)


def stem_of(path: Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def find_sources(folder: str | Path, exclude: Path | None = None) -> tuple[list[Source], list[str]]:
    """All runs below a folder, sorted by path.

    ``run_names.name_runs`` says what they are called. Files that would share an output name are
    returned with an ``error``.

    Args:
        folder: searched recursively for ``*.nii`` and ``*.nii.gz``; hidden files are left out.
        exclude: a file to leave out (the mask of ``--mask``).

    Returns:
        The runs, and the names of companion images (masks, references, anatomy) passed over.

    Raises:
        UserInputError: no such folder, or no NIfTI file in it.
    """
    root = Path(folder)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise UserInputError(f"--input: '{root}' {found}; expected a folder of 4D NIfTI files.")
    files = sorted(
        path
        for suffix in _SUFFIXES
        for path in root.rglob(f"*{suffix}")
        if not path.name.startswith(".") and not (exclude and path.resolve() == exclude.resolve())
    )
    if not files:
        raise UserInputError(
            f"--input: no *.nii or *.nii.gz in '{root}' or below; expected a folder of 4D runs."
        )
    runs = [path for path in files if stem_of(path).split("_")[-1].lower() not in _COMPANIONS]
    companions = [str(path.relative_to(root)) for path in files if path not in set(runs)]
    sources = [
        Source(path, path.relative_to(root).as_posix(), *name)
        for path, name in zip(runs, name_runs([stem_of(path) for path in runs]), strict=True)
    ]
    return refuse_shared_names(sources), companions


def refuse_shared_names(sources: list[Source]) -> list[Source]:
    """The sources; those that would share an output name with an ``error``."""
    # Without regard to case: some file systems have none.
    by_output: dict[str, list[str]] = {}
    for source in sources:
        by_output.setdefault(source.output.lower(), []).append(source.name)
    checked = []
    for source in sources:
        others = [name for name in by_output[source.output.lower()] if name != source.name]
        if others:
            error = (
                f"{source.path}: would become {source.output}, and so would {', '.join(others)}. "
                f"Rename one of them, or convert them from separate folders into separate stores."
            )
            source = dataclasses.replace(source, error=error)
        checked.append(source)
    return checked


def sibling_mask(path: Path) -> Path | None:
    """``<run>_desc-brain_mask.nii.gz`` (or ``.nii``) beside a run, as fMRIPrep writes it."""
    stem = re.sub(r"_bold$", "", stem_of(path))
    stem = re.sub(r"_desc-[^_]+$", "", stem)
    for suffix in _SUFFIXES:
        mask = path.with_name(f"{stem}_desc-brain_mask{suffix}")
        if mask.is_file():
            return mask
    return None


def sidecar(path: Path) -> Path | None:
    """The JSON file of the same name beside a run, if there is one."""
    found = path.with_name(stem_of(path) + ".json")
    return found if found.is_file() else None
