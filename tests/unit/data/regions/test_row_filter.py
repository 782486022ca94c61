"""``--keep``: which scans meet the conditions, and what is said of the others."""

from __future__ import annotations

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.row_filter import conditions, kept_rows

ROWS = [
    {"qc": "1", "motion": "0.1", "site": "NYU"},
    {"qc": "1.0", "motion": "0.35", "site": "nyu"},
    {"qc": "0", "motion": "", "site": "UM_1"},
    {"qc": "", "motion": 0.2, "site": "UM_1"},
]


@pytest.mark.parametrize(
    ("words", "places"),
    [
        ("qc=1", [0, 1]),
        ("qc!=1", [2]),
        ("motion<0.2", [0]),
        ("motion<=0.2", [0, 3]),
        ("motion>0.2", [1]),
        ("motion>=0.2", [1, 3]),
        ("site=NYU", [0, 1]),
        ("site!=NYU", [2, 3]),
        ("qc=1 motion<0.3", [0]),
    ],
)
def test_scans_that_meet_all_conditions_are_kept(words: str, places: list[int]) -> None:
    kept, notes = kept_rows(ROWS, conditions(words.split()), "'x'")
    assert kept == places and len(notes) == len(words.split())


def test_the_notes_count_scans_without_a_value() -> None:
    _, notes = kept_rows(ROWS, conditions(["motion<0.2"]), "'x'")
    assert notes == ["--keep motion<0.2: 3 of 4 scans left out, 1 of them without a value."]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("qc", "got 'qc', expected COLUMN=VALUE"),
        ("motion<low", "'low' is no number"),
        ("age>3", "no column 'age'"),
        ("qc=7", "no scan of 'x' meets this"),
    ],
)
def test_mistakes(words: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        kept_rows(ROWS, conditions([words]), "'x'")
