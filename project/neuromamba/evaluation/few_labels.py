"""Learning from few labelled subjects: draws of them, and curves over their number.

All models that are compared learn from the same subjects in each draw and are tested on the same
test subjects, so that their difference is taken draw by draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from neuromamba.evaluation.intervals import CONFIDENCE, Interval

DEFAULT_LABELS = (2, 4, 8, 16, 32)


def draw_subjects(
    classes: Mapping[str, int | float], per_class: int, *, draw: int, seed: int = 0
) -> list[str]:
    """Draw labelled subjects, as many of each class.

    Args:
        classes: subject -> class, of the training subjects.
        per_class: subjects of each class.
        draw: number of the draw. A smaller number of subjects is a subset of a larger one of the
            same draw.
        seed: of all draws.

    Returns:
        Their names, sorted.

    Raises:
        ValueError: a class has fewer subjects.
    """
    chosen: list[str] = []
    for label in sorted(set(classes.values())):
        names = sorted(name for name, one in classes.items() if one == label)
        if len(names) < per_class:
            raise ValueError(f"class {label} has {len(names)} subjects, asked for {per_class}")
        order = np.random.default_rng([seed, draw, int(label)]).permutation(len(names))
        chosen += [names[i] for i in order[:per_class]]
    return sorted(chosen)


def mean_over_draws(values: Sequence[float]) -> Interval:
    """Mean over draws with Student's t interval; its bounds are NaN for a single draw.

    It says how much the choice of labelled subjects (and the training's seed) matters. The test
    subjects are the same in all draws and are not drawn.
    """
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2 or math.isnan(mean):
        return Interval(mean, math.nan, math.nan)
    wide = stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)
    half = float(wide * found.std(ddof=1) / math.sqrt(len(found)))
    return Interval(mean, mean - half, mean + half)
