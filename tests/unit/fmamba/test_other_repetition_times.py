"""Repetition times of a model and of the runs that it reads are compared, where both are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from neuromamba.fmamba.weights import warn_of_other_repetition_times


@pytest.mark.parametrize(
    ("model", "runs", "named"),
    [
        ([2.0], [2.0, 2.15], ""),
        ([0.72, 2.0], [0.75, 1.9], ""),
        ([2.0], [2.0, 0.72], "2 s, and there are runs of 0.72 s"),
        ([0.72, 2.0], [3.0], "0.72 and 2 s, and there are runs of 3 s"),
        ([], [3.0], ""),
        ([float("nan"), 0.0], [3.0], ""),
        ([2.0], [float("nan"), 0.0], ""),
    ],
)
def test_only_known_times_that_differ_are_named(
    model: list[float], runs: list[float], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    headers = [SimpleNamespace(tr=tr) for tr in runs]
    data = cast(Any, SimpleNamespace(stores=[SimpleNamespace(headers=headers)]))
    warn_of_other_repetition_times({"data": {"tr": model}}, data, "--load_model_path")
    assert bool(caplog.text) == bool(named) and named in caplog.text
