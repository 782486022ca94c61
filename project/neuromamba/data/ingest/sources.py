"""What a folder holds: its images, and the runs among them with their names in the store.

``layouts.py`` knows which files of which cohort are runs; here is what the layouts share.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from neuromamba.common.errors import UserInputError
from neuromamba.common.similar_paths import did_you_mean
from neuromamba.common.text import some_of
from neuromamba.data.store.header import Affine, run_file_name, why_no_name

SUFFIXES = (".nii.gz", ".nii")
# Surfaces and CIFTI files: no volumes, though some names end in .nii.
_CIFTI = ("dtseries", "ptseries", "dscalar", "pscalar", "dlabel", "dconn", "pconn")
SURFACES = (".gii", *(f".{kind}.nii" for kind in _CIFTI))
# Images that are not read, and those whose names are in capitals.
_PACKED = (".nii.bz2", ".nii.xz", ".nii.zst", ".brik.gz", ".img.gz")
_OTHER_FORMATS = (*SUFFIXES, *_PACKED, ".mgz", ".mgh", ".brik", ".mnc")
# BIDS suffixes (last part of the name) of images that accompany a run but are none.
_COMPANIONS = {"mask", "brainmask", "boldref", "sbref", "dseg", "probseg", "dwi", "dwiref", "asl"}
_COMPANIONS |= {"m0scan", "t1w", "t2w", "pdw", "flair", "t2star", "t2starw", "boldmap"}
_COMPANIONS |= {"epi", "fieldmap", "phasediff", "magnitude", "magnitude1", "magnitude2"}
_COMPANIONS |= {"phase1", "phase2"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A NIfTI file to convert.

    Attributes:
        path: of the file.
        name: relative to the input folder.
        subject, session, task, run: see ``RunHeader``.
        error: why it cannot be converted, known before the file is read; else "".
        mask: mask image that belongs to the run.
        sidecar: JSON file that belongs to the run.
        space: space that the name or the layout tells; "" if neither does.
        remedy: how to bring this run into MNI space, if it is not.
        layout_tr: TR of the cohort's protocol, seconds.
        notes: warnings that the names alone give.
        onto: affine of the grid on which the other runs of the store lie, if this one would lie
            elsewhere; see ``one_grid``.
    """

    path: Path
    name: str
    subject: str
    session: str = ""
    task: str = ""
    run: str = ""
    error: str = ""
    mask: Path | None = None
    sidecar: Path | None = None
    space: str = ""
    remedy: str = ""
    layout_tr: float | None = None
    notes: tuple[str, ...] = ()
    onto: Affine | None = None

    @property
    def output(self) -> str:
        """Name of the store's file."""
        return run_file_name(self.subject, self.session, self.task, self.run)

    @property
    def names(self) -> dict[str, str]:
        """The fields of ``RunSource`` that say whose run it is and which file it comes from."""
        names = {"subject": self.subject, "session": self.session, "task": self.task}
        return names | {"run": self.run, "source": self.name}

    def refused(self, error: str) -> Source:
        """The same source with a reason why it is not converted; an earlier reason stays."""
        return self if self.error else dataclasses.replace(self, error=error)


class Choice(NamedTuple):
    """Which of several versions of a run to take.

    Attributes:
        space: of ``--space``; "" is MNI.
        desc: output of a pipeline by its BIDS name, of ``--desc``; "" is the best there is.
    """

    space: str = ""
    desc: str = ""


BEST = Choice()


@dataclass(frozen=True)
class PassedOver:
    """An image that is not converted, and why; ``name`` is relative to the input folder."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The images below a folder.

    Attributes:
        root: the folder.
        volumes: NIfTI volumes, relative to ``root``, sorted.
        surfaces: GIFTI and CIFTI files, relative to ``root``, sorted.
        json: JSON files, relative to ``root``, sorted.
        unreadable: folder -> why it could not be listed.
        archives: number of zip and tar files.
        pairs: headers of images in two files (``.hdr``, ``.img``), relative to ``root``, sorted.
        others: images of other formats or spellings, relative to ``root``, sorted.
    """

    root: Path
    volumes: tuple[PurePosixPath, ...]
    surfaces: tuple[PurePosixPath, ...]
    json: tuple[PurePosixPath, ...]
    unreadable: tuple[tuple[str, str], ...]
    archives: int
    pairs: tuple[PurePosixPath, ...] = ()
    others: tuple[PurePosixPath, ...] = ()

    @cached_property
    def _names(self) -> set[PurePosixPath]:
        return {*self.volumes, *self.json}

    @cached_property
    def json_of(self) -> dict[PurePosixPath, list[PurePosixPath]]:
        """Folder -> its JSON files."""
        by_folder: dict[PurePosixPath, list[PurePosixPath]] = {}
        for file in self.json:
            by_folder.setdefault(file.parent, []).append(file)
        return by_folder

    def first(self, folder: PurePosixPath, names: Iterable[str]) -> Path | None:
        """The first of the names that is in a folder of the tree."""
        found = (folder / name for name in names if folder / name in self._names)
        return next((self.root / name for name in found), None)


