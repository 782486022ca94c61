"""Codes for missing values, classes spelled twice, tables and names as spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import plain_subject
from neuromamba.data.cohorts.labels import own_classes
from neuromamba.data.cohorts.suspicious import check_classes, check_values, probable_codes
from neuromamba.data.cohorts.tables import read_table


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ([90, 100, 110, 119, -9999], [-9999]),  # [06] a mean absolute error of 5024
        ([20, 21, 35, 60, 999], [999]),
        ([1, 2, 1, 2, 9], [9]),  # [20 code9]
        ([0.5, 1.5, 2.0, -9], [-9]),
        ([-999, 3, 4, 5, 9999], [-999, 9999]),
        # No codes: within, or just beside, the others.
        ([6, 7, 8, 9, 10, 11], []),
        ([20, 50, 80, 99], []),
        ([-3, -1, 0, 2, 3], []),
        ([3000, 9000, 9999], []),
        ([7, 8, 9], []),
        ([0, 1, 2, 3, 4, 5, 6, 7], []),
    ],
)
def test_probable_codes(values: list[float], codes: list[float]) -> None:
    assert probable_codes(values) == codes


def test_codes_of_a_regression_are_refused_with_a_remedy() -> None:
    values = {f"sub-{i}": 90.0 + i for i in range(20)} | {"sub-x": -9999.0, "sub-y": -9999.0}
    with pytest.raises(UserInputError, match=r"-9999 \(2 times\).* 90 to 109.*_codes -9999"):
        check_values(values, "FIQ", "own.csv")


def test_values_absurdly_far_out_are_warned_about() -> None:
    values = {f"sub-{i}": 20.0 + i for i in range(30)}
    assert check_values(values, "age", "own.csv") == ""
    message = check_values(values | {"sub-x": 2007.0}, "age", "own.csv")
    assert "sub-x 2007" in message
    assert check_values(dict.fromkeys(values, 5.0), "age", "own.csv") == ""


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        (["TRUE", "True", "false"], "TRUE and True"),
        (["control", "Control", "patient"], "Control and control"),
        (["1", "2", "-9999"], "-9999 is probably a code"),
        (["0", "1", "9"], "9 is probably a code"),
        (["M", "F", "-9"], "-9 is probably a code"),
    ],
)
def test_suspicious_classes(classes: list[str], found: str) -> None:
    with pytest.raises(UserInputError, match=found):
        check_classes(classes, "group", "--label_csv", "Say so.")


@pytest.mark.parametrize("classes", [["1", "2"], ["0", "1", "2", "3"], ["a", "B"], ["M", "F", "2"]])
def test_ordinary_classes(classes: list[str]) -> None:
    check_classes(classes, "group", "--label_csv", "")


def test_classes_that_are_named_are_taken(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text("subject,rated\n" + "".join(f"{i},{'129'[i % 3]}\n" for i in range(9)))
    with pytest.raises(UserInputError, match="--missing_codes CODE"):
        own_classes("classification", str(table), "rated")
    assert own_classes("classification", str(table), "rated", ["9"]) == ("1", "2")
    named = own_classes("classification", str(table), "rated", chosen=["1", "9"])
    assert named == ("1", "2", "9")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sep.csv", "sep=;\nparticipant_id;sex\n1;F\n"),
        ("bar.csv", '"sep=|"\nparticipant_id|sex\n1|F\n'),
        ("commas.tsv", "participant_id\tsex\tscore (a, b, c, d)\n1\tF\t2\n"),
        ("commas.csv", "participant_id\tsex\tage, at scan, years\n1\tF\t2\n"),
        ("semicolon.csv", "participant_id;sex;a,b,c,d,e\n1;F;3\n"),
        ("quoted.csv", 'participant_id,sex,"a;b;c;d"\n1,F,2\n'),
    ],
)
def test_separators_of_tables(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    table = read_table(tmp_path / name)
    assert table.columns[:2] == ("participant_id", "sex")
    assert table.rows[0][:2] == ("1", "F")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("50002.0", "50002"),
        ("5.00020E+04", "50002"),
        ("sub-0050002", "50002"),
        ("1.0", "1"),
        ("0", "0"),
        ("50.002", "50.002"),
        ("E01", "E01"),
        ("1e3x", "1e3x"),
        ("NDARINV1", "NDARINV1"),
    ],
)
def test_names_as_spreadsheets_write_them(name: str, plain: str) -> None:
    assert plain_subject(name) == plain
