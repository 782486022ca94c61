"""Measures of a scan's regional series, by which a new scan is compared with those of a training.

Only what the z-scoring of regions leaves: units and offsets do not count.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# Name -> what it is.
MEASURES = {
    "frames": "frames of the scan",
    "lag1": "lag-1 autocorrelation, mean over regions",
    "correlation": "mean absolute correlation between regions",
    "constant": "share of regions without signal",
}


def measures_of_series(series: np.ndarray) -> dict[str, float]:
    """Measure a scan [N, T]; NaN where not defined."""
    wide = series.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    power = np.square(centred).sum(axis=1)
    live = np.ptp(wide, axis=1) > 0
    found = {"frames": float(series.shape[1]), "constant": float(1 - live.mean())}
    with np.errstate(invalid="ignore", divide="ignore"):
        lag = (centred[:, 1:] * centred[:, :-1]).sum(axis=1) / power
    found["lag1"] = float(lag[live].mean()) if live.any() else float("nan")
    found["correlation"] = float("nan")
    if live.sum() > 1:
        unit = centred[live] / np.sqrt(power[live])[:, None]
        matrix = np.abs(unit @ unit.T)
        count = len(unit)
        found["correlation"] = float((matrix.sum() - np.trace(matrix)) / (count * (count - 1)))
    return {name: found[name] for name in MEASURES}


def measures_of_scans(scans: Iterable[np.ndarray]) -> dict[str, list[float | None]]:
    """Name -> lowest, median and highest over scans; null where not defined."""
    rows = [measures_of_series(series) for series in scans]
    found: dict[str, list[float | None]] = {}
    for name in MEASURES:
        values = [row[name] for row in rows if np.isfinite(row[name])]
        found[name] = [float(f(values)) for f in (np.min, np.median, np.max)] if values else []
        found[name] = found[name] or [None, None, None]
    return found
