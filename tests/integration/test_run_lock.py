"""A job that was submitted twice."""

from __future__ import annotations

import pytest

from neuromamba.training.run_lock import FILE, RunLock
from tests.helpers.forked import Blow
from tests.helpers.tiny_runs import DDP, LAST, NEXT, Runs, rows


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_second_is_refused_and_the_first_is_not_disturbed(runs: Runs, ranks: int) -> None:
    folder = runs.new()
    line = f"{NEXT} {LAST} --every_n_train_steps 3" + (f" {DDP}" if ranks > 1 else "")
    killed = runs.go(folder, line, Blow("SIGKILL", 4, (0,)), ranks=ranks)
    assert killed.statuses[0] == -9 and (folder / FILE).exists()
    (folder / FILE).unlink()
    other = RunLock("--output_dir", folder)
    other.take()
    before = rows(folder)
    second = runs.go(folder, line, ranks=ranks)
    other.release()
    assert second.statuses == (2,) * ranks and second.text.count("error: ") == 1
    assert f"error: --output_dir: '{folder}' is in use by a run, process " in second.said[0]
    assert rows(folder) == before
    assert runs.go(folder, line, ranks=ranks).statuses == (0,) * ranks
    assert not (folder / FILE).exists()
