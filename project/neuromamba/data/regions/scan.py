"""A scan of regional time series."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from neuromamba.common.errors import UserInputError

ROUNDING = 1e-6  # of the largest value: some steps of single precision


class Scan(NamedTuple):
    """A scan.

    Attributes:
        subject: name.
        scan: name, no other scan has it.
        label: index of its class; of a regression the value.
        series: float32 [N, T], unchanged from the file.
        group: what may not be split: the subject, or its family.
    """

    subject: str
    scan: str
    label: int | float
    series: np.ndarray
    group: str


def constant_regions(series: np.ndarray) -> np.ndarray:
    """Regions without signal, bool [N]: their changes over time are rounding errors.

    Args:
        series: float32 [N, T].
    """
    largest = np.abs(series).max(axis=1)
    found = np.zeros(len(series), dtype=bool)
    near = np.flatnonzero(np.ptp(series, axis=1) <= 1e3 * ROUNDING * largest)  # quick to have
    for region in near:
        deviation = series[region].astype(np.float64).std()
        found[region] = deviation <= ROUNDING * largest[region]
    return found


def number_matrix(series: Any, start: str) -> np.ndarray:
    """Return the series of a scan as a matrix [N, T] of real numbers, of any type.

    Args:
        series: what a file holds.
        start: of the message, which what was found follows.

    Raises:
        UserInputError: it is something else, or empty.
    """
    try:
        found = np.asarray(series)
    except ValueError:  # rows of different lengths
        found = np.empty(0, dtype=object)
    if found.ndim != 2 or found.dtype.kind not in "fiu" or not found.size:
        raise UserInputError(
            f"{start} {found.dtype} of shape {found.shape}, expected a matrix of numbers, regions "
            f"x time."
        )
    return found
