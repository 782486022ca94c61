"""One run of the reference's layouts into one file of the store: options, background, the steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nibabel import orientations

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.brain_grid import NONZERO_LIMIT, Placement, place
from neuromamba.data.ingest.convert import Outcome, attempt, up_to_date
from neuromamba.data.ingest.nifti import las_transform
from neuromamba.data.ingest.reference.hdf5 import is_store_file
from neuromamba.data.ingest.reference.layouts import open_run
from neuromamba.data.ingest.reference.options import ReferenceOptions
from neuromamba.data.ingest.reference.run import ReferenceRun
from neuromamba.data.ingest.sources import Source
from neuromamba.data.store.header import RunHeader, RunSource
from neuromamba.data.store.writer import write_run

_SAME = 0.05  # relative; the reference may have counted its voxels and rounded in another way


def convert_reference_run(source: Source, folder: Path, options: ReferenceOptions) -> Outcome:
    """Convert a run to ``folder / source.output``; a failure is an outcome, not an exception."""
    return attempt(_convert, source, folder, options)


def _convert(source: Source, output: Path, options: ReferenceOptions) -> Outcome:
    run = open_run(source.path, options.time_axis, options.img_size)
    options.kept_frames(source.path, run.n_frames)
    digest, again = options.digest(), ""
    if output.exists():
        if not is_store_file(output):
            raise UserInputError(
                f"{output}: exists and is no readable file of the store, so it is not replaced. "
                f"Move it away, or choose another --output."
            )
        if not options.overwrite:
            header, change = up_to_date(output, digest, run.sha256)
            if header is not None:
                return Outcome(source=source, status="skipped", header=header)
            again = f"again, because {change}"
    size = " x ".join(map(str, run.shape))
    if options.dry_run:
        message = f"{size} x {run.n_frames}, {options.orientation}, background {options.background}"
        return Outcome(
            source=source, status="planned", message=f"{again}, {message}" if again else message
        )

    mask, mask_source = background_mask(run, options.background, options.drop_first)
    notes = []
    if mask.mean() >= NONZERO_LIMIT:
        notes.append(f"{mask.mean():.1%} of the voxels are kept: the frames are not masked")
    affine = options.affine(run.shape)
    to_las = las_transform(affine, source.path)
    mask = np.asarray(orientations.apply_orientation(mask, to_las))
    placed = place(
        mask,
        affine @ orientations.inv_ornt_aff(to_las, run.shape),
        options.img_size or mask.shape,
        options.crop_offset,
    )
    if not placed.vox.size:
        raise UserInputError(
            f"{source.path}: no brain voxel falls into the grid (frames {size}, offset "
            f"{placed.offset}). Use a larger --img_size or another --crop_offset."
        )
    if placed.cropped:
        share = placed.cropped / (placed.cropped + placed.vox.size)
        notes.append(f"the crop cuts off {placed.cropped} brain voxels ({share:.1%})")
    header = write_run(
        output,
        _brain_frames(run, options.drop_first, placed, to_las),
        placed.vox,
        grid=options.img_size or mask.shape,
        affine=placed.affine,
        source=RunSource(
            **source.names,
            dataset=options.dataset,
            source_shape=run.shape,
            source_affine=affine,
            crop_offset=placed.offset,
            cropped_voxels=placed.cropped,
            tr=options.tr,
            tr_source="--tr",
            dropped_frames=options.drop_first,
            mask_source=mask_source,
            source_sha256=run.sha256,
            space=options.space,
        ),
        options=options.write_options(digest),
    )
    return Outcome(
        source=source,
        status="converted",
        message=again,
        notes=notes + _differences(run, header),
        header=header,
    )


def background_mask(run: ReferenceRun, rule: str, first: int = 0) -> tuple[np.ndarray, str]:
    """Brain mask of a run: the voxels that differ from the background in some frame.

    Args:
        run: its frames from ``first`` on are read once.
        rule: "zero" (raw intensities), "min" (scaled ones, whose background is the run's minimum),
            or "auto": the one that the eight corners of the volume have in all frames.

    Returns:
        bool [X, Y, Z], and "nonzero" or "above_minimum".

    Raises:
        UserInputError: NaN or infinite values; corners that fit neither rule; an empty mask; all
            brain voxels equal.
    """
    lowest = np.full(run.shape, np.inf, np.float32)
    highest = -lowest
    bad_values = bad_frames = 0
    for frame in run.frames(first):
        bad = frame.size - int(np.count_nonzero(np.isfinite(frame)))
        bad_values, bad_frames = bad_values + bad, bad_frames + (bad > 0)
        np.minimum(lowest, frame, out=lowest)
        np.maximum(highest, frame, out=highest)
    if bad_values:
        raise UserInputError(
            f"{run.path}: {bad_values} NaN or infinite values in {bad_frames} of "
            f"{run.n_frames - first} frames, expected finite numbers (fp16 ends at 65,504). "
            f"Convert the NIfTI file with neuromamba preprocess."
        )
    minimum = lowest.min()
    if rule == "auto":
        corners = np.ix_(*((0, n - 1) for n in run.shape))
        values = np.unique([lowest[corners], highest[corners]])
        if values.size != 1 or values[0] not in (0, minimum):
            raise UserInputError(
                f"{run.path}: the corners of the volume are neither 0 nor the run's minimum "
                f"({minimum:g}) in all frames (from {values[0]:g} to {values[-1]:g}), so the "
                f"background is unknown. Give --background zero or --background min, or convert "
                f"the NIfTI file with neuromamba preprocess, which finds a mask."
            )
        rule = "zero" if values[0] == 0 else "min"
    mask = (lowest != 0) | (highest != 0) if rule == "zero" else highest > minimum
    if not mask.any() or lowest[mask].min() == highest[mask].max():
        raise UserInputError(
            f"{run.path}: all voxels outside the background have one value, or there are none; "
            f"expected BOLD. Check --background, or take the run from its origin again."
        )
    return mask, {"zero": "nonzero", "min": "above_minimum"}[rule]


def _brain_frames(
    run: ReferenceRun, first: int, placed: Placement, to_las: np.ndarray
) -> Iterator[np.ndarray]:
    """The brain voxels [N] of frame after frame, in the order of the target grid."""
    numbers = np.arange(math.prod(run.shape)).reshape(run.shape)
    in_frame = orientations.apply_orientation(numbers, to_las).ravel()[placed.source_index]
    for frame in run.frames(first):
        yield frame.ravel()[in_frame]


def _differences(run: ReferenceRun, header: RunHeader) -> list[str]:
    """Notes where the statistics beside the frames are not those of the frames."""
    try:
        given = run.statistics()
    except UserInputError as error:
        return [f"statistics not compared: {error}"]
    pairs = {"global_mean": header.mean, "global_std": header.std, "global_max": header.max}
    notes = []
    for name in pairs.keys() & given.keys():
        if not math.isclose(given[name], pairs[name], rel_tol=_SAME, abs_tol=_SAME * header.std):
            notes.append(f"{name} {given[name]:g} is stored, the frames give {pairs[name]:g}")
    if notes:
        notes = [f"{'; '.join(sorted(notes))}: scaled before? Values are kept as they are"]
    return notes
