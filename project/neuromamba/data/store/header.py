"""The header of a stored run, and the name of its file; free of HDF5."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from neuromamba.common.text import visible

FORMAT_VERSION = 1
TOOL_VERSION = "neuromamba-store 1.0"
COMPRESSIONS = ("none", "lz4")

Triple = tuple[int, int, int]
Affine = tuple[tuple[float, ...], ...]

CONVERT = "neuromamba preprocess"
CONVERT_REFERENCE = "neuromamba convert-reference"
LONGEST_NAME = 200  # bytes; file systems allow 255 with what is added
# Separator of folders, control characters, what ends a line, halves of characters.
_NOT_IN_NAMES = re.compile("[/\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ENTITIES = ("ses", "task", "run")


def why_no_name(subject: str, session: str = "", task: str = "", run: str = "") -> str:
    """Why a run cannot be called so; "" if it can.

    Names are those of files and lines of split files, so they hold neither folders nor line breaks.
    """
    names = {"subject": subject, "session": session, "task": task, "run": run}
    if not subject:
        return "the subject has no name"
    for what, name in names.items():
        if found := _NOT_IN_NAMES.search(name):
            return f"the {what} '{visible(name[:40])}' holds the character U+{ord(found[0]):04X}"
        if name != name.strip():
            return f"the {what} '{visible(name[:40])}' begins or ends with a space"
    size = sum(len(name.encode()) for name in names.values())
    if size > LONGEST_NAME:
        return (
            f"the subject '{visible(subject[:40])} ...' and its run have names of {size} bytes, "
            f"more than {LONGEST_NAME}"
        )
    return ""


def run_file_name(subject: str, session: str = "", task: str = "", run: str = "") -> str:
    """``<subject>[_ses-<session>][_task-<task>][_run-<run>].h5``."""
    if not subject or any("/" in part or "\0" in part for part in (subject, session, task, run)):
        raise ValueError(f"not a file name: {(subject, session, task, run)}")
    values = (session, task, run)
    parts = [subject]
    parts += [f"{key}-{value}" for key, value in zip(_ENTITIES, values, strict=True) if value]
    return "_".join(parts) + ".h5"


@dataclass(frozen=True, kw_only=True)
class RunSource:
    """Identity and origin of a run that is to be written.

    Fields have the names and meanings of those of ``RunHeader``.

    Attributes:
        source_shape, source_affine: None for those of the target grid.
        source_sha256: the hash, or a function that returns it and is called after the last frame,
            when the whole source has been read.
    """

    subject: str
    tr: float
    session: str = ""
    task: str = ""
    run: str = ""
    dataset: str = ""
    source_shape: Sequence[int] | None = None
    source_affine: Any = None
    crop_offset: Sequence[int] = (0, 0, 0)
    cropped_voxels: int = 0
    tr_source: str = ""
    dropped_frames: int = 0
    mask_source: str = ""
    source: str = ""
    source_sha256: str | Callable[[], str] = ""
    space: str = ""


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How a run is stored, whatever run it is.

    Attributes:
        compression: "lz4" for Bitshuffle-LZ4; None or "none" for a contiguous data set.
        voxel_statistics: also store the mean and standard deviation of every voxel.
        options_digest: hash of the conversion's options, ``RunHeader.options``.
        tool_version: program that writes the file.
    """

    compression: str | None = None
    voxel_statistics: bool = False
    options_digest: str = ""
    tool_version: str = TOOL_VERSION


@dataclass(frozen=True, kw_only=True)
class RunHeader:
    """What a file says about its run; every field is an attribute of the file.

    Attributes:
        subject, session, task, run: names; session, task and run may be "". ``session`` is
            "01", not "ses-01"; ``subject`` is as in participants.tsv ("sub-01" for BIDS).
        dataset: name of the cohort, or "".
        grid: X, Y, Z of the target grid.
        affine: 4 x 4, voxel indices of the target grid -> mm.
        orientation: of the target grid's axes.
        source_shape, source_affine: X, Y, Z and affine of the source file, before anything.
        crop_offset: index in the target grid = index in the reoriented (and, if asked for,
            resampled) source + crop_offset; negative where the source was cropped.
        cropped_voxels: brain voxels of the source that the crop cut off.
        scale, offset: y = q * scale + offset, y in the units of the source.
        mean, std, min, max: of y over brain voxels and kept frames, before quantisation.
        tr: repetition time in seconds; NaN if unknown.
        tr_source: where ``tr`` comes from.
        n_frames: frames stored, T.  dropped_frames: frames left out before the first one.
        n_voxels: brain voxels, N.
        mask_source: where the mask comes from.
        source, source_sha256: source file, relative to the input folder, and its hash.
        options: hash of the conversion's options.
        tool_version: program that wrote the file.
        space: name of the space of the images, such as "MNI152NLin6Asym" or "native"; "" if
            unknown. This and what follows may be absent in older files.
        content_sha256: of the bytes of /vox and then of /bold, row after row; "" if unknown.
    """

    subject: str
    session: str
    task: str
    run: str
    dataset: str
    grid: Triple
    affine: Affine
    orientation: str
    source_shape: Triple
    source_affine: Affine
    crop_offset: Triple
    cropped_voxels: int
    scale: float
    offset: float
    mean: float
    std: float
    min: float
    max: float
    tr: float
    tr_source: str
    n_frames: int
    dropped_frames: int
    n_voxels: int
    mask_source: str
    source: str
    source_sha256: str
    options: str
    tool_version: str
    space: str = ""
    content_sha256: str = ""

    @property
    def label(self) -> str:
        """Name of the run in messages, as in its file name."""
        return run_file_name(self.subject, self.session, self.task, self.run)[: -len(".h5")]

    @property
    def brain_fraction(self) -> float:
        """Share of the target grid's voxels that are kept."""
        return self.n_voxels / math.prod(self.grid)
