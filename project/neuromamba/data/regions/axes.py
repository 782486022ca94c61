"""Which axis of a matrix is time, and whether it is one of time at all.

Haemodynamics is slow, so neighbouring frames are alike; neighbouring regions of an atlas are so far
less on average. A matrix of correlations is symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neuromamba.common.errors import see
from neuromamba.common.text import some_of
from neuromamba.data.regions.scan import Scan
from neuromamba.data.regions.scan_files import ScanFile

_TURNED = 0.1  # autocorrelation along the regions above that along time
_SOME = 50  # scans that are looked at, evenly spaced


def check_axes(scans: Sequence[Scan], file: ScanFile, *, told: bool) -> None:
    """Refuse matrices of correlations, and those that look like time x regions.

    Args:
        scans: oriented as regions x time.
        file: for messages.
        told: whether the user has said which axis is time.

    Raises:
        UserInputError: names scans and the remedy.
    """
    symmetric = [scan.scan for scan in scans if is_symmetric(scan.series)]
    if symmetric:
        raise file.error(
            f"holds symmetric matrices in {len(symmetric)} scans ({some_of(symmetric, 3)}): "
            f"correlations and no time series. Give the series (regions x time) they were made of."
        )
    if told:
        return
    if turned := looks_turned([scan.series for scan in scans]):
        raise file.error(
            f"holds matrices that look like time x regions: neighbouring values are more alike "
            f"along the first axis (correlation {turned.regions:.2f}) than along the second "
            f"({turned.time:.2f}) in {turned.share:.0%} of the scans, and time series are smooth "
            f"in time. Give --orientation time_by_regions, or regions_by_time if the second axis "
            f"is time indeed. {see('turned-matrices')}"
        )


class Turned(NamedTuple):
    """Why matrices look turned.

    Attributes:
        time, regions: median lag-1 autocorrelation along what is taken for time, and for regions.
        share: of the scans in which that along the regions is larger.
    """

    time: float
    regions: float
    share: float


def looks_turned(series: Sequence[np.ndarray]) -> Turned | None:
    """Whether matrices taken as regions x time look like time x regions; None if they do not.

    Args:
        series: [N, T] of each scan; some of them are looked at.
    """
    chosen = np.unique(np.linspace(0, len(series) - 1, _SOME).astype(int))
    along = np.array([[_lag1(series[i]), _lag1(series[i].T)] for i in chosen])
    if not np.isfinite(along).any(axis=0).all():
        return None
    time, regions = np.nanmedian(along, axis=0)
    if regions > time + _TURNED and regions > 2 * abs(time):
        return Turned(time, regions, float(np.nanmean(along[:, 1] > along[:, 0])))
    return None


def is_symmetric(series: np.ndarray) -> bool:
    """Whether a matrix is one of correlations."""
    square = series.shape[0] == series.shape[1] > 2
    return bool(square and np.allclose(series, series.T, rtol=1e-4, atol=1e-6))


def _lag1(series: np.ndarray) -> float:
    """Mean over rows of the lag-1 autocorrelation; NaN if no row varies."""
    centred = series.astype(np.float64)
    centred -= centred.mean(axis=1, keepdims=True)
    power = np.square(centred).sum(axis=1)
    moves = power > 0
    if series.shape[1] < 4 or not moves.any():
        return float("nan")
    product = (centred[moves, 1:] * centred[moves, :-1]).sum(axis=1)
    return float(np.mean(product / power[moves]))
