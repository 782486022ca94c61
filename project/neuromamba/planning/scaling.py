"""Profiles of one command line for several sizes, each in a process of its own.

So each point starts with nothing in memory, and one that runs out of it is a row of the table.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.json_text import parse_json
from neuromamba.common.own_command import own_command, own_environment
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.planning.busy_cores import busy_cores

# What can be varied -> how its column is called.
POINTS = {
    "batch_size": "windows",
    "sequence_length": "frames",
    "processes": "processes",
}
_COLUMNS = (
    "ms per batch",
    "windows/s",
    "tokens/s",
    "TFLOP/s",
    "GB",
    "efficiency",
    "relative",
    "busy",
)
ENDING = 45.0  # seconds; torchrun kills ranks that do not end within 30
_OWN_FLAGS = {"--scaling", "--json", "--point_seconds"}
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|MemoryError|can't allocate memory|out of memory|memory ran short", re.I
)


def scaling_report(config: RunConfig, argv: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Profile every point of ``--scaling``.

    Args:
        config: the run, checked.
        argv: its flags.

    Returns:
        what ``--json`` holds, and the table.

    Raises:
        UserInputError: ``--scaling`` cannot be understood, or every point failed.
    """
    what, numbers = _points(config.flags["scaling"])
    if what == "processes" and "LOCAL_RANK" in os.environ:
        raise UserInputError(
            "--scaling: processes starts torchrun itself; call it without torchrun."
        )
    rows = []
    for number in numbers:
        command = _command(config, argv, what, number)
        print(f"{what} {number} ...", file=sys.stderr, flush=True)
        busy = {"busy_cores": busy_cores()}  # by others: the point has not begun
        rows.append({what: number, **busy, **run_point(command, config.flags["point_seconds"])})
    if not any("seconds" in row for row in rows):
        raise UserInputError(f"--scaling: no point ran; the first: {rows[0]['failed']}")
    _rate(rows)
    return {"scaling": what, "points": rows}, _table(rows, what)


def _points(words: Sequence[str]) -> tuple[str, list[int]]:
    what = look_up(words[0], POINTS, "--scaling")
    if len(words) < 2 or not all(word.isdigit() and int(word) for word in words[1:]):
        raise UserInputError(
            f"--scaling: got '{' '.join(words)}', expected a name and numbers of 1 or more, such "
            f"as {what} 1 2 4."
        )
    return what, [int(word) for word in words[1:]]


def _without(argv: Sequence[str], flags: set[str]) -> list[str]:
    """The words without these flags and their values."""
    kept, skipping = [], False
    for word in argv:
        if word.startswith("--"):
            skipping = word.split("=")[0] in flags
        if not skipping:
            kept.append(word)
    return kept


def _command(config: RunConfig, argv: Sequence[str], what: str, number: int) -> list[str]:
    """The point's command line; flags given last count."""
    words = _without(argv, _OWN_FLAGS)
    if what == "batch_size":
        return own_command("profile", *words, "--batch_size", str(number))
    if what == "sequence_length":
        words = _without(words, {"--sequence_length"})
        size = [*map(str, config.model.img_size[:3]), str(number)]
        return own_command("profile", *words, "--img_size", *size)
    python, *program = own_command("profile", *words, "--devices", str(number))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    return [python, *torchrun, *program]


def run_point(
    command: Sequence[str], limit: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a profile in processes of its own.

    Args:
        command: ``neuromamba profile`` and its flags, without ``--json``; perhaps under torchrun.
        limit: seconds, after which it is ended.
        environment: changes of it.

    Returns:
        its figures, or under ``failed`` why there are none.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "point.json", Path(folder) / "log"
        with open(log, "wb") as stream:
            # A group of its own: torchrun's ranks end with it.
            process = subprocess.Popen(
                [*command, "--json", str(path)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=own_environment(environment),
            )
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                return {"failed": f"not done after {limit:g} s (--point_seconds)"}
            finally:
                _end(process)
        text = log.read_text(encoding="utf-8", errors="replace")
        if path.exists():  # what was written counts, not how the interpreter ended
            found: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
            return found
    if _OUT_OF_MEMORY.search(text) or status == -signal.SIGKILL or "exitcode: -9" in text.lower():
        return {"failed": "out of memory"}
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    lines = errors or text.strip().splitlines() or [f"exit status {status}"]
    return {"failed": lines[-1].removeprefix("error: ")[:300]}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a point; torchrun needs time to end its ranks, which it alone knows."""
    for number, patience in ((signal.SIGTERM, ENDING), (signal.SIGKILL, ENDING)):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _rate(rows: Sequence[dict[str, Any]]) -> None:
    """Add ``relative``: windows or tokens a second, of each process, over those of the first."""
    first = None
    for row in rows:
        if not row.get("seconds"):
            continue
        rate = row["tokens_per_second"] / row["ranks"]
        first = first or rate
        row["relative"] = rate / first


def _table(rows: Sequence[dict[str, Any]], what: str) -> str:
    """Format the points as a table."""
    lines = [f"{POINTS[what]:>10} " + " ".join(f"{name:>11}" for name in _COLUMNS)]
    for row in rows:
        if not row.get("seconds"):
            lines.append(f"{row[what]:>10}  {row.get('failed', 'no batch was measured')}")
            continue
        memory = row["memory"].get("device", row["memory"]["host"])
        efficiency = row["efficiency"]
        cells = (
            f"{1e3 * row['seconds']:.1f}",
            f"{row['windows_per_second']:.4g}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tflops']:.4g}",
            f"{memory / 1e9:.2f}",
            "" if efficiency is None else f"{efficiency:.1%}",
            f"{row['relative']:.1%}",
            "" if row["busy_cores"] is None else f"{row['busy_cores']:.1f}",
        )
        lines.append(f"{row[what]:>10} " + " ".join(f"{cell:>11}" for cell in cells))
    lines.append(
        "GB: most of a rank, of the GPU where there is one. efficiency: see --scalability_check. "
        "relative: tokens a second of a process, against the first row. busy: cores that others "
        "used before the point."
    )
    return "\n".join(lines)
