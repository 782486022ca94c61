"""A scan of regional time series."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROUNDING = 1e-6  # of the largest value: some steps of single precision


class Scan(NamedTuple):
    """A scan.

    Attributes:
        subject: name.
        scan: name, no other scan has it.
        label: index of its class.
        series: float32 [N, T], unchanged from the file.
        group: what may not be split: the subject, or its family.
    """

    subject: str
    scan: str
    label: int
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
