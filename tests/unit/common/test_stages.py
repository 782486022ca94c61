"""Stages: the environment that commands of ours run in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from neuromamba.common import stages


@pytest.mark.parametrize(("set_by_user", "expected"), [(None, "1"), ("3", "3")])
def test_defaults_of_the_environment_do_not_win_over_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, set_by_user: str | None, expected: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", set_by_user)
    out = tmp_path / "seen"
    text = f"import os; open({str(out)!r}, 'w').write(os.environ['OMP_NUM_THREADS'])"
    monkeypatch.setattr(stages, "own_command", lambda *words: [sys.executable, "-c", *words])
    stages.run_stage("a stage", [text], {"OMP_NUM_THREADS": "1"})
    assert out.read_text() == expected
