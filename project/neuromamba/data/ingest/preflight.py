"""What will become of a run, from its header alone; and what only shows beside the other runs."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.nifti import NiftiRun, damaged, file_sha256
from neuromamba.data.ingest.options import MASK_RULES, ConversionOptions
from neuromamba.data.ingest.repetition_time import read_sidecar_tr, resolve_tr
from neuromamba.data.ingest.sources import Source
from neuromamba.data.ingest.space import (
    space_kind,
    space_of_run,
    voxel_sizes,
    whole_voxel_offset,
)
from neuromamba.data.store.header import RunHeader

Sizes = tuple[float, float, float]
_SAME_SIZE = 0.01  # relative
_BRAIN_MM3 = 1.9e6  # of the MNI152 brain, to estimate the size of a file
_BLOCK = 1 << 16  # bytes read from start, middle and end of files of one size


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run that passed the checks of its header.

    Attributes:
        source: the file.
        run: its header.
        n_frames: frames that will be stored.
        tr, tr_source, sidecar_tr: see ``RunHeader``; what the sidecar says.
        mask: mask image that will be used; None where the data decide.
        space, space_basis: name of the space, and what tells it.
        action: what happens to the voxels.
        notes: warnings.
    """

    source: Source
    run: NiftiRun
    n_frames: int
    tr: float
    tr_source: str
    sidecar_tr: float | None
    mask: Path | None
    space: str
    space_basis: str
    action: str
    notes: tuple[str, ...]

    def digest(self, options: ConversionOptions) -> str:
        """Hash of everything but the source that determines the stored file."""
        mask_hash = file_sha256(self.mask) if self.mask else ""
        layout_tr = self.tr if self.tr_source == "layout" else None
        return options.digest(mask_hash, self.sidecar_tr, layout_tr)

    def bytes_expected(self, options: ConversionOptions) -> int:
        """Estimate of the stored file's size."""
        voxel = (
            math.prod(voxel_sizes(self.run.affine))
            if options.resample is None
            else options.resample**3
        )
        return 2 * self.n_frames * int(min(_BRAIN_MM3 / voxel, math.prod(options.img_size)))


def plan_run(source: Source, options: ConversionOptions) -> RunPlan:
    """Check a run by its names and its header.

    Raises:
        UserInputError: why the run is not converted.
    """
    if source.error:
        raise UserInputError(source.error)
    run = NiftiRun(source.path)
    n_frames = options.kept_frames(source.path, run.n_frames)
    moved = options.resample is not None or options.onto is not None
    space, basis, notes = space_of_run(run, source.space, options.space, source.remedy, moved)
    sidecar_tr = read_sidecar_tr(source.sidecar)
    tr, tr_source, note = resolve_tr(
        run.header_tr, run.time_unit, sidecar_tr, options.tr, source.layout_tr
    )
    mask = source.mask if options.mask == "auto" else None
    if options.mask not in MASK_RULES:
        mask = Path(options.mask)
    return RunPlan(
        source=source,
        run=run,
        n_frames=n_frames,
        tr=tr,
        tr_source=tr_source,
        sidecar_tr=sidecar_tr,
        mask=mask,
        space=space,
        space_basis=basis,
        action=_action(run, options),
        notes=(*source.notes, *notes, *([note] if note else [])),
    )


def _action(run: NiftiRun, options: ConversionOptions) -> str:
    import nibabel

    axes = "".join(str(code) for code in nibabel.aff2axcodes(run.affine))
    if options.onto is not None:
        offset = whole_voxel_offset(run.las_affine, np.asarray(options.onto))
        if offset is not None:
            return f"{axes}, offset {' '.join(map(str, offset))}"
        size = _text(voxel_sizes(np.asarray(options.onto)))
        return f"{axes}, resample onto a grid of {size} mm"
    if options.resample is not None:
        return f"{axes}, resample to {options.resample:g} mm"
    if options.crop_offset is not None:
        return f"{axes}, offset {' '.join(map(str, options.crop_offset))}"
    steps = [new - old for new, old in zip(options.img_size, run.las_shape, strict=True)]
    crop = " ".join(str(max(0, -step)) for step in steps)
    pad = " ".join(str(max(0, step)) for step in steps)
    done = [f"crop {crop}"] if any(step < 0 for step in steps) else []
    done += [f"pad {pad}"] if any(step > 0 for step in steps) else []
    return f"{axes}, {', '.join(done) or 'grid kept'}"


# Beside the other runs ----------------------------------------------------------------------------


