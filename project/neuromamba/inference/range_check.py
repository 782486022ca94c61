"""A scan beside the training runs: measures out of range, other coverage, a mirrored image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.data.windows.dataset import WindowDataset
from neuromamba.data.windows.input_measures import (
    MEASURES,
    measures_of_run,
    mirror_correlations,
)
from neuromamba.fmamba.training_inputs import patch_image, patches_of
from neuromamba.inference.prepared import Comparison, Problem

_WIDER = 0.5  # of the training runs' spread, on each side
_FEW_RUNS = 5.0  # over the number of training runs, the same: their range is not well known
_LEAST = 0.1  # of the median, where runs hardly differ
_FEW_PATCHES, _MOST_PATCHES = 0.05, 0.5  # of the training's brain
_MIRRORED = 0.03  # correlation that a mirror image must have above that of any training run
_AXES = ("left and right", "front and back", "top and bottom")


def compare_with_training(
    windows: WindowDataset, inputs: Mapping[str, Any], model: ModelConfig
) -> tuple[Comparison, ...]:
    """Compare a scan's measures with those recorded of the training runs.

    Args:
        windows: of the scan.
        inputs: from ``fmamba.training_inputs``; {} gives no comparison.
        model: patch size.
    """
    if not inputs:
        return ()
    found = measures_of_run(windows, 0, model.patch_size)
    return tuple(
        compare((name, MEASURES[name]), found[name], inputs["measures"][name], inputs["runs"])
        for name in MEASURES
        if name in inputs["measures"] and None not in inputs["measures"][name]
    )


def compare(
    measure: tuple[str, str], value: float, training: Sequence[float], runs: int
) -> Comparison:
    """Compare a measure with its lowest, median and highest value over training runs.

    Args:
        measure: its name and meaning, an item of ``MEASURES``.
        value: of the scan.
        training: lowest, median and highest.
        runs: that were measured.
    """
    low, typical, high = training
    margin = max((_WIDER + _FEW_RUNS / runs) * (high - low), _LEAST * abs(typical))
    inside = bool(low - margin <= value <= high + margin) if np.isfinite(value) else None
    name, meaning = measure
    return Comparison(
        name=name,
        meaning=meaning,
        value=value,
        low=low,
        typical=typical,
        high=high,
        inside=inside,
    )


def coverage_problems(
    windows: WindowDataset, inputs: Mapping[str, Any], model: ModelConfig, *, native: bool
) -> list[Problem]:
    """Compare where the brain is with the mean image of the training runs.

    Args:
        windows: of the scan.
        inputs: from ``fmamba.training_inputs``.
        model: grid and patch size.
        native: whether the model is of native space, where brains do not lie alike.

    Raises:
        UserInputError: more than half of the training's brain is missing.
    """
    if not inputs or native:
        return []
    trained = patches_of(inputs["mean"])
    image = patch_image(windows, 0, model)
    there = np.isfinite(image)
    brain = trained > 0
    problems = []
    missing = float((brain & ~there).sum() / brain.sum())
    if missing > _MOST_PATCHES:
        raise UserInputError(
            f"{windows.headers[0].source or windows.paths[0]}: {missing:.0%} of the patches that "
            f"hold brain in most training runs are empty: the scan does not cover the brain, or "
            f"lies elsewhere. Check mask, field of view and affine."
        )
    if missing > _FEW_PATCHES:
        problems.append(
            Problem(
                f"{missing:.0%} of the patches that hold brain in most training runs are empty "
                f"here.",
                "Check the mask and the field of view; a mask can be given with --mask FILE.",
            )
        )
    extra = float((there & ~brain).sum() / brain.sum())
    if extra > 2 * _FEW_PATCHES:
        problems.append(
            Problem(
                f"patches outside the training runs' brain hold voxels: {extra:.0%} of its size.",
                "Check the mask: it may contain skull or air; give another with --mask FILE.",
            )
        )
    return problems + _mirrored(np.where(there, image, 0), trained, inputs, model)


def _mirrored(
    image: np.ndarray, trained: np.ndarray, inputs: Mapping[str, Any], model: ModelConfig
) -> list[Problem]:
    """Whether a mirror image of the scan resembles the training's mean image more than it does.

    It has to by a margin above that of every training run, since brains are nearly symmetric.
    """
    own, mirrored = mirror_correlations(image, trained, model.token_grid[:3])
    for axis, (name, found) in enumerate(zip(_AXES, mirrored, strict=True)):
        if found - own > inputs["mirror_gain"][axis] + _MIRRORED:
            return [
                Problem(
                    f"with {name} exchanged the scan resembles the mean image of the training "
                    f"more (correlation {found:.2f} against {own:.2f}).",
                    "Check the orientation in the header (fslhd, or overlay the scan on the MNI "
                    "template).",
                )
            ]
    return []
