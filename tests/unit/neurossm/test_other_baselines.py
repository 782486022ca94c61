"""The models of confounds alone, of a small network, and of harmonised features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.registry import details_of
from neuromamba.data.regions.scan import Scan
from neuromamba.neurossm.linear import LinearClassifier, Measured
from neuromamba.neurossm.other_baselines import ConfoundClassifier, MLPOnFC, shared_of

NOWHERE = Path()


def scans_of(labels: np.ndarray, rois: int = 6, frames: int = 60, seed: int = 0) -> list[Scan]:
    """The correlation of the first two regions tells the label, which is 0 to 1."""
    rng = np.random.default_rng(seed)
    found = []
    for i, label in enumerate(labels):
        series = rng.standard_normal((rois, frames)).astype(np.float32)
        series[1] += 2 * float(label) * series[0]
        value = float(label) if labels.dtype.kind == "f" else int(label)
        found.append(Scan(f"s{i}", f"s{i}", value, series, f"s{i}"))
    return found


def area(probability: np.ndarray, labels: np.ndarray) -> float:
    ones, zeros = probability[labels == 1, 1], probability[labels == 0, 1]
    return float((ones[:, None] > zeros).mean())


def test_confounds_alone_predict_what_they_tell() -> None:
    labels = np.arange(80) % 2
    scans = scans_of(labels)
    rng = np.random.default_rng(1)
    age = 20 + 10 * labels + rng.normal(scale=3, size=80)
    texts = {s.scan: (f"{age[i]:.1f}", "AB"[i % 3 == 0]) for i, s in enumerate(scans)}
    texts["s3"] = ("", "A")  # no age
    texts["s70"] = ("25.0", "C")  # a site that the training lacks
    model = ConfoundClassifier(("age", "site"), texts)
    told = model.fit(scans[:60], 0, NOWHERE)(scans[60:])
    assert told.shape == (20, 2) and np.isfinite(told).all()
    assert area(told, labels[60:]) > 0.9
    other = ConfoundClassifier(("age", "site"), {**texts, "s5": ("99", "A")})
    assert other.settings() != model.settings()


def test_the_network_reads_a_planted_correlation() -> None:
    labels = np.arange(160) % 2
    scans = scans_of(labels)
    told = MLPOnFC(Measured()).fit(scans[:120], 0, NOWHERE)(scans[120:])
    assert told.shape == (40, 2)
    assert area(told, labels[120:]) > 0.9
    again = MLPOnFC(Measured()).fit(scans[:120], 0, NOWHERE)(scans[120:])
    np.testing.assert_array_equal(told, again)


def test_the_network_predicts_values_in_their_units() -> None:
    values = 30 + 20 * np.random.default_rng(3).random(160)
    scans = [
        scan._replace(label=float(value))
        for scan, value in zip(scans_of((values - 30) / 20), values, strict=True)
    ]
    told = MLPOnFC(Measured()).fit(scans[:120], 0, NOWHERE)(scans[120:])
    assert told.shape == (40, 1)
    assert np.corrcoef(told[:, 0], values[120:])[0, 1] > 0.7
    assert abs(told.mean() - 40) < 4


def test_harmonised_features_differ_in_the_site_that_differs() -> None:
    labels = np.arange(60) % 2
    scans = scans_of(labels)
    rng = np.random.default_rng(2)
    sites = {}
    for i, scan in enumerate(scans):
        sites[scan.scan] = "AB"[i // 2 % 2]
        if sites[scan.scan] == "B":  # all regions share noise at this site
            scan.series[:] += 2 * rng.standard_normal(scan.series.shape[1])
    measured = Measured()
    plain = LinearClassifier("FC", measured).features(scans[:40])[1](scans[40:])
    column = {"column": "site", "sites": sites}
    after = LinearClassifier("FC-ComBat", measured, **column).features(scans[:40])[1](scans[40:])
    of_b = np.array([sites[scan.scan] == "B" for scan in scans[40:]])

    def apart(x: np.ndarray) -> float:
        return float(np.abs(x[of_b].mean(0) - x[~of_b].mean(0)).mean())

    assert apart(after) < 0.4 * apart(plain)


def test_columns_are_read_of_scans_and_refused_where_they_lack_values() -> None:
    scans = scans_of(np.arange(4) % 2)
    rows = tuple({"site": site, "age": "7"} for site in ("A", "B", "A", ""))
    cohort = Cohort("Own", details_of("Own", "x", "group", 10), tuple(scans), rows=rows)
    found = shared_of(cohort, None, ("age", "site"), None)
    assert found.texts["s1"] == ("7", "B") and found.column == ""
    with pytest.raises(UserInputError, match="--harmonise site: 1 of 4 scans have no value"):
        shared_of(cohort, None, (), "site")
    with pytest.raises(UserInputError, match="--harmonise age: all 4 scans have the value '7'"):
        shared_of(cohort, None, (), "age")
