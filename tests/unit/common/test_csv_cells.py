"""Texts from data in CSV files: no formula for a spreadsheet, and the same text when it is read."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuromamba.common.csv_cells import CsvWriter, as_read, csv_records, csv_rows, written
from neuromamba.data.cohorts.tables import read_table
from neuromamba.data.ingest.check_store import REASONS, _move
from neuromamba.data.ingest.quarantine import QUARANTINE, read_quarantine, update_quarantine
from neuromamba.data.store.manifest import ManifestRow, read_manifest, write_manifest
from neuromamba.evaluation.result_files import (
    Predictions,
    read_predictions,
    write_predictions,
    write_rows,
)
from neuromamba.evaluation.scores import SubjectScores, read_scores, write_scores
from neuromamba.inference.output_folder import OutputFolder
from neuromamba.reports.quality import table as quality_table
from neuromamba.training import curves
from tests.helpers.paths import PACKAGE

FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://x/?"&A1,"see")',
    "+cmd|' /C calc'!A0",
    "-2+3+cmd",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\uff1d1",
    "'=1",
    "''@x",
]
INVISIBLE = ["a\u202eb", "a\x1b[31mb", "a\nb", "a\x00b", "a\\u202eb", "a\u200b", "\udcff"]
HOSTILE = [*FORMULAS, *INVISIBLE]
NUMBERS = ["-5", "+5", "-0.25", "1e-5", "-inf", "nan", "-0.1 [-0.2, 0.0]", "-0.1 ± 0.2"]
PLAIN = ["sub-01", "a-b", "it's", "'tis", "C:\\users", "n/a", "", "5 %"]


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet would take a cell for a formula (OWASP: CSV Injection)."""
    if cell.startswith(("\t", "\r", "\n")):
        return True
    found = cell.lstrip()[:1]
    return found != "" and found in "=+-@\uff1d\uff0b\uff0d\uff20" and cell not in NUMBERS


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_written_is_no_formula_and_comes_back(text: str) -> None:
    cell = written(text)
    assert not is_formula(cell)
    assert not re.search("[\x00-\x1f\u202e\u200b\udcff]", cell)
    assert as_read(cell) == text


@pytest.mark.parametrize("text", [*NUMBERS, *PLAIN])
def test_numbers_and_other_texts_stay(text: str) -> None:
    assert written(text) == as_read(text) == text


@pytest.mark.parametrize("value", [-5, -0.25, None, True, float("-inf")])
def test_what_is_no_text_stays(value: object) -> None:
    assert written(value) is value


@given(st.text(alphabet=st.sampled_from("'=+-@\\u202e \t\n\u202e5.a[]"), max_size=12))
def test_every_text_comes_back(text: str) -> None:
    assert as_read(written(text)) == text


def test_records_as_of_the_csv_module() -> None:
    stream = io.StringIO()
    CsvWriter(stream).write_records(["a", "=b"], [{"a": "@x", "=b": -1}, {"a": None}])
    assert stream.getvalue() == "a,'=b\n'@x,-1\n,\n"
    assert list(csv_records(stream.getvalue().splitlines())) == [
        {"a": "@x", "=b": "-1"},
        {"a": "", "=b": ""},
    ]
    text = ["a,b", "", "1,2,3", "1"]
    assert list(csv_records(text)) == list(csv.DictReader(text))
    with pytest.raises(ValueError, match="no columns"):
        CsvWriter(stream).write_records(["a"], [{"b": 1}])


# ---------------------------------------------------------------------- every writer


def predictions(path: Path, text: str) -> str:
    table = Predictions([text], [text], np.array([1]), np.array([[0.25, 0.75]]))
    write_predictions(table, path, "scan")
    found = read_predictions(path, "")
    assert found.sample == [text]
    return found.subject[0]


def scores(path: Path, text: str) -> str:
    write_scores(SubjectScores((text,), np.array([-1.5]), np.array([[-2.5]])), path)
    found = read_scores(path)
    assert found.target[0] == -1.5 and found.score[0, 0] == -2.5
    return found.subjects[0]


