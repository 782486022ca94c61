"""The scripts of ``sample_scripts/``: which there are, and what they would start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.helpers.paths import ROOT

SOURCED = ("common.sh", "checks.sh")  # by the others
SCRIPTS = sorted(
    path.relative_to(ROOT / "sample_scripts").as_posix()
    for path in (ROOT / "sample_scripts").rglob("*.sh")
    if path.name not in SOURCED
)
# Stand for python and for the launchers: write down their words; launchers go on with the rest.
_PYTHON = """#!{python} -I
import json, os, sys
words = os.environ.pop("LAUNCHED_BY", "").split() + sys.argv[1:]
with open({log!r}, "a") as stream:
    print(json.dumps(words), file=stream)
"""
_LAUNCHER = """#!/bin/bash
words={name}
while [[ $1 != *python ]]; do words+=" $1"; shift; done
LAUNCHED_BY=$words exec "$@"
"""


def repository(folder: Path) -> Path:
    """A folder in which scripts may run: the repository's files, and room for ``output/``."""
    folder.mkdir(exist_ok=True)
    for name in ("project", "configs", "sample_scripts"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def plain_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """A login shell's, without a job around it."""
    jobs = ("SLURM_", "PBS_", "PMI_", "PALS_", "SMOKE_", "MASTER_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(jobs)}
    return kept | {"OMP_NUM_THREADS": "1"} | dict(changes)


def run_script(
    script: str, folder: Path, **changes: str
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """How a script ended, and words of every python command, those of its launcher before them."""
    tools, log = folder / "tools", folder / "log"
    tools.mkdir(exist_ok=True)
    log.write_text("")
    files = {"python": _PYTHON.format(python=sys.executable, log=str(log))}
    files |= {name: _LAUNCHER.format(name=name) for name in ("srun", "mpiexec")}
    for name, text in files.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": str(tools / "python"),
        "REPOSITORY": str(ROOT),
    }
    done = subprocess.run(
        ["bash", str(ROOT / "sample_scripts" / script)],
        env=plain_environment(environment | changes),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, [json.loads(line) for line in log.read_text().splitlines()]


def commands_started(script: str, folder: Path, **changes: str) -> list[list[str]]:
    """Words of the python commands of a script that works."""
    done, started = run_script(script, folder, **changes)
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return started
