"""Event files: which run a line belongs to, and which frames lie within an event."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.events import Event, EventFiles, event_task, label_runs, window_starts
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.store.header import RunHeader

KEY = DATASETS["Own"].key


def header(**changes: Any) -> RunHeader:
    given: dict[str, Any] = {
        field.name: {"str": "", "int": 0, "float": 0.0}.get(str(field.type), (0, 0, 0))
        for field in dataclasses.fields(RunHeader)
    }
    return RunHeader(**{**given, "subject": "sub-01", "n_frames": 40, "tr": 2.0, **changes})


def config(**changes: Any) -> DataConfig:
    given = {"dataset_name": ("Own",), "image_path": ("x",), "sequence_length": 4}
    return DataConfig(**(given | changes))


def task(path: Path, *classes: str, **changes: Any) -> DownstreamConfig:
    given = {"task": "trial_type", "task_type": "classification", "target_classes": classes}
    return DownstreamConfig(**({**given, "events": str(path), **changes}))


@pytest.mark.parametrize("tr", [0.72, 2.0, 2.5])
@pytest.mark.parametrize("dropped", [0, 3])
@pytest.mark.parametrize("delay", [0.0, 4.3])
def test_windows_lie_within_the_event(tr: float, dropped: int, delay: float) -> None:
    """Compared with a search over all windows, frame times written out."""
    run = header(tr=tr, dropped_frames=dropped, n_frames=60)
    setting = config(sequence_length=3, stride_within_seq=2, stride_between_seq=0.5)
    for onset, duration in ((0.0, 20.0), (7.3, 15.0), (20.0, 12.5), (55.0, 400.0), (9.0, 0.0)):
        times = (np.arange(run.n_frames) + dropped) * tr
        inside = (times >= onset + delay - 1e-6) & (times < onset + delay + duration - 1e-6)
        possible = [
            start
            for start in range(run.n_frames - 4)
            if all(inside[start + 2 * k] for k in range(3))
        ]
        found = window_starts(Event(onset, duration, "a"), run, setting, delay)
        assert set(found) <= set(possible)
        assert found[:1] == possible[:1], "the first possible window is one"
        assert np.diff(found).tolist() == [3] * (len(found) - 1)
        if possible:
            assert found[-1] + 3 > possible[-1], "no room for another one"


def test_onsets_on_the_frame_are_not_lost_to_rounding() -> None:
    # 7 * 0.72 is 5.04 in decimals, and a little more or less in binary.
    run = header(tr=0.72, n_frames=200)
    for k in range(150):
        event = Event(round(k * 0.72, 2), round(4 * 0.72, 2), "a")
        assert window_starts(event, run, config(), 0.0) == [k]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("|", "\t"))
    return path


def test_a_file_for_all_runs_and_one_with_columns(tmp_path: Path) -> None:
    shared = write(tmp_path / "all.tsv", "onset|duration|trial_type\n0|8|a\n8|8|n/a\n16|8|b\n")
    events = EventFiles(str(shared), None).of_run(header(run="3"), KEY)
    assert [e.label for e in events] == ["a", "b"]
    own = write(
        tmp_path / "own.csv",
        "subject,run,onset,duration,kind\n1,1,0,8,a\nsub-01,run-02,0,8,b\n2,2,0,8,c\n,02,9,8,d\n",
    )
    files = EventFiles(str(own), "kind")
    for name, labels in (("1", "a"), ("02", "bd"), ("3", "")):
        found = files.of_run(header(subject="sub-001", run=name), KEY)
        assert "".join(e.label for e in found) == labels


def test_a_bids_folder(tmp_path: Path) -> None:
    text = "onset|duration|trial_type\n0|8|{}\n"
    for name, label in (
        ("sub-01/ses-1/func/sub-01_ses-1_task-nback_run-1_events.tsv", "a"),
        ("sub-01/ses-1/func/sub-01_ses-1_task-nback_run-2_events.tsv", "b"),
        ("sub-02/func/sub-02_task-nback_events.tsv", "c"),
        ("task-rest_events.tsv", "d"),
    ):
        write(tmp_path / name, text.format(label))
    files = EventFiles(str(tmp_path), None)
    for changes, labels in (
        ({"session": "1", "task": "nback", "run": "01"}, "a"),
        ({"session": "1", "task": "nback", "run": "2"}, "b"),
        ({"subject": "sub-02", "task": "nback"}, "c"),
        ({"subject": "sub-09", "task": "rest"}, "d"),
        ({"subject": "sub-09", "task": "nback"}, ""),
    ):
        assert "".join(e.label for e in files.of_run(header(**changes), KEY)) == labels


def test_the_name_of_a_single_file_counts(tmp_path: Path) -> None:
    """As a shell completes it: a file of one run must not label all others."""
    path = tmp_path / "sub-01_task-rest_events.tsv"
    write(path, "onset|duration|trial_type\n0|8|a\n")
    files = EventFiles(str(path), None)
    assert len(files.of_run(header(task="rest"), KEY)) == 1
    assert files.of_run(header(subject="sub-02", task="rest"), KEY) == []


def test_windows_that_share_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "onset|duration|trial_type\n0|16|a\n{}|8|b\n16|8|a\n"
    for onset, warned in ((6, True), (16, True), (24, False)):
        caplog.clear()
        path = write(tmp_path / "e.tsv", text.format(onset))
        label_runs([header(run="1")], KEY, config(), task(path, "a", "b"))
        assert ("share frames" in caplog.text) == warned, onset


def test_labels_of_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path / "e.tsv",
        "run|onset|duration|trial_type\n1|0|16|b\n1|20|8|other\n1|40|8|a\n2|0|2|a\n1|76|8|a\n",
    )
    headers = [header(run="1"), header(run="2"), header(run="3")]
    with caplog.at_level(logging.WARNING):
        found = label_runs(headers, KEY, config(), task(path, "a", "b"))
    assert list(found) == ["sub-01_run-1"]
    assert [(e.number, e.starts, e.target) for e in found["sub-01_run-1"]] == [
        (0, (0, 4), 1),
        (2, (20,), 0),
    ]
    assert "2 event(s) are shorter" in caplog.text and "2 run(s) have no event" in caplog.text
    values = write(tmp_path / "v.tsv", "onset|duration|rating\n0|8|1.5\n8|8|2\n")
    wish = task(values, task="rating", task_type="regression", target_column="rating")
    found = label_runs(headers[:1], KEY, config(), wish)
    assert [event.target for event in found["sub-01_run-1"]] == [1.5, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onset|trial_type\n0|a\n", r"--events: .*e\.tsv, column: unknown name 'duration'"),
        ("onset|duration|condition\n0|1|a\n", r"--target_column: .*unknown name 'trial_type'"),
        ("onset|duration|trial_type\nx|8|a\n", "the event 'a' has onset 'x'"),
        ("onset|duration|trial_type\n0|-8|a\n", "duration '-8', expected seconds"),
        ("onset|duration|trial_type\n0|long|a\n", "duration 'long'"),
        ("run|onset|duration|trial_type\n7|0|8|a\n", r"none of the 1 events .*\(sub-01_run-1\)"),
        ("onset|duration|trial_type\n0|2|a\n", "no event of the classes a, b holds a window of 4"),
        ("", "the file is empty"),
    ],
)
def test_bad_event_files(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "e.tsv", text)
    with pytest.raises(UserInputError, match=message):
        label_runs([header(run="1")], KEY, config(), task(path, "a", "b"))


def test_what_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no file or folder"):
        EventFiles(str(tmp_path / "absent.tsv"), None)
    with pytest.raises(UserInputError, match=r"no \*_events.tsv"):
        EventFiles(str(tmp_path), None)
    path = write(tmp_path / "e.tsv", "onset|duration|trial_type\n0|8|a\n0|8|b\n")
    with pytest.raises(UserInputError, match="the TR of the run 'sub-01' is not known"):
        label_runs([header(tr=float("nan"))], KEY, config(), task(path, "a", "b"))
    assert event_task(str(path), None, "") == ("a", "b")
    numbers = write(tmp_path / "n.tsv", "onset|duration|trial_type\n0|8|1\n0|8|2\n")
    with pytest.raises(UserInputError, match="--downstream_task_type"):
        event_task(str(numbers), None, "")
    assert event_task(str(numbers), None, "regression") == ()


# --- whose events a file holds (BIDS inheritance) -----------------------------------------------


def write_events(folder: Path, files: dict[str, str]) -> EventFiles:
    """Files of one event each: name -> its label, at 0 s for 20 s."""
    for name, label in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"onset\tduration\ttrial_type\n0\t20\t{label}\n")
    return EventFiles(str(folder), None)


def labels(files: EventFiles, **run: str) -> list[str]:
    return [event.label for event in files.of_run(header(task="x", **run), KEY)]


@pytest.mark.parametrize("entity", ["acq", "dir", "rec", "ce"])
@pytest.mark.parametrize("number", ["", "1"])
def test_files_that_differ_by_an_entity_label_their_own_runs(
    tmp_path: Path, entity: str, number: str
) -> None:
    """[01] They labelled each other's runs twice: only sub, ses, task and run were read."""
    run = f"_run-{number}" if number else ""
    files = write_events(
        tmp_path,
        {f"sub-01/func/sub-01_task-x_{entity}-{v}{run}_events.tsv": f"of{v}" for v in "AB"},
    )
    for value in "AB":
        name = "-".join(part for part in (number, entity, value) if part)
        assert labels(files, run=name) == [f"of{value}"]
    assert labels(files, run=number) == []  # a run without the entity is none of theirs


