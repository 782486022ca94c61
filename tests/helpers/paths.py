"""Places in the repository that tests use."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "project"
PACKAGE = PROJECT / "neuromamba"
GOLDEN = ROOT / "tests" / "golden"
# Scripts of the reference's layout.
DATA_SCRIPTS = PROJECT / "module" / "utils" / "data_preprocess_and_load"
