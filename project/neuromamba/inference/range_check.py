"""A scan beside the training runs: measures out of range, other coverage, a mirrored image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from neuromamba.config.model import ModelConfig
from neuromamba.data.windows.dataset import WindowDataset
from neuromamba.data.windows.input_measures import MEASURES, measures_of_run
from neuromamba.fmamba.training_inputs import patch_image, patches_of
from neuromamba.inference.prepared import Comparison, Problem

_WIDER = 0.5  # of the training runs' spread, on each side
_LEAST = 0.1  # of the median, where runs hardly differ
_FEW_PATCHES = 0.05  # of the training's brain
_MIRRORED = 0.02  # correlation that a mirror image must have above the scan's own
_AXES = {0: "left and right", 1: "front and back", 2: "top and bottom"}


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
        _compare(name, found[name], inputs["measures"][name])
        for name in MEASURES
        if name in inputs["measures"] and None not in inputs["measures"][name]
    )


def _compare(name: str, value: float, training: list[float]) -> Comparison:
    low, typical, high = training
    margin = max(_WIDER * (high - low), _LEAST * abs(typical))
    inside = bool(low - margin <= value <= high + margin) if np.isfinite(value) else None
    return Comparison(name=name, value=value, low=low, typical=typical, high=high, inside=inside)


def coverage_problems(
    windows: WindowDataset, inputs: Mapping[str, Any], model: ModelConfig, *, native: bool
) -> list[Problem]:
    """Compare where the brain is with the mean image of the training runs.

    Args:
        windows: of the scan.
        inputs: from ``fmamba.training_inputs``.
        model: grid and patch size.
        native: whether the model is of native space, where brains do not lie alike.
    """
    if not inputs or native:
        return []
    trained = patches_of(inputs["mean"])
    image = patch_image(windows, 0, model)
    there = np.isfinite(image)
    brain = trained > 0
    problems = []
    missing = float((brain & ~there).sum() / brain.sum())
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
    return problems + _mirrored(np.where(there, image, 0), trained, model)


def _mirrored(image: np.ndarray, trained: np.ndarray, model: ModelConfig) -> list[Problem]:
    """Whether a mirror image of the scan resembles the training's mean image more than it does."""
    grid = model.token_grid[:3]
    own, mean = image.reshape(grid), trained.reshape(grid)
    if not own.any() or own.std() == 0:
        return []
    with np.errstate(invalid="ignore"):
        upright = np.corrcoef(own.ravel(), mean.ravel())[0, 1]
        mirrored = {
            axis: np.corrcoef(_flipped(own, axis).ravel(), mean.ravel())[0, 1] for axis in _AXES
        }
    axis, best = max(mirrored.items(), key=lambda item: item[1])
    if not best > upright + _MIRRORED:
        return []
    return [
        Problem(
            f"with {_AXES[axis]} exchanged the scan resembles the mean image of the training more "
            f"(correlation {best:.2f} against {upright:.2f}).",
            "Check the orientation in the header (fslhd, or overlay the scan on the MNI template).",
        )
    ]


def _flipped(image: np.ndarray, axis: int) -> np.ndarray:
    """Mirror about the middle of the patches with brain, so that the brain stays in its place."""
    there = np.flatnonzero(image.any(axis=tuple({0, 1, 2} - {axis})))
    flipped = np.zeros_like(image)
    span = slice(there[0], there[-1] + 1)
    index: list[slice] = [slice(None)] * 3
    index[axis] = span
    flipped[tuple(index)] = np.flip(image[tuple(index)], axis)
    return flipped
