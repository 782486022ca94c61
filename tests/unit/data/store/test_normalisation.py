"""Scaling: hand-computed numbers, and runs that cannot be scaled."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.store.header import RunSource
from neuromamba.data.store.normalisation import run_statistics, scaling_of
from neuromamba.data.store.reader import RunHeader
from neuromamba.data.store.writer import write_run

LAS = np.diag([-2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def header(tmp_path: Path) -> RunHeader:
    """A header with round numbers: y = 2 q + 1, mean 10, std 4, range 2 to 20."""
    written = write_run(
        tmp_path / "a.h5",
        np.ones((2, 1), np.float32),
        np.array([0]),
        grid=(2, 2, 2),
        affine=LAS,
        source=RunSource(subject="a", tr=1.0),
    )
    return dataclasses.replace(
        written, scale=2.0, offset=1.0, mean=10.0, std=4.0, min=2.0, max=20.0
    )


@pytest.mark.parametrize(
    ("method", "gain", "shift", "background"),
    [
        ("znorm_minback", 0.5, -2.25, -2.5),  # (1 - 10) / 4 and (0 - 10) / 4
        ("znorm_zeroback", 0.5, -2.25, 0.0),
        ("minmax_minback", 0.1, 0.05, 0.0),  # 1 / 20 and 0 / 20
        ("minmax_zeroback", 0.1, 0.05, 0.0),
    ],
)
def test_positive_run(
    header: RunHeader, method: str, gain: float, shift: float, background: float
) -> None:
    scaling = scaling_of(header, method)
    assert (scaling.gain, scaling.shift, scaling.background) == pytest.approx(
        (gain, shift, background), abs=1e-15
    )


@pytest.mark.parametrize(
    ("method", "background"),
    [("znorm_minback", -3.75), ("minmax_minback", -0.25), ("znorm_zeroback", 0.0)],
)
def test_negative_values_lower_the_background(
    header: RunHeader, method: str, background: float
) -> None:
    demeaned = dataclasses.replace(header, min=-5.0)  # (-5 - 10) / 4 and -5 / 20
    assert scaling_of(demeaned, method).background == pytest.approx(background)


def test_runs_that_cannot_be_scaled(header: RunHeader) -> None:
    with pytest.raises(UserInputError, match=r"run 'a'.*standard deviation 0"):
        scaling_of(dataclasses.replace(header, std=0.0), "znorm_minback")
    with pytest.raises(UserInputError, match=r"run 'a'.*maximum -1.*znorm"):
        scaling_of(dataclasses.replace(header, max=-1.0), "minmax_zeroback")
    with pytest.raises(UserInputError, match="Did you mean 'znorm_minback'"):
        scaling_of(header, "znorm_minbck")


def test_statistics_are_accurate_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    frames = (30000 + rng.normal(size=(50, 400))).astype(np.float32)
    exact = frames.astype(np.float64)
    found = run_statistics(frames)
    assert found.mean == pytest.approx(exact.mean(), rel=1e-14)
    assert found.std == pytest.approx(exact.std(), rel=1e-9)
    assert (found.min, found.max) == (exact.min(), exact.max())


def test_statistics_need_values() -> None:
    with pytest.raises(ValueError, match=r"T, N >= 1"):
        run_statistics(np.empty((0, 3), np.float32))
