"""Series of regions as CSV, TSV, folders of them, and dictionaries of arrays."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.registry import details_of
from tests.helpers.corpus.regions import smooth

SERIES = [smooth(i, 5, 30) for i in range(6)]
NAMES = [f"sub-{i:02d}" for i in range(6)]


def load(path: Path) -> Cohort:
    return load_cohort("Own", details_of("Own", str(path), "dx", 10), path.parent, data_file=path)


def check(found: Cohort, names: list[str] = NAMES) -> None:
    assert [scan.subject for scan in found.scans] == names
    assert found.details.classes == ("0", "1")
    assert [scan.label for scan in found.scans] == [0, 1] * 3
    for scan, series in zip(found.scans, SERIES, strict=True):
        np.testing.assert_allclose(scan.series, series, rtol=1e-5)


def rows_of(separator: str, counter: str = "") -> str:
    head = [*([counter] if counter else []), "subject", *(f"r{i}" for i in range(5)), "dx"]
    lines = [separator.join(head)]
    for i, (name, series) in enumerate(zip(NAMES, SERIES, strict=True)):
        for t, frame in enumerate(series.T):
            cells = [*([t] if counter else []), name, *frame, i % 2]
            lines.append(separator.join(map(str, cells)))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("name", "separator", "counter"),
    [("a.csv", ",", ""), ("a.tsv", "\t", ""), ("a.csv", ";", ""), ("A.CSV", ",", "frame")],
)
def test_a_table_of_all_scans(tmp_path: Path, name: str, separator: str, counter: str) -> None:
    (tmp_path / name).write_text(rows_of(separator, counter))
    check(load(tmp_path / name))


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t"), (".1D", " ")])
@pytest.mark.parametrize("ending", ["", "_task-rest_timeseries"])
def test_a_folder_of_tables(tmp_path: Path, suffix: str, separator: str, ending: str) -> None:
    for name, series in zip(NAMES, SERIES, strict=True):
        lines = [separator.join(map(str, frame)) for frame in series.T]
        (tmp_path / f"{name}{ending}{suffix}").write_text("\n".join(lines) + "\n")
    people = "".join(f"{i},{i % 2}\n" for i in range(6))  # other spelling of the subjects
    (tmp_path / "participants.csv").write_text(f"participant_id,dx\n{people}")
    (tmp_path / "._sub-00.csv").write_bytes(b"\xff")
    check(load(tmp_path))


def arrays(**changes: Any) -> dict[str, Any]:
    given = {
        "timeseires": np.stack(SERIES),
        "corr": np.stack([np.corrcoef(one) for one in SERIES]),
        "dx": np.array([0, 1] * 3),
        "site": np.array(["NYU"] * 6),
        "subject": np.array(NAMES),
    }
    return {key: value for key, value in (given | changes).items() if value is not None}


def save(path: Path, found: dict[str, Any]) -> Path:
    np.save(path, np.array(found, dtype=object), allow_pickle=True)
    return path


@pytest.mark.parametrize("key", ["timeseires", "timeseries", "roiTimeseries", "time_series"])
def test_a_dictionary_of_arrays(tmp_path: Path, key: str) -> None:
    found = arrays()
    found[key] = found.pop("timeseires")
    check(load(save(tmp_path / "a.npy", found)))


def test_a_dictionary_that_names_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "a.npy", arrays(subject=None))
    with caplog.at_level(logging.WARNING, "neuromamba"):
        check(load(path), list("123456"))
    assert "does not say whose scans they are" in caplog.text


def test_a_dictionary_of_matrices_is_as_before(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", dict(zip(NAMES, SERIES, strict=True)))
    with pytest.raises(UserInputError, match="--target: no scan of"):
        load(path)


WRONG = [
    ("r0,r1\n1,2\n2,3\n", "has no column of the subjects"),
    ("subject,dx\na,1\nb,0\n", "no column that varies within a scan"),
    ("subject,r0,dx\na,1,0\na,x,0\n", "has 'x' for a region of a"),
    ("", "the file is empty"),
    ("subject,r0\na,1\na,2\n", "--target: no scan of"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_wrong_tables(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserInputError, match=message) as found:
        load(tmp_path / "a.csv")
    assert "damaged" not in str(found.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no file in"),
        ({"sub-1.csv": "1,2\n", "participants.csv": "id,dx\n2,0\n"}, "are of nobody in"),
        ({"sub-1.csv": "1,x\n2,3\n4\n"}, "expected 2 numbers"),
    ],
)
def test_wrong_folders(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserInputError, match=message):
        load(tmp_path)


def test_arrays_of_other_lengths(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", arrays(dx=np.array([0, 1])))
    with pytest.raises(UserInputError, match="6 scans under 'timeseires' and 2 values under 'dx'"):
        load(path)
