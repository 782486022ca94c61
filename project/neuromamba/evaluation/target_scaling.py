"""Turn the logits of a head into probabilities, or values in the units of the target."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor


class TargetScaling(NamedTuple):
    """Scaling of a regression target, (y - center) / scale, from the training subjects."""

    center: float
    scale: float


UNSCALED = TargetScaling(0.0, 1.0)


def standardising(values: np.ndarray) -> TargetScaling:
    """The scaling by mean and standard deviation of values [S], of the training alone."""
    return TargetScaling(float(values.mean()), float(values.std()) or 1.0)


def scores_of(logits: Tensor, task_type: str, scaling: TargetScaling) -> Tensor:
    """Return class probabilities (B, classes), or predictions (B, 1) in the target's units.

    Args:
        logits: (B, outputs) of a head.
        task_type: "classification" or "regression".
        scaling: of the target of a regression.
    """
    if task_type == "classification":
        return logits.double().softmax(-1)
    return logits.double() * scaling.scale + scaling.center
