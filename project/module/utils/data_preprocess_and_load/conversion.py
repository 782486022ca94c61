"""One NIfTI run into one file of the store: options, resume, and the steps in order."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from project.module.config import UserInputError, canonical_dataset_name, look_up
from project.module.utils.data_preprocess_and_load.brain_grid import (
    Placement,
    choose_mask,
    place,
    resample,
    resampled_grid,
)
from project.module.utils.data_preprocess_and_load.hdf5_store import (
    COMPRESSIONS,
    FORMAT_VERSION,
    read_header,
    write_run,
)
from project.module.utils.data_preprocess_and_load.nifti import NiftiRun, file_sha256, resolve_tr
from project.module.utils.data_preprocess_and_load.run_header import RunHeader, Triple
from project.module.utils.data_preprocess_and_load.sources import Source, sibling_mask, sidecar

MASK_RULES = ("auto", "nonzero", "computed")
_SMALL_MASK = 0.05  # of the volume: a head fills more of any usual field of view


@dataclass(frozen=True)
class ConversionOptions:
    """How runs are converted.

    Attributes:
        img_size: X, Y, Z of the target grid.
        mask: "auto", "nonzero", "computed" (see ``brain_grid.choose_mask``) or a mask image.
        tr: repetition time in seconds for all runs; None takes the sidecar's or the header's.
        drop_first: frames left out at the start (dummy scans).
        resample: voxel size in mm to resample to by the affine; None leaves the voxels alone.
        crop_offset: index in the target = index in the LAS source + crop_offset; None centres.
        dataset: cohort, a name of ``DATASET_NAMES``, or "".
        compression: "none" or "lz4".
        min_frames: a run with fewer frames is refused.
        overwrite: convert again what is up to date.
        dry_run: read headers only and write nothing.
    """

    img_size: Triple = (96, 96, 96)
    mask: str = "auto"
    tr: float | None = None
    drop_first: int = 0
    resample: float | None = None
    crop_offset: Triple | None = None
    dataset: str = ""
    compression: str = "none"
    min_frames: int = 2
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        for flag, values in (
            ("--img_size", self.img_size),
            ("--min_frames", (self.min_frames,)),
            ("--tr", () if self.tr is None else (self.tr,)),
            ("--resample", () if self.resample is None else (self.resample,)),
        ):
            for value in values:
                if not (math.isfinite(value) and value > 0):
                    raise UserInputError(f"{flag}: got {value}, expected a number greater than 0.")
        if self.drop_first < 0:
            raise UserInputError(f"--drop_first: got {self.drop_first}, expected 0 or more.")
        look_up(self.compression, COMPRESSIONS, "--compression")
        if self.dataset:
            object.__setattr__(self, "dataset", canonical_dataset_name(self.dataset))
        if self.mask not in MASK_RULES and not Path(self.mask).is_file():
            raise UserInputError(
                f"--mask: '{self.mask}' is no file and none of {', '.join(MASK_RULES)}."
            )

    def digest(self, mask_file: Path | None, sidecar_tr: float | None) -> str:
        """Hash of everything but the source that determines the stored file."""
        facts = {
            "format": FORMAT_VERSION,
            "img_size": list(self.img_size),
            "mask": self.mask if self.mask in MASK_RULES else "file",
            "mask_sha256": file_sha256(mask_file) if mask_file else "",
            "tr": [self.tr, sidecar_tr],
            "drop_first": self.drop_first,
            "resample": self.resample,
            "crop_offset": self.crop_offset and list(self.crop_offset),
            "dataset": self.dataset,
            "compression": self.compression,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Outcome:
    """What became of a source.

    Attributes:
        source: the file.
        status: "converted", "skipped" (up to date), "planned" (dry run) or "failed".
        message: the reason of a failure, or of a second conversion; the plan in a dry run.
        notes: warnings.
        header: of the store's file, if there is one.
    """

    source: Source
    status: str
    message: str = ""
    notes: list[str] = field(default_factory=list)
    header: RunHeader | None = None


def convert_run(source: Source, folder: Path, options: ConversionOptions) -> Outcome:
    """Convert a run to ``folder / source.output``; a failure is an outcome, not an exception."""
    return attempt(_convert, source, folder, options)


def attempt(
    convert: Callable[[Source, Path, Any], Outcome], source: Source, folder: Path, options: Any
) -> Outcome:
    """``convert(source, folder / source.output, options)``, or the outcome "failed"."""
    try:
        if source.error:
            raise UserInputError(source.error)
        return convert(source, folder / source.output, options)
    except UserInputError as error:
        return Outcome(source, "failed", str(error))
    except MemoryError:
        message = f"{source.path}: out of memory. Use fewer --num_workers."
        return Outcome(source, "failed", message)
    except Exception as error:  # one odd file must not end a night's work
        message = f"{source.path}: unexpected {type(error).__name__}: {error}"
        return Outcome(source, "failed", message)


def _convert(source: Source, output: Path, options: ConversionOptions) -> Outcome:
    run = NiftiRun(source.path)
    n_frames = run.n_frames - options.drop_first
    if n_frames < options.min_frames:
        dropped = f" after --drop_first {options.drop_first}" if options.drop_first else ""
        raise UserInputError(
            f"{source.path}: {max(0, n_frames)} frame(s){dropped}, expected at least "
            f"{options.min_frames} (--min_frames). Remove the run from the input folder."
        )
    notes = []
    if not run.has_space:
        notes.append("neither qform nor sform is set: the orientation is a guess (LAS)")
    sidecar_tr = _sidecar_tr(source.path)
    tr, tr_source, note = resolve_tr(run.header_tr, run.time_unit, sidecar_tr, options.tr)
    notes += [note] if note else []
    sibling = sibling_mask(source.path)
    used_mask = sibling if options.mask == "auto" else None
    if options.mask not in MASK_RULES:
        used_mask = Path(options.mask)
    digest = options.digest(used_mask, sidecar_tr)
    again = ""
    if output.exists() and not options.overwrite:
        header, change = up_to_date(output, digest, lambda: file_sha256(source.path))
        if header is not None:
            return Outcome(source, "skipped", notes=notes, header=header)
        again = f"again, because {change}"
    if options.dry_run:
        rule = used_mask.name if used_mask else options.mask
        size = " x ".join(map(str, run.shape))
        message = f"{size} x {run.n_frames}, TR {tr:g} s ({tr_source}), mask {rule}"
        return Outcome(source, "planned", f"{again}, {message}" if again else message, notes)

    mask, mask_source = choose_mask(run, options.mask, options.drop_first, sibling)
    shape, affine = run.las_shape, run.las_affine
    if mask_source == "computed_epi" and mask.mean() < _SMALL_MASK:
        notes.append(f"the computed mask covers only {mask.mean():.1%} of the volume; check it")
    if options.resample is not None:
        shape, affine = resampled_grid(shape, affine, options.resample)
        mask = resample(mask, run.las_affine, shape, affine, "nearest") > 0.5
    placed = place(mask, affine, options.img_size, options.crop_offset)
    if not placed.vox.size:
        raise UserInputError(
            f"{source.path}: no brain voxel falls into --img_size "
            f"{' '.join(map(str, options.img_size))} (source {' x '.join(map(str, shape))}, "
            f"offset {placed.offset}). Use a larger grid, --resample MM or another --crop_offset."
        )
    if placed.cropped:
        share = placed.cropped / (placed.cropped + placed.vox.size)
        notes.append(f"the crop cuts off {placed.cropped} brain voxels ({share:.1%})")
    frames = _brain_frames(run, options, placed, shape, affine)
    header = write_run(
        output,
        frames,
        placed.vox,
        subject=source.subject,
        session=source.session,
        task=source.task,
        run=source.run,
        dataset=options.dataset,
        grid=options.img_size,
        affine=placed.affine,
        source_shape=run.shape,
        source_affine=run.affine,
        crop_offset=placed.offset,
        cropped_voxels=placed.cropped,
        tr=tr,
        tr_source=tr_source,
        dropped_frames=options.drop_first,
        mask_source=mask_source,
        source=source.name,
        source_sha256=lambda: run.sha256,
        options=digest,
        compression=options.compression,
    )
    return Outcome(source, "converted", again, notes, header)


def _brain_frames(
    run: NiftiRun, options: ConversionOptions, placed: Placement, shape: Triple, affine: np.ndarray
) -> Iterator[np.ndarray]:
    """The brain voxels [N] of frame after frame, in the order of the target grid.

    Raises:
        UserInputError: after the last frame, if all values are equal.
    """
    if options.resample is None:
        # Position in the file of each kept voxel: reorientation, mask and crop in one `take`.
        in_file = run.unflatten(np.arange(math.prod(run.shape))).ravel()[placed.source_index]
    low, high = math.inf, -math.inf
    for frame in run.frames(options.drop_first):
        if options.resample is None:
            values = frame[in_file]
        else:
            volume = resample(run.unflatten(frame), run.las_affine, shape, affine, "linear")
            values = volume.ravel()[placed.source_index]
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        yield values
    if low == high:
        raise UserInputError(
            f"{run.path}: all brain voxels have the value {low:g} in every frame, expected BOLD. "
            f"Take the file from its origin again."
        )


def _sidecar_tr(path: Path) -> float | None:
    """``RepetitionTime`` of the JSON sidecar (BIDS, seconds), if it is there."""
    file = sidecar(path)
    if file is None:
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get("RepetitionTime")
        return None if value is None else float(value)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserInputError(
            f"{file}: not a JSON sidecar with a numeric RepetitionTime ({error}). Mend or remove "
            f"it, and give --tr SECONDS if need be."
        ) from None


def up_to_date(
    output: Path, digest: str, source_sha256: Callable[[], str]
) -> tuple[RunHeader | None, str]:
    """The header of a file that need not be converted again; else None and what has changed."""
    try:
        header = read_header(output)
    except UserInputError:
        return None, "the existing file is damaged or of another version"
    if header.options != digest:
        return None, "the options have changed"
    if header.source_sha256 != source_sha256():
        return None, "the source has changed"
    return header, ""


def available_cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
