"""No scan is trained on under one name and tested under another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.leaks import check_copies, check_spellings
from neuromamba.data.regions.scan import Scan
from neuromamba.data.regions.scan_files import ScanFile

FILE = ScanFile(Path("x.pickle"))


def scan(name: str, series: np.ndarray, group: str | None = None) -> Scan:
    return Scan(name, name, 0, series.astype(np.float32), group or name)


def random(seed: int, frames: int = 30, regions: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(regions, frames)).cumsum(axis=1)


@pytest.mark.parametrize(
    ("changed", "how"),
    [
        (lambda x: x, "the same values in scans a and b"),
        (lambda x: 3 * x + 100, "the same values but for their offset and unit in scans a and b"),
        (lambda x: (x.T / x.std(1)).T, "the same values but for their offset and unit"),
    ],
)
def test_a_copy_in_another_group_is_refused(changed: object, how: str) -> None:
    assert callable(changed)
    scans = [scan("c", random(1)), scan("a", random(0)), scan("b", changed(random(0)))]
    with pytest.raises(UserInputError, match=how):
        check_copies(scans, FILE)
    together = [scans[0], *(one._replace(group="family") for one in scans[1:])]
    assert check_copies(together, FILE) == ["1 scans are copies of others (b)."]


def test_scans_that_merely_resemble_each_other_are_no_copies() -> None:
    """A repeated scan of a subject with half of its variance in common; two frames; constants."""
    one, other = random(0), random(1)
    assert check_copies([scan("a", one), scan("b", one + other)], FILE) == []
    short = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert check_copies([scan("a", short), scan("b", 2 * short)], FILE) == []
    with pytest.raises(UserInputError, match="the same values in scans a and b"):
        check_copies([scan("a", short), scan("b", short)], FILE)
    assert check_copies([scan("a", np.ones((4, 30))), scan("b", np.ones((4, 30)))], FILE) == []


@pytest.mark.parametrize(("one", "other"), [("1", "sub-01"), ("0012", "12"), ("SUB7", "sub-7")])
def test_one_subject_under_two_spellings_is_refused(one: str, other: str) -> None:
    scans = [scan(one, random(0)), scan(other, random(1))]
    with pytest.raises(UserInputError, match=f"'{one}' and '{other}', who seem to be one subject"):
        check_spellings(scans, FILE)
    check_spellings([s._replace(group="family") for s in scans], FILE)


def test_other_names_are_other_subjects() -> None:
    check_spellings([scan(name, random(0)) for name in ("1", "10", "a1", "1a", "s-1")], FILE)
