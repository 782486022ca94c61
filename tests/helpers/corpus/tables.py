"""Tables of labels and files of events as they go wrong."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from neuromamba.data.cohorts.events import event_task
from neuromamba.data.cohorts.labels import own_classes
from neuromamba.data.cohorts.tables import read_table
from tests.helpers.corpus.bad_file import BadFile, written


def _rows(values: Iterable[object]) -> str:
    return "subject,x\n" + "".join(f"sub-{i:02d},{value}\n" for i, value in enumerate(values))


def table(content: str | bytes, name: str = "t.csv") -> Callable[[Path], object]:
    return lambda folder: read_table(written(folder, content, name))


def column(values: Iterable[object], kind: str = "", **given: Any) -> Callable[[Path], object]:
    """``--label_csv`` with ``--target_column x``."""
    text = _rows(values)

    def read(folder: Path) -> object:
        path = written(folder, text)
        found = own_classes(kind, str(path), "x", **given)
        if kind == "regression":
            from neuromamba.data.cohorts.suspicious import check_values

            cells = read_table(path).column("x", "")
            check_values({str(i): float(v) for i, v in enumerate(cells)}, "x", "t.csv")
        return found

    return read


AGES = [20.5 + i for i in range(30)]
TABLES = (
    BadFile("empty table", table(""), "the file is empty"),
    BadFile("table of spaces", table("\n\n"), "the file is empty"),
    BadFile("table in UTF-16", table("subject,x\n1,2\n".encode("utf-16")), "not a text file"),
    BadFile("table in Latin-1", table("subject,x\n1,é\n".encode("latin-1")), "not a text file"),
    BadFile("spreadsheet", table(b"PK\x03\x04\x14\x00\xff\xfe", "t.csv"), "not a text file"),
    BadFile("compressed table", table(gzip.compress(b"subject,x\n")), "not a text file"),
    BadFile("column named twice", table("subject,x,x\n1,2,3\n"), "more than one column is called"),
    BadFile("row with more fields", table("subject,x\n1,2,3\n"), "found 3 fields, expected 2"),
    BadFile("comma in a text", table("subject,x\n1,Smith, J\n"), "Quote the fields that hold a"),
    BadFile("table that is absent", lambda f: read_table(f / "no.csv"), "cannot read the table"),
    BadFile("table that is a folder", lambda f: read_table(f), "cannot read the table"),
    BadFile("column that is absent", lambda f: own_classes("", str(written(f, _rows("ab"))), "y"),
            "unknown name 'y'"),
    BadFile("column without a value", column(["", "n/a", "NA"]), "holds no value"),
    BadFile("numbers without a kind", column([1, 2, 1, 2]), "may be classes or values"),
    BadFile("text for a regression", column(["20", "old"], "regression"), "needs numbers"),
    BadFile("ages as classes", column([20.5 + i for i in range(100)], "classification"),
            "different values, more than the"),
    BadFile("TRUE, True and true", column(["TRUE", "True", "true"]), "differ only by case"),
    BadFile("F and f", column(["F", "f", "M"]), "differ only by case"),
    BadFile("Patient and patient", column(["Patient", "patient", "control"]), "only by case"),
    BadFile("-9999 as an age", column([*AGES, -9999, -9999], "regression"), "_codes -9999"),
    BadFile("999 as an age", column([*AGES, 999, 999, 999], "regression"), "--missing_codes 999"),
    BadFile("-9 as a score", column([*AGES, -9, -9, -9], "regression"), "--missing_codes -9"),
    BadFile("-9999 as a class", column([0, 1, -9999] * 5, "classification"), "--missing_codes"),
    BadFile("999 as a class", column([1, 2, 999] * 5, "classification"), "--missing_codes"),
    BadFile("9 as a class", column([1, 2, 9] * 5, "classification"), "--missing_codes"),
)  # fmt: skip


def events(content: str | None, name: str = "sub-01_task-x_events.tsv", kind: str = "") -> Any:
    def read(folder: Path) -> object:
        if content is not None:
            (folder / name).write_text(content)
        return event_task(str(folder), "trial_type", kind)

    return read


_HEAD = "onset\tduration\ttrial_type\n"
EVENTS = (
    BadFile("no events", events(None), "no *_events.tsv in"),
    BadFile("events in other files", events(_HEAD, "sub-01_physio.tsv"), "no *_events.tsv in"),
    BadFile("events of Word", events(_HEAD, "~$sub-01_events.tsv"), "no *_events.tsv in"),
    BadFile("events of macOS", events(_HEAD, "._sub-01_events.tsv"), "no *_events.tsv in"),
    BadFile("events without onset", events("start\tduration\ttrial_type\n1\t2\ta\n"), "onset"),
    BadFile("events without type", events("onset\tduration\n1\t2\n"), "trial_type"),
    BadFile("events without a type that is known", events(_HEAD + "1\t2\tn/a\n"), "trial_type"),
    BadFile("onset that is text", events(_HEAD + "soon\t2\ta\n"), "onset"),
    BadFile("duration below 0", events(_HEAD + "1\t-2\ta\n"), "duration"),
)
