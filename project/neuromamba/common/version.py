"""Which version of this code is running; kept in checkpoints."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


@cache
def code_version() -> str:
    """The package's version and, in a git repository, the commit: ``0.1.0 (aa29be1-dirty)``."""
    project = ROOT / "pyproject.toml"
    text = project.read_text(encoding="utf-8") if project.is_file() else ""
    found = re.search(r'(?m)^version = "([^"]+)"', text)
    version, commit = found[1] if found else "unknown", _commit()
    return f"{version} ({commit})" if commit else version


def _commit() -> str:
    if not (ROOT / ".git").exists():
        return ""  # not git's, or a copy inside of another repository
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--tags"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
