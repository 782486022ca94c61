"""Files of results that both model families write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.evaluation.result_files import (
    Predictions,
    curve,
    read_predictions,
    write_predictions,
    write_record,
)


@pytest.mark.parametrize("sample", ["window", "scan"])
@pytest.mark.parametrize("kind", [int, float])
def test_predictions_come_back_as_they_were(tmp_path: Path, sample: str, kind: type) -> None:
    rng = np.random.default_rng(0)
    score = rng.random((5, 3 if kind is int else 1))
    given = Predictions(list("aabbc"), list("01010"), np.arange(5).astype(kind), score)
    path = tmp_path / "predictions.csv"
    write_predictions(given, path, sample)
    columns = ["prob_0", "prob_1", "prob_2"] if kind is int else ["prediction"]
    assert path.read_text().splitlines()[0] == ",".join(["subject", sample, "target", *columns])
    found = read_predictions(path, "")
    assert (found.subject, found.sample) == (given.subject, given.sample)
    assert found.target.dtype.kind == given.target.dtype.kind
    np.testing.assert_array_equal(found.target, given.target)
    np.testing.assert_array_equal(found.score, given.score)


def test_a_file_without_samples_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("subject,target,prob_0,prob_1\nx,1,0.25,0.75\n")
    assert read_predictions(tmp_path / "p.csv", "").sample == [""]


def test_what_to_do_about_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"cannot be read .* Run it"):
        read_predictions(tmp_path / "p.csv", "Run it.")


def test_numbers_that_are_not_defined_are_null(tmp_path: Path) -> None:
    record = {"a": float("nan"), "b": [1.5, float("inf")], 3: {"c": (None, "NaN")}}
    write_record(record, tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == {"a": None, "b": [1.5, None], "3": {"c": [None, "NaN"]}}


def test_a_curve_is_read_by_optimiser_steps() -> None:
    text = "epoch,step,train/loss,val/loss\n0,4,2.5,\n0,9,,1.5\n1,9,2.0,\n"
    steps, values = curve(text, "train/loss")
    assert steps.tolist() == [5, 10] and values.tolist() == [2.5, 2.0]
    assert curve(text, "never")[0].size == 0
