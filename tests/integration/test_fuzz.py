"""Mutated files of every kind: each is read or refused in one line; no crash, hang or bomb."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import PROJECT, ROOT

ROUNDS = {"few": 25, "many": 600}


@pytest.mark.parametrize(
    ("rounds", "seed"),
    [("few", 1), *(pytest.param("many", n, marks=pytest.mark.slow) for n in (2, 3))],
)
def test_mutated_files(tmp_path: Path, rounds: str, seed: int) -> None:
    path = os.pathsep.join([str(PROJECT), str(ROOT)])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.helpers.fuzz_readers",
            tmp_path,
            str(ROUNDS[rounds]),
            str(seed),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    last = done.stderr.strip().splitlines()[-1:]
    assert done.returncode == 0, f"exit {done.returncode}, {last}\n{done.stdout[-6000:]}"
    counts = re.findall(r"(\S+): (\d+) refused, (\d+) read", done.stdout)
    assert len(counts) == 21
    # Both happen: the mutations neither spare the files nor destroy all of them.
    assert sum(int(refused) for _, refused, _ in counts) > 8 * ROUNDS[rounds] // 2
    assert sum(int(read) for _, _, read in counts) > 16
