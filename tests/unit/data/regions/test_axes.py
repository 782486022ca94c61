"""Turned matrices, correlations instead of series, near-constant regions, names of subjects."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.axes import looks_turned
from neuromamba.data.regions.batches import z_scored
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.registry import DATASETS

OWN = replace(
    DATASETS["PPMI"], rois=None, frames=(), target="dx", labels={}, classes=(), atlas=None
)


def smooth(seed: int, regions: int = 20, frames: int = 60, strength: float = 0.6) -> np.ndarray:
    """Noise that is smooth in time."""
    noise = np.random.default_rng(seed).standard_normal((regions, frames))
    for t in range(1, frames):
        noise[:, t] += strength * noise[:, t - 1]
    return noise.astype(np.float32)


def load(
    folder: Path, matrices: list[Any], names: list[Any] | None = None, **options: Any
) -> Cohort:
    names = names or [f"{i}" for i in range(len(matrices))]
    labels = options.pop("labels", ["a", "b"])
    scans = [
        {"roiTimeseries": m, "pheno": {"subjectId": n, "dx": labels[i % len(labels)]}}
        for i, (m, n) in enumerate(zip(matrices, names, strict=True))
    ]
    (folder / "mine.pickle").write_bytes(pickle.dumps(scans))
    return load_cohort("Own", OWN, folder, data_file=folder / "mine.pickle", **options)


@pytest.mark.parametrize("shape", [(20, 60), (30, 24), (24, 24)])
def test_time_by_regions_is_refused_and_turned_on_request(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    right = [smooth(i, *shape) for i in range(8)]
    turned = [one.T.copy() for one in right]
    assert load(tmp_path, right).rois == shape[0]
    with pytest.raises(UserInputError, match="--orientation time_by_regions"):
        load(tmp_path, turned)
    found = load(tmp_path, turned, orientation="time_by_regions")
    assert np.array_equal(found.scans[3].series, right[3])
    assert load(tmp_path, turned, orientation="regions_by_time").rois == shape[1]


def test_white_noise_is_not_judged(tmp_path: Path) -> None:
    assert load(tmp_path, [smooth(i, strength=0.0) for i in range(6)]).rois == 20


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_correlations_are_no_series(tmp_path: Path, scale: float) -> None:
    matrices = [scale * np.corrcoef(smooth(i)) for i in range(4)]
    for options in ({}, {"orientation": "regions_by_time"}):
        with pytest.raises(UserInputError, match="symmetric matrices in 4 scans"):
            load(tmp_path, matrices, **options)


@pytest.mark.parametrize("level", [0.7, 1000.0, -3e5])
def test_a_region_with_rounding_noise_is_constant(level: float) -> None:
    """Its noise was z-scored to that of a signal."""
    series = smooth(1)
    rounding = np.random.default_rng(2).choice([0, 1], 60) * np.spacing(np.float32(level))
    series[4] = np.float32(level) + rounding
    z = z_scored(series)
    assert torch.equal(z[4], torch.zeros(60))
    assert torch.allclose(z[5].std(unbiased=False), torch.tensor(1.0))


@pytest.mark.parametrize("names", [["1", 1.0], ["sub-0001", "1"], ["1.0", "sub-1"], [1, 1.0]])
def test_one_person_under_two_names_is_refused(tmp_path: Path, names: list[Any]) -> None:
    """[20 ids_float] 38 of 43 held-out people had been trained on."""
    matrices = [smooth(i) for i in range(4)]
    with pytest.raises(UserInputError, match="seem to be one subject"):
        load(tmp_path, matrices, [*names, "7", "8"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["1", "2", "-9999"], "-9999 is probably a code"),
        (["case", "Case", "control"], "differ only by case"),
        ([f"{20 + i / 3:.3f}" for i in range(30)], "values and not classes"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, labels: list[str], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        load(tmp_path, [smooth(i) for i in range(30)], labels=labels)


@pytest.mark.parametrize("missing", ["NA", "None", "n/a", "", "-9999"])
def test_missing_labels_are_left_out(tmp_path: Path, missing: str) -> None:
    matrices = [smooth(i) for i in range(9)]
    codes = ("-9999",) if missing == "-9999" else ()
    cohort = load(tmp_path, matrices, labels=["a", "b", missing], missing_codes=codes)
    assert cohort.details.classes == ("a", "b")
    assert len(cohort.scans) == 6
    assert any("dx: 3 a, 3 b (scans)." in note for note in cohort.notes)


def test_values_near_the_end_of_single_precision() -> None:
    """Sums of them overflow in single precision; warnings are errors here."""
    series = (1e38 * np.sin(np.arange(400) / 9)).reshape(10, 40).astype(np.float32)
    assert looks_turned([series, series]) is None
