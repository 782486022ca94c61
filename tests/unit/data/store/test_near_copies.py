"""One scan under the names of two people is found, whatever its offset, unit or rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.cohorts.leak_guards import refuse_copies
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.store.near_copies import near_copies
from neuromamba.data.store.reader import read_header
from tests.helpers.store_files import write_store_file

VOX = np.arange(0, 1000, 3)
AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])


def write(folder: Path, subject: str, bold: np.ndarray, run: str = "") -> Path:
    path = folder / f"{subject}{run}.h5"
    write_store_file(
        path,
        bold.astype(np.float32),
        VOX,
        subject=subject,
        run=run,
        tr=2.0,
        grid=(10, 10, 10),
        affine=AFFINE,
    )
    return path


def bold(seed: int) -> np.ndarray:
    """The same mean image for everybody, and changes of one's own."""
    anatomy = 1000 + 300 * np.sin(VOX / 40)
    return anatomy + np.random.default_rng(seed).normal(0, 20, (30, len(VOX)))


def found(*paths: Path) -> list[tuple[str, str]]:
    headers = [read_header(path) for path in paths]
    copies = near_copies(paths, headers, DATASETS["Own"].key)
    return [(copy.one.subject, copy.other.subject) for copy in copies]


@pytest.mark.parametrize(
    "changed",
    [
        lambda values: values,
        lambda values: 2 * values + 5,  # other units
        lambda values: np.rint(values / 2),  # coarser
        lambda values: values - values.mean(axis=0),  # demeaned
    ],
    ids=["same", "scaled", "rounded", "demeaned"],
)
def test_a_copy_is_found(tmp_path: Path, changed: object) -> None:
    one = write(tmp_path, "sub-01", bold(1))
    other = write(tmp_path, "sub-02", changed(bold(1)))  # type: ignore[operator]
    third = write(tmp_path, "sub-03", bold(3))
    assert found(one, other, third) == [("sub-01", "sub-02")]


def test_scans_of_one_person_and_constant_ones_are_left_alone(tmp_path: Path) -> None:
    runs = [write(tmp_path, "sub-01", bold(1), run) for run in ("1", "2")]
    constant = [write(tmp_path, name, 0 * bold(1) + 7) for name in ("sub-04", "sub-05")]
    same_name = write(tmp_path, "01", bold(1))
    assert found(*runs, *constant, same_name) == []


def test_a_split_is_not_drawn(tmp_path: Path) -> None:
    paths = [write(tmp_path, "sub-01", bold(1)), write(tmp_path, "sub-02", 3 * bold(1))]
    headers = [read_header(path) for path in paths]
    with pytest.raises(UserInputError, match=r"1 pair\(s\) .* sub-01 and sub-02.*--bad_subj_path"):
        refuse_copies(paths, headers, DATASETS["Own"])
