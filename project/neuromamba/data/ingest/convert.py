"""One NIfTI run into one file of the store: resume, and the steps in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.brain_grid import (
    Placement,
    choose_mask,
    implausible_volume,
    place,
    resample,
    resampled_grid,
)
from neuromamba.data.ingest.nifti import NiftiRun, file_sha256
from neuromamba.data.ingest.options import ConversionOptions, options_for
from neuromamba.data.ingest.preflight import plan_run
from neuromamba.data.ingest.sources import Source
from neuromamba.data.ingest.space import whole_voxel_offset
from neuromamba.data.store.header import RunHeader, RunSource, Triple
from neuromamba.data.store.reader import read_header
from neuromamba.data.store.writer import write_run

__all__ = ["ConversionOptions", "Outcome", "convert_run"]

_SMALL_MASK = 0.05  # of the volume: a head fills more of any usual field of view
_RESAMPLED_AT_ONCE = 4  # frames: 17 MB, and copies of them
_CROPPED_LIMIT = 0.5  # share of the brain
_CONSTANT_NOTED, _CONSTANT_LIMIT = 0.05, 0.5  # share of brain voxels that never change


@dataclass(kw_only=True)
class Outcome:
    """What became of a source.

    Attributes:
        source: the file.
        status: "converted", "skipped" (up to date) or "failed".
        message: the reason of a failure, or of a second conversion.
        notes: warnings.
        header: of the store's file, if there is one.
    """

    source: Source
    status: str
    message: str = ""
    notes: list[str] = field(default_factory=list)
    header: RunHeader | None = None

    @property
    def name(self) -> str:
        """The file, relative to the folder that is converted."""
        return self.source.name


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
        message = str(error)
    except MemoryError:
        message = f"{source.path}: out of memory. Use fewer --num_workers."
    except Exception as error:  # one odd file must not end a night's work
        message = f"{source.path}: unexpected {type(error).__name__}: {error}"
    if (folder / source.output).exists():
        message += f" The store keeps {source.output} of an earlier call."
    return Outcome(source=source, status="failed", message=message)


def _convert(source: Source, output: Path, options: ConversionOptions) -> Outcome:
    options = options_for(source, options)
    plan = plan_run(source, options)
    run, notes = plan.run, list(plan.notes)
    digest = plan.digest(options)
    again = ""
    if output.exists() and not options.overwrite:
        header, change = up_to_date(output, digest, lambda: file_sha256(source.path))
        if header is not None:
            return Outcome(source=source, status="skipped", notes=notes, header=header)
        again = f"again, because {change}"

    mask, mask_source = choose_mask(run, options.mask, options.drop_first, source.mask)
    shape, affine = run.las_shape, run.las_affine
    if mask_source == "computed_epi" and mask.mean() < _SMALL_MASK:
        notes.append(f"the computed mask covers only {mask.mean():.1%} of the volume; check it")
    doubt = implausible_volume(mask, affine, mask_source)
    if doubt and plan.space != "native":
        notes.append(doubt)
    offset, resampled = options.crop_offset, options.resample is not None
    if options.resample is not None:
        shape, affine = resampled_grid(shape, affine, options.resample)
    elif options.onto is not None:
        offset = whole_voxel_offset(affine, np.asarray(options.onto))
        resampled = offset is None
        if resampled:
            shape, affine, offset = options.img_size, np.asarray(options.onto), (0, 0, 0)
    if resampled:
        mask = resample(mask, run.las_affine, shape, affine, "nearest") > 0.5
    placed = place(mask, affine, options.img_size, offset)
    if not placed.vox.size:
        raise UserInputError(
            f"{source.path}: no brain voxel falls into --img_size "
            f"{' '.join(map(str, options.img_size))} (source {' x '.join(map(str, shape))}, "
            f"offset {placed.offset}). Use a larger grid, --resample MM or another --crop_offset."
        )
    if placed.cropped:
        share = placed.cropped / (placed.cropped + placed.vox.size)
        if share > _CROPPED_LIMIT:
            raise UserInputError(
                f"{source.path}: --img_size {' '.join(map(str, options.img_size))} cuts off "
                f"{share:.0%} of the brain (source {' x '.join(map(str, shape))}, offset "
                f"{placed.offset}). Use a larger grid, --resample MM or another --crop_offset."
            )
        notes.append(f"the crop cuts off {placed.cropped} brain voxels ({share:.1%})")
    header = write_run(
        output,
        _brain_frames(run, options, placed, (shape, affine) if resampled else None, notes),
        placed.vox,
        grid=options.img_size,
        affine=placed.affine,
        source=RunSource(
            **source.names,
            dataset=options.dataset,
            source_shape=run.shape,
            source_affine=run.affine,
            crop_offset=placed.offset,
            cropped_voxels=placed.cropped,
            tr=plan.tr,
            tr_source=plan.tr_source,
            dropped_frames=options.drop_first,
            mask_source=mask_source,
            source_sha256=lambda: run.sha256,
            space=plan.space,
        ),
        options=options.write_options(digest),
    )
    return Outcome(source=source, status="converted", message=again, notes=notes, header=header)


def _brain_frames(
    run: NiftiRun,
    options: ConversionOptions,
    placed: Placement,
    resampled: tuple[Triple, np.ndarray] | None,
    notes: list[str],
) -> Iterator[np.ndarray]:
    """The brain voxels [N] of frame after frame, in the order of the target grid.

    With ``resampled``, a grid by its shape and affine, the frames are resampled to it. The array is
    used again for the next frame. Adds to ``notes`` after the last one.

    Raises:
        UserInputError: after the last frame, if many voxels never change.
    """
    size = placed.vox.size
    values, first = np.empty((2, size), np.float32)
    changes = np.zeros(size, dtype=bool)
    if resampled is None:
        # Position in the file of each kept voxel: reorientation, mask and crop in one `take`.
        in_file = run.unflatten(np.arange(math.prod(run.shape))).ravel()[placed.source_index]
        frames = run.frames(options.drop_first)
    else:
        in_file = placed.source_index
        frames = _resampled(run, options.drop_first, *resampled)
    for t, frame in enumerate(frames):
        np.take(frame, in_file, out=values, mode="clip")  # other modes copy the output
        if t == 0:
            first[:] = values
        else:
            changes |= values != first
        yield values
    if run.trailing_bytes:
        notes.append(f"{run.trailing_bytes} bytes after the last frame are left alone")
    constant = size - int(np.count_nonzero(changes))
    if constant > _CONSTANT_LIMIT * size:
        equal = f"the value {first[0]:g}" if (first == first[0]).all() else "one value each"
        raise UserInputError(
            f"{run.path}: {'all' if constant == size else f'{constant} of {size}'} brain voxels "
            f"have {equal} in every frame, expected BOLD. Take the file from its origin again, or "
            f"give another mask with --mask."
        )
    if constant:
        suspicious = "; check run and mask" if constant > _CONSTANT_NOTED * size else ""
        notes.append(
            f"{constant} brain voxels ({constant / size:.1%}) have one value in every frame"
            f"{suspicious}"
        )


def _resampled(
    run: NiftiRun, first: int, shape: Triple, affine: np.ndarray
) -> Iterator[np.ndarray]:
    """Flat frames on another grid; several at a time, for nilearn's sake."""
    frames = run.frames(first)
    while block := [run.unflatten(frame.copy()) for frame in islice(frames, _RESAMPLED_AT_ONCE)]:
        volumes = np.stack(block, axis=-1)
        moved = resample(volumes, run.las_affine, shape, affine, "linear")
        for t in range(moved.shape[-1]):
            yield moved[..., t].ravel()


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