def subjects(path: Path, text: str) -> str:
    """``subjects.csv``; people give such tables back to us as tables of labels."""
    write_rows(["subject", "value"], [["first", -1.5], [text, -2.5]], path)
    found = read_table(path)
    assert found.column("value", "") == ["-1.5", "-2.5"]
    return found.column("subject", "")[1]


def windows(path: Path, text: str) -> str:
    OutputFolder.write_table(
        SimpleNamespace(path=path.parent),  # type: ignore[arg-type]
        path.name,
        ["scan", "reason"],
        [[text, None]],
    )
    return next(csv_records(path.read_text(encoding="utf-8").split("\n")))["scan"]


def logged(path: Path, text: str) -> str:
    curves.write_rows(path, [{"step": "1", text: "-2"}], ["step", text])
    (row,) = curves.read_rows(path)
    return next(name for name in row if name != "step")


def manifest(path: Path, text: str) -> str:
    values: dict[str, Any] = dict.fromkeys(ManifestRow.__dataclass_fields__, text)
    values |= {"n_frames": 1, "tr": -1.0, "n_voxels": 1, "kept_fraction": 0.5}
    write_manifest(path.parent, [ManifestRow(**values)])
    path.write_bytes((path.parent / "manifest.csv").read_bytes())
    assert read_manifest(path.parent) == [ManifestRow(**values)]
    return read_manifest(path.parent)[0].subject


def quarantine(path: Path, text: str) -> str:
    update_quarantine(path.parent, [], {Path("/data/x.nii"): text})
    path.write_bytes((path.parent / QUARANTINE).read_bytes())
    return read_quarantine(path.parent)["/data/x.nii"]


READ_BACK: dict[str, Callable[[Path, str], str]] = {
    "predictions.csv": predictions,
    "validation_predictions.csv": scores,
    "subjects.csv": subjects,
    "windows.csv": windows,
    "metrics.csv": logged,
    "manifest": manifest,
    "quarantine": quarantine,
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", READ_BACK)
def test_files_of_ours_come_back(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    read = READ_BACK[name](path, text)
    assert read == (text.strip() if name == "subjects.csv" else text)
    with open(path, newline="", encoding="utf-8") as stream:
        separator = "\t" if name == "quarantine" else ","
        cells = [cell for row in csv.reader(stream, delimiter=separator) for cell in row]
    assert not any(map(is_formula, (cell for cell in cells if not _is_number(cell))))


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


@pytest.mark.parametrize("text", FORMULAS)
def test_the_table_of_a_store_s_quality(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"file": text, "reasons": text, "z": -1.5}
    monkeypatch.setattr(quality_table, "tsv_record", lambda row: record)
    row = SimpleNamespace(run=SimpleNamespace(path=Path("a")))
    quality_table.write_tsv(tmp_path / "q.tsv", [row])  # type: ignore[list-item]
    _, (file, reasons, z) = csv_rows((tmp_path / "q.tsv").read_text().splitlines(), "\t")
    assert (file, reasons, z) == (" ".join(text.split()),) * 2 + ("-1.5",)
    assert not is_formula((tmp_path / "q.tsv").read_text().splitlines()[1])


@pytest.mark.parametrize("name", ["=1.h5", "@x.h5", "-a\u202e.h5"])
def test_the_reasons_of_check_store(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")
    _move(tmp_path / name, tmp_path / "out", f"+{name}")
    lines = (tmp_path / "out" / REASONS).read_text(encoding="utf-8").splitlines()
    assert list(csv_rows(lines, "\t"))[1] == [name, f"hdf5/{name}", f"+{name}"]
    assert not is_formula(lines[1]) and "\u202e" not in lines[1]


def test_no_file_writes_csv_in_another_way() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "csv_cells.py":
            assert not re.search(r"csv\.(writer|DictWriter|DictReader)\(|\.to_csv\(", text), path