def test_the_nearest_file_overrides_those_above(tmp_path: Path) -> None:
    """[07] A file at the top was added to the subject's own."""
    files = write_events(
        tmp_path,
        {
            "task-x_events.tsv": "top",
            "sub-01/sub-01_task-x_events.tsv": "subject",
            "sub-02/func/sub-02_task-x_run-2_events.tsv": "run",
            "task-y_events.tsv": "other",
        },
    )
    assert labels(files) == ["subject"]
    assert labels(files, subject="sub-02", run="2") == ["run"]
    assert labels(files, subject="sub-02", run="1") == ["top"]
    assert labels(files, subject="sub-03", session="2") == ["top"]


def test_the_same_file_below_sourcedata_counts_once(tmp_path: Path) -> None:
    name = "sub-01/func/sub-01_task-x_events.tsv"
    files = write_events(tmp_path, {name: "own", f"sourcedata/{name}": "own"})
    assert labels(files) == ["own"]
    lone = write_events(tmp_path / "b", {f"sourcedata/{name}": "raw"})
    assert labels(lone) == ["raw"]  # there is nothing else


def test_a_file_in_another_subjects_folder_is_not_taken(tmp_path: Path) -> None:
    files = write_events(tmp_path, {"sub-02/func/task-x_events.tsv": "theirs"})
    assert labels(files) == []
    assert labels(files, subject="sub-02") == ["theirs"]


