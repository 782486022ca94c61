"""Files of version 0.1.0, commands on a copy of them, and the comparison with its numbers.

``tests/golden/make_runs.py`` made the files with the code of that version, and noted what the same
code gave when it used them. Each test works on a copy of its own, in another folder than that in
which the files were made.

Numbers are compared within the rounding of other processors: a prediction to ``EXACT``, losses
behind some steps of a training to ``TRAINED`` of their size.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.launched import finished
from tests.helpers.paths import GOLDEN
from tests.helpers.preloaded import preloaded_python

RUNS = GOLDEN / "runs_0_1_0"
EXPECTED: dict[str, Any] = json.loads((RUNS / "expected.json").read_text(encoding="utf-8"))
EXACT, TRAINED = 1e-6, 1e-5

# The other commands -> their words for ``python -m neuromamba``.
COMMANDS: dict[str, list[str]] = {
    "report": ["report"],
    "export": ["export"],
    "quality": ["quality"],
    "check": ["check-store"],
    "cpa": ["regions", "explain-reference"],
}


def copy_of_runs(folder: Path) -> Path:
    """A copy of the files, whose times are those that the store's header cache has noted."""
    place = Path(shutil.copytree(RUNS, folder / "old"))
    headers = json.loads((place / "store" / "headers.json").read_text())["runs"]
    for name, ((size, changed), _) in headers.items():
        file = place / "store" / "hdf5" / name
        assert file.stat().st_size == size
        os.utime(file, ns=(changed, changed))
    return place


def call(old: Path, words: Sequence[str], status: int = 0, python: str = "") -> str:
    """A command in the folder; returns what it printed."""
    done = finished([python or preloaded_python(), "-W", "ignore", *words], old, 200)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def command(old: Path, name: str, flags: str) -> str:
    """One of ``COMMANDS``."""
    return call(old, ["-m", "neuromamba", *COMMANDS[name], *flags.split()])


def table(path: Path, *names: str) -> list[dict[str, Any]]:
    """Rows of a table: named columns or all, numbers as such, empty cells left out."""

    def cell(value: str) -> Any:
        try:
            return float(value)
        except ValueError:
            return value

    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))
    return [
        {name: cell(row[name]) for name in names or row if row.get(name) not in (None, "")}
        for row in rows
    ]


def scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Without times, and without intervals: of three subjects rounding decides where they end."""
    left_out = ("seconds", "_low", "_high")
    return {name: value for name, value in metrics.items() if not name.endswith(left_out)}


def same(found: Any, expected: Any, within: float, where: str = "") -> None:
    """Names and texts are equal, and numbers within a share of their size, or of 1."""
    if isinstance(expected, Mapping):
        assert set(found) == set(expected), f"{where}: {sorted(set(found) ^ set(expected))}"
        for name, value in expected.items():
            same(found[name], value, within, f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), f"{where}: {len(found)}, expected {len(expected)}"
        for number, value in enumerate(expected):
            same(found[number], value, within, f"{where}/{number}")
    elif isinstance(expected, float):
        # Predictions that differ little make a correlation of small differences, which hold few
        # digits; processors with other vector instructions round otherwise.
        within *= 100 if where.endswith("pearson_r") else 1
        # nine digits were noted
        assert found == pytest.approx(expected, rel=within, abs=within), (
            f"{where}: {found}, expected {expected}"
        )
    else:
        assert found == expected, f"{where}: {found}, expected {expected}"
