"""One run at a time in a folder, and no lock that outlives its run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.training import run_lock
from neuromamba.training.run_lock import FILE, Owner, RunLock
from tests.helpers.clock import OwnClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> OwnClock:
    """Of those who ask for a lock; a holder touches its own by the system's."""
    own = OwnClock()
    monkeypatch.setattr(run_lock, "time", own)
    return own


def lock(folder: Path) -> RunLock:
    return RunLock("--output_dir", folder, every=0.1, silence=0.6)


def left_by(folder: Path, host: str, pid: int) -> Path:
    path = folder / FILE
    path.write_text(json.dumps(asdict(Owner(host, pid, "2026-01-02 03:04:05"))))
    return path


def gone() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_run_is_refused_at_once(tmp_path: Path, clock: OwnClock) -> None:
    first = lock(tmp_path)
    assert first.take() == first.take() == str(tmp_path / FILE)
    start = clock.now
    words = f"--output_dir: '{tmp_path}' is in use by a run, process {os.getpid()} on "
    with pytest.raises(UserInputError, match=re.escape(words)) as caught:
        lock(tmp_path).take()
    assert first.owner.since in str(caught.value) and clock.now == start
    first.release()
    first.release()
    assert list(tmp_path.iterdir()) == []
    second = lock(tmp_path)
    assert second.take()
    second.release()


def test_there_is_nothing_to_hold_before_there_is_a_folder(tmp_path: Path) -> None:
    later = lock(tmp_path / "run")
    assert later.take() == ""
    (tmp_path / "run").mkdir()
    assert later.take()
    later.release()


def test_a_killed_run_of_this_machine_does_not_count(tmp_path: Path, clock: OwnClock) -> None:
    mine = RunLock("--output_dir", tmp_path, every=0.1, silence=600)
    path = left_by(tmp_path, mine.owner.host, gone())
    assert mine.take() and clock.now < 5
    assert json.loads(path.read_text())["pid"] == os.getpid()
    mine.release()
    assert not path.exists()


def test_a_run_of_another_machine_is_taken_over_when_it_is_silent(
    tmp_path: Path, clock: OwnClock
) -> None:
    left_by(tmp_path, "elsewhere", 1)
    mine = lock(tmp_path)
    assert mine.take() and 0.6 <= clock.now < 5
    mine.release()


def test_a_number_that_another_process_has_now(tmp_path: Path) -> None:
    """The run was killed long ago; the process of its number is not the run."""
    mine = lock(tmp_path)
    path = left_by(tmp_path, mine.owner.host, os.getpid())
    os.utime(path, (time.time() - 60,) * 2)
    assert mine.take()
    mine.release()


def test_a_living_run_of_another_machine_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = left_by(tmp_path, "elsewhere", 7)
    start = path.stat().st_mtime
    clock = OwnClock(lambda now: os.utime(path, (start + now, start + now)))
    monkeypatch.setattr(run_lock, "time", clock)
    with pytest.raises(UserInputError, match="process 7 on elsewhere, since 2026-01-02 03:0"):
        lock(tmp_path).take()


def test_the_holder_touches_its_lock(tmp_path: Path) -> None:
    mine = lock(tmp_path)
    path = Path(mine.take())
    os.utime(path, (0, 0))
    until = time.monotonic() + 60
    while path.stat().st_mtime == 0 and time.monotonic() < until:
        time.sleep(0.05)
    assert path.stat().st_mtime > 0
    mine.release()


def test_a_lock_that_was_taken_over_is_left_alone(tmp_path: Path) -> None:
    mine = lock(tmp_path)
    mine.take()
    path = left_by(tmp_path, "elsewhere", 7)
    mine.release()
    assert path.exists()