def odd_ones_out(
    plans: Sequence[RunPlan], options: ConversionOptions, stored: Sequence[RunHeader]
) -> dict[str, str]:
    """Name of a source -> why it does not fit to the others: voxel size, or the same file twice.

    Args:
        plans: all runs of the input folder that passed their own checks.
        options: of the conversion.
        stored: headers of the store's files that no run of ``plans`` will replace.

    Raises:
        UserInputError: the store holds runs of another kind of space.
    """
    if not plans:
        return {}
    kinds = {space_kind(header.space) for header in stored} - {""}
    new = space_kind(plans[0].space)
    if kinds and kinds != {new}:
        raise UserInputError(
            f"--output: the store holds runs in the space "
            f"'{next(h.space for h in stored if space_kind(h.space) not in ('', new))}', these are "
            f"in '{plans[0].space}'. Choose another folder: a store is of one space."
        )
    return _duplicates(plans) | _other_voxel_sizes(plans, options, stored)


def _other_voxel_sizes(
    plans: Sequence[RunPlan], options: ConversionOptions, stored: Sequence[RunHeader]
) -> dict[str, str]:
    sizes = [voxel_sizes(np.asarray(header.affine)) for header in stored]
    of_plans = [voxel_sizes(plan.run.las_affine) for plan in plans]
    if options.resample is not None:
        of_plans = [(options.resample,) * 3] * len(plans)
    counts = Counter(tuple(round(edge, 2) for edge in size) for size in [*sizes, *of_plans])
    usual = counts.most_common(1)[0][0]
    refused = {}
    for plan, size in zip(plans, of_plans, strict=True):
        if not np.allclose(size, usual, rtol=_SAME_SIZE):
            refused[plan.source.name] = (
                f"{plan.source.path}: voxels of {_text(size)} mm, expected {_text(usual)} mm as "
                f"{counts[usual]} other run(s) of this store. Give --resample "
                f"{round(float(np.mean(usual)), 2):g} for all, or another --output."
            )
    return refused


def _text(size: Sequence[float]) -> str:
    return " x ".join(f"{edge:.4g}" for edge in size)


def _duplicates(plans: Sequence[RunPlan]) -> dict[str, str]:
    """Runs whose file has the bytes of an earlier one's."""
    refused: dict[str, str] = {}
    by_size: dict[int, list[RunPlan]] = {}
    for plan in plans:
        by_size.setdefault(os.stat(plan.source.path).st_size, []).append(plan)
    for same_size in by_size.values():
        for suspects in _groups(same_size, _fingerprint):
            for same in _groups(suspects, file_sha256):
                for plan in same[1:]:
                    refused[plan.source.name] = (
                        f"{plan.source.path}: the same file as {same[0].source.name}, under "
                        f"another name. Remove one of them: a subject must not be in a store twice."
                    )
    return refused


def _groups(plans: Sequence[RunPlan], key: Callable[[Path], str]) -> list[list[RunPlan]]:
    """Those of two and more runs whose files have the same key."""
    if len(plans) < 2:
        return []
    groups: dict[str, list[RunPlan]] = {}
    for plan in plans:
        groups.setdefault(key(plan.source.path), []).append(plan)
    return [group for group in groups.values() if len(group) > 1]


def _fingerprint(path: Path) -> str:
    """Hash of a few blocks: equal for equal files, and cheap."""
    size = path.stat().st_size
    found = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for start in (0, size // 2, max(0, size - _BLOCK)):
                stream.seek(start)
                found.update(stream.read(_BLOCK))
    except OSError as error:
        raise damaged(path, error) from None
    return found.hexdigest()


def plan_folder(
    sources: Sequence[Source], options: ConversionOptions, stored: Mapping[str, RunHeader]
) -> tuple[list[RunPlan], list[Source]]:
    """Check all runs of a folder.

    Args:
        sources: the runs.
        options: of the conversion.
        stored: header of each file that the store holds, by name.

    Returns:
        The plans of the runs that passed, and all sources, those refused with their ``error``.
    """
    plans: list[RunPlan] = []
    errors: dict[str, str] = {}
    for source in tqdm(
        sources, "headers", unit="run", leave=False, disable=not sys.stderr.isatty()
    ):
        try:
            plans.append(plan_run(source, options))
        except UserInputError as error:
            errors[source.name] = str(error)
        except Exception as error:  # one odd file must not hide the others
            errors[source.name] = f"{source.path}: unexpected {type(error).__name__}: {error}"
    outputs = {source.output for source in sources}
    kept = [header for name, header in stored.items() if name not in outputs]
    errors |= odd_ones_out(plans, options, kept)
    checked = [
        source.refused(errors[source.name]) if source.name in errors else source
        for source in sources
    ]
    return [plan for plan in plans if plan.source.name not in errors], checked
