"""One place for all runs of a store in standard space.

A run is centred on the target grid by its shape, so that images of one program need no affine to
agree. Programs differ in their boxes, though (FSL 91 x 109 x 91, SPM 79 x 95 x 79 voxels of 2 mm),
and a brain would lie up to a centimetre beside the others'. Runs that lie elsewhere than most are
therefore placed by their affine.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from neuromamba.common.errors import see
from neuromamba.data.ingest.brain_grid import resampled_grid
from neuromamba.data.ingest.options import ConversionOptions
from neuromamba.data.ingest.preflight import RunPlan
from neuromamba.data.ingest.space import space_kind, whole_voxel_offset
from neuromamba.data.store.header import Affine, RunHeader
from neuromamba.data.store.reader import affine_of


def on_one_grid(
    plans: Sequence[RunPlan], options: ConversionOptions, stored: Sequence[RunHeader]
) -> tuple[list[RunPlan], dict[str, str]]:
    """Find the grid that most runs lie on, and bring the others to it.

    Args:
        plans: runs that passed their own checks.
        options: of the conversion.
        stored: headers of the store's files that no run of ``plans`` will replace; the new runs
            follow them.

    Returns:
        The plans, with ``source.onto`` set where a run is placed by its affine, and name of a
        source -> why it cannot be placed.
    """
    standard = [plan for plan in plans if space_kind(plan.space) == "mni"]
    there = [header.affine for header in stored if space_kind(header.space) == "mni"]
    own = {plan.source.name: _centred(plan, options) for plan in standard}
    counts = Counter(_rounded(affine) for affine in there or own.values())
    if len({_rounded(affine) for affine in (*there, *own.values())}) < 2:
        return list(plans), {}
    usual = counts.most_common(1)[0][0]
    target = next(one for one in (*there, *own.values()) if _rounded(one) == usual)
    placed, refused = [], {}
    for plan in plans:
        name = plan.source.name
        if name not in own or _same(own[name], target):
            placed.append(plan)
            continue
        offset = whole_voxel_offset(plan.run.las_affine, np.array(target))
        if options.crop_offset is not None or (offset is None and options.resample is None):
            refused[name] = _reason(plan, options, target)
            continue
        note = (
            f"its box of {' x '.join(map(str, plan.run.shape))} lies elsewhere than those of the "
            f"other runs; placed by its affine"
        )
        source = dataclasses.replace(plan.source, onto=target, notes=(*plan.source.notes, note))
        placed.append(dataclasses.replace(plan, source=source, notes=(*plan.notes, note)))
    return placed, refused


def _centred(plan: RunPlan, options: ConversionOptions) -> Affine:
    """Affine of the target grid if the run is placed by its shape, or by ``--crop_offset``."""
    shape, affine = plan.run.las_shape, plan.run.las_affine
    if options.resample is not None:
        shape, affine = resampled_grid(shape, affine, options.resample)
    offset = options.crop_offset or [
        (new - old) // 2 for new, old in zip(options.img_size, shape, strict=True)
    ]
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] -= moved[:3, :3] @ np.asarray(offset, dtype=np.float64)
    return affine_of(moved)


def _same(one: Affine, other: Affine) -> bool:
    return whole_voxel_offset(np.array(one), np.array(other)) == (0, 0, 0)


def _rounded(affine: Affine) -> tuple[float, ...]:
    return tuple(float(value) for value in np.round(affine, 2).ravel() + 0.0)


def _reason(plan: RunPlan, options: ConversionOptions, target: Affine) -> str:
    beside = np.linalg.norm(np.array(_centred(plan, options))[:3, 3] - np.array(target)[:3, 3])
    remedy = "Leave --crop_offset out"
    if options.crop_offset is None:
        size = float(np.linalg.norm(np.array(target)[:3, 0]))
        remedy = f"Give --resample {round(size, 2):g}, which puts all runs on one grid"
    return (
        f"{plan.source.path}: its voxels would lie {beside:.1f} mm beside those of the other runs "
        f"of this store. {remedy}, or another --output. {see('boxes')}"
    )
