"""Cohorts: matching of names and reading of labels, above all what must be refused."""

from __future__ import annotations

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.config.names import DATASET_NAMES
from neuromamba.data.cohorts.labels import read_labels
from neuromamba.data.cohorts.registry import DATASETS


def store(tmp_path, text: str, name: str = "labels.csv", encoding: str = "utf-8"):
    (tmp_path / "metadata").mkdir(exist_ok=True)
    (tmp_path / "metadata" / name).write_text(text, encoding=encoding)
    return tmp_path


def test_registry_agrees_with_the_flag():
    assert tuple(DATASETS) == DATASET_NAMES
    assert all(cohort.name == name for name, cohort in DATASETS.items())


@pytest.mark.parametrize(
    ("cohort", "in_store", "in_csv"),
    [
        ("S1200", "100206", "100206"),
        ("S1200", "sub-100206", "100206"),
        ("UKB", "1234567_20227_2_0", "1234567"),
        ("ABCD", "sub-NDARINV0A1B2C3D", "NDAR_INV0A1B2C3D"),
        ("ABIDE", "sub-0050002", "50002"),
        ("Dummy", "sub-0001", "sub-0001"),
    ],
)
def test_names_match(cohort, in_store, in_csv):
    assert DATASETS[cohort].key(in_store) == DATASETS[cohort].key(in_csv)


def test_names_that_must_not_match():
    key = DATASETS["UKB"].key
    assert key("1234567_20227_2_0") != key("123456")
    assert DATASETS["HBN"].key("sub-NDARAA075AMK") != DATASETS["HBN"].key("NDARAA075AMX")


@pytest.mark.parametrize(
    ("cohort", "text", "task", "expected"),
    [
        ("S1200", "Subject,Gender\n1,M\n2,F\n", "sex", {"1": 1, "2": 0}),
        ("S1200", "Subject,Age_in_Yrs\n1,29\n2,31.5\n", "age", {"1": 29.0, "2": 31.5}),
        ("UKB", "eid,sex\n1,1.0\n2,0.0\n", "sex", {"1": 1, "2": 0}),
        ("HBN", "participant_id,Sex\nsub-1,0\nsub-2,1\n", "sex", {"1": 1, "2": 0}),
        ("ABIDE", "DX_GROUP,SUB_ID\n1,1\n2,2\n", "diagnosis", {"1": 1, "2": 0}),
        ("ABCD", "subjectkey;sex\n1;M\n2;F\n", "sex", {"1": 1, "2": 0}),
        ("Dummy", "subject\tsex\n1\tm\n2\tF\n", "sex", {"1": 1, "2": 0}),
    ],
)
def test_values(tmp_path, cohort, text, task, expected):
    found = read_labels(DATASETS[cohort], store(tmp_path, text), task, ["2", "1"])
    assert found == expected
    assert {type(v) for v in found.values()} == {float if task == "age" else int}


def test_byte_order_mark_extra_columns_and_unasked_subjects(tmp_path):
    text = "Subject,Release,Gender\n1,S1200,M\n2,S1200,F\n3,S1200,?\n"
    path = store(tmp_path, text, encoding="utf-8-sig")
    assert read_labels(DATASETS["S1200"], path, "sex", ["1", "2"]) == {"1": 1, "2": 0}


def test_labels_spread_over_files(tmp_path):
    store(tmp_path, "Subject,Gender\n1,M\n", "a.csv")
    store(tmp_path, "Subject,Gender\n2,F\n1,M\n", "b.csv")
    store(tmp_path, "Subject,Height\n2,180\n", "c.csv")
    assert read_labels(DATASETS["S1200"], tmp_path, "sex", ["1", "2"]) == {"1": 1, "2": 0}


def test_missing_labels_are_listed(tmp_path):
    path = store(tmp_path, "subject,sex\nsub-01,F\nsub-02,\nsub-03,NA\n")
    names = [f"sub-{i:02d}" for i in range(1, 15)]
    with pytest.raises(UserInputError, match=r"13 of 14 subjects: sub-02, .* and 3 more") as caught:
        read_labels(DATASETS["Dummy"], path, "sex", names)
    assert "--bad_subj_path" in str(caught.value)


def test_missing_code_of_a_cohort(tmp_path):
    path = store(tmp_path, "SUB_ID,FIQ\n1,110\n2,-9999\n")
    with pytest.raises(UserInputError, match="no label for 1 of 2 subjects: 2"):
        read_labels(DATASETS["ABIDE"], path, "intelligence", ["1", "2"])


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("subject,sex\n1,X\n2,F\n", "sex", "unknown values for 1.*1: 'X'.*one of f, female"),
        ("subject,age\n1,old\n2,inf\n", "age", "1: 'old', 2: 'inf'.*finite numbers"),
        ("subject,sex\n1,F\n1,M\n2,F\n", "sex", "subject '1' has conflicting values.*'F' and 'M'"),
        ("subject,gender\n1,F\n", "sex", r"column sex\. Found: labels.csv \(subject, gender\)"),
        ("name,sex\n1,F\n", "sex", r"subject column \(subject or participant_id\)"),
        ("", "sex", "labels.csv: the file is empty"),
        ("subject,sex\n1\n2,F\n", "sex", "no label for 1 of 2 subjects: 1"),
        ("subject,sex\n1,F,3,4\n2,F\n", "sex", "line 2: found 4 fields, expected 2"),
    ],
)
def test_bad_metadata(tmp_path, text, task, message):
    with pytest.raises(UserInputError, match=message) as caught:
        read_labels(DATASETS["Dummy"], store(tmp_path, text), task, ["1", "2"])
    assert str(tmp_path / "metadata") in str(caught.value)


def test_no_metadata_folder(tmp_path):
    with pytest.raises(UserInputError, match=r"no CSV or TSV file in.*'Subject' and 'Gender'"):
        read_labels(DATASETS["S1200"], tmp_path, "sex", ["1"])


def test_not_text(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "x.csv").write_bytes(b"\xff\xfe\x00s\x00u")
    with pytest.raises(UserInputError, match=r"x\.csv: not a text file in UTF-8"):
        read_labels(DATASETS["S1200"], tmp_path, "sex", ["1"])


def test_task_the_cohort_lacks(tmp_path):
    with pytest.raises(UserInputError, match="UKB has no target for 'diagnosis'"):
        read_labels(DATASETS["UKB"], tmp_path, "diagnosis", ["1"])
    with pytest.raises(UserInputError, match="Did you mean 'sex'"):
        read_labels(DATASETS["UKB"], tmp_path, "sexx", ["1"])


@pytest.mark.parametrize("name", DATASETS)
def test_bids_tables_are_read_for_every_cohort(name: str) -> None:
    """Whatever a cohort's own column is called, its name comes first."""
    columns = DATASETS[name].subject_columns
    assert "participant_id" in columns and columns[0] == DATASETS[name].subject_column
    assert len(set(columns)) == len(columns)
