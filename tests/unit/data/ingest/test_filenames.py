"""Whose run a file is, by its name."""

from __future__ import annotations

import pytest

from neuromamba.data.ingest.filenames import PATTERNS, NamePattern, RunName, is_generic, name_run


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        # [08] Two runs of a person were two people, or "r01" was the person.
        ("alpha_run1", RunName("alpha", run="1")),
        ("alpha_run-02", RunName("alpha", run="02")),
        ("beta_ses2_run1", RunName("beta", session="2", run="1")),
        ("alpha_visit2", RunName("alpha", session="2")),
        ("r01_alpha", RunName("alpha", run="01")),
        ("run02_beta_bold", RunName("beta", run="02")),
        ("7T_alpha", RunName("alpha", run="7T")),
        ("3T_alpha_run2", RunName("alpha", run="3T-2")),
        # [02] Two versions of a scan were two people.
        ("snwmrda0010001_session_1_rest_1", RunName("0010001", "1", "rest", "1")),
        ("sfnwmrda0010001_session_1_rest_1", RunName("0010001", "1", "rest", "1")),
        # As before.
        ("sub-01_ses-2_task-rest_run-3_bold", RunName("sub-01", "2", "rest", "3")),
        ("100307_rfMRI_REST1_LR", RunName("100307", run="rfMRI-REST1-LR")),
        ("50002_run2", RunName("50002", run="run2")),
        ("r01_rest", RunName("r01", run="rest")),
        ("scan_1", RunName("scan_1")),
        ("alpha", RunName("alpha")),
        ("1000_20227_2_0", RunName("1000_20227_2_0")),
    ],
)
def test_name_of_a_run(stem: str, expected: RunName) -> None:
    assert name_run(stem) == expected


@pytest.mark.parametrize("stem", ["Filtered_4DVolume", "rest", "swrarest", "func_clean", "bold"])
def test_generic_names(stem: str) -> None:
    assert is_generic(stem)


@pytest.mark.parametrize("stem", ["alpha", "100307", "rest_01", "Smith_4DVolume"])
def test_names_of_people(stem: str) -> None:
    assert not is_generic(stem)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.what[:20])
def test_examples_of_the_table(pattern: NamePattern) -> None:
    """Each is recognised by its own row, and by none before it."""
    earlier = PATTERNS[: PATTERNS.index(pattern)]
    assert pattern.examples
    for stem, name in pattern.examples.items():
        assert name_run(stem) == pattern.read(stem) == name
        assert [one.what for one in earlier if one.read(stem) is not None] == []
