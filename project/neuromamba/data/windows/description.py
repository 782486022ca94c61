"""What a run prints of its data: stores, parts of the split, targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuromamba.data.cohorts.splits import PARTS
from neuromamba.data.windows.run_data import RunData


def describe(data: RunData) -> list[str]:
    """Return one line per store, with its runs and split units, and one per part of the targets."""
    lines = []
    for number, store in enumerate(data.stores):
        counts = ", ".join(f"{part} {len(data.subjects[part][number])}" for part in PARTS)
        lines.append(
            f"{store.dataset} ({store.image_path}): {len(store.paths)} runs, "
            f"{store.grouping.split_unit}s {counts}"
        )
    return lines + (_targets(data) if data.task is not None else [])


def _targets(data: RunData) -> list[str]:
    """Classes with their numbers in each part, or range, mean and standard deviation."""
    assert data.task is not None
    parts = {part: found for part in PARTS if (found := data.targets_of_samples(part))}
    if data.task.task_type == "regression":
        return [_values(f"{data.task.task}, {part}", found) for part, found in parts.items()]
    return [
        f"{data.task.task}, {part}: "
        + ", ".join(f"{found.count(i)} {name}" for i, name in enumerate(data.task.class_names))
        for part, found in parts.items()
    ]


def _values(what: str, values: Sequence[float]) -> str:
    """Describe values of a regression in one line: number, range, mean, standard deviation."""
    array = np.asarray(values, dtype=np.float64)
    spread = f", SD {array.std(ddof=1):.4g}" if len(array) > 1 else ""
    return (
        f"{what}: {len(array)} values from {array.min():.6g} to {array.max():.6g}, mean "
        f"{array.mean():.4g}{spread}"
    )