def test_two_files_that_apply_alike_are_refused(tmp_path: Path) -> None:
    files = write_events(tmp_path, {"a/task-x_events.tsv": "one", "b/sub-01_events.tsv": "two"})
    with pytest.raises(UserInputError, match="apply to the run 'sub-01_task-x' alike"):
        labels(files)


def test_times_that_are_not_available_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """[07 nadur] n/a is allowed by BIDS, and refused the whole folder."""
    path = tmp_path / "e.tsv"
    path.write_text("onset\tduration\ttrial_type\n0\t20\ta\n30\tn/a\ta\nn/a\t20\tb\n40\t20\tb\n")
    with caplog.at_level(logging.WARNING):
        found = label_runs([header(task="x")], KEY, config(), task(path, "a", "b"))
    assert [event.target for event in found["sub-01_task-x"]] == [0, 1]
    assert "2 event(s) without onset or duration" in caplog.text


def test_files_of_other_systems_are_no_event_files(tmp_path: Path) -> None:
    name = "sub-01_task-x_events.tsv"
    files = write_events(tmp_path, {name: "own"})
    (tmp_path / f"._{name}").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / f"~${name}").write_bytes(b"\x00")
    assert labels(EventFiles(str(tmp_path), None)) == labels(files) == ["own"]