def scan(folder: str | Path, exclude: Path | None = None, flag: str = "--input") -> Tree:
    """List a folder and all below it; hidden files and folders (``.git``) are left out.

    Links to folders are followed, each folder once.

    Args:
        folder: the input folder.
        exclude: a file to leave out (the mask of ``--mask``).
        flag: that named the folder.

    Raises:
        UserInputError: no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise UserInputError(
            f"{flag}: '{root}' {found}; expected a folder of 4D NIfTI files."
            f"{'' if root.exists() else did_you_mean(root)}"
        )
    unreadable: list[tuple[str, str]] = []
    found_names = list(walk_files(root, unreadable, _is_listed))
    left_out = exclude.resolve() if exclude else None
    volumes, surfaces, json, pairs, others = [], [], [], [], []
    archives = 0
    for name in sorted(found_names):
        if name.name.endswith(SURFACES):
            surfaces.append(name)
        elif name.name.endswith(SUFFIXES):
            if left_out is None or (root / name).resolve() != left_out:
                volumes.append(name)
        elif name.suffix == ".json":
            json.append(name)
        elif name.suffix == ".hdr":
            pairs.append(name)
        elif name.name.lower().endswith(_OTHER_FORMATS):
            others.append(name)
        else:
            archives += 1
    return Tree(
        root=root,
        volumes=tuple(volumes),
        surfaces=tuple(surfaces),
        json=tuple(json),
        unreadable=tuple(unreadable),
        archives=archives,
        pairs=tuple(pairs),
        others=tuple(others),
    )


def _is_listed(name: str) -> bool:
    """Whether a name is one of an image, a JSON file or an archive."""
    wanted = (*SUFFIXES, *SURFACES, ".json", ".hdr", ".zip", ".tar", ".tar.gz", ".tgz")
    return name.endswith(wanted) or name.lower().endswith(_OTHER_FORMATS)


def walk_files(
    root: Path, unreadable: list[tuple[str, str]], is_listed: Callable[[str], bool]
) -> Iterator[PurePosixPath]:
    """Files below a folder, relative to it; not hidden ones, and each folder once.

    Args:
        root: the folder.
        unreadable: gets folders that cannot be listed, and why.
        is_listed: whether a file of this name is wanted.
    """

    def note(error: OSError) -> None:
        unreadable.append((str(error.filename), error.strerror or str(error)))

    seen = set()
    for place, folders, files in os.walk(root, onerror=note, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link in a circle, or a second way to the same folder
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = PurePosixPath(Path(place).relative_to(root).as_posix())
        for name in files:
            # Not what other systems leave beside files: ._name (macOS), ~$name (Office).
            if is_listed(name) and not name.startswith((".", "~$")):
                yield relative / name


def stem_of(path: PurePosixPath | Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def is_companion(path: PurePosixPath) -> bool:
    """Whether the last part of a name says mask, reference or anatomy, or the first one mean."""
    first, *_, last = f"_{stem_of(path).lower()}".split("_")[1:] * 2
    return last in _COMPANIONS or re.fullmatch(r"w?mean[a-z]*", first) is not None


def refuse_shared_names(sources: list[Source]) -> list[Source]:
    """The sources; those that would be one run, or none, by their names get an error."""
    # Without regard to case: some file systems have none.
    by_output: dict[str, list[str]] = {}
    for source in sources:
        by_output.setdefault(source.output.lower(), []).append(source.name)
    checked = []
    for source in sources:
        others = [name for name in by_output[source.output.lower()] if name != source.name]
        wrong = why_no_name(source.subject, source.session, source.task, source.run)
        if wrong and not source.error:
            source = source.refused(
                f"{source.path}: {wrong}, which cannot be in names of a store. Rename the file or "
                f"its folder."
            )
        if others:
            source = source.refused(
                f"{source.path}: by its name the run {Path(source.output).stem}, and so is "
                f"{some_of(others, 3)}. Rename one of them, or read them from separate folders "
                f"into separate outputs."
            )
        checked.append(source)
    return checked
