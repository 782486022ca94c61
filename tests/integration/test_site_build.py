"""The site without its gallery is built without a warning, and its pages fit a phone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.chromium import CHROMIUM
from tests.helpers.paths import ROOT
from tests.helpers.site_pages import measure_site

needs_sphinx = pytest.mark.skipif(
    importlib.util.find_spec("sphinx_gallery") is None,
    reason="the tools of requirements-docs.txt are not installed (bash setup_env.sh --docs)",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/build.py"), "--no-gallery", "--output", str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "project")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "html"


@needs_sphinx
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pages_are_there(site: Path) -> None:
    for page in ("index", "docs/index", "docs/gallery/index", "docs/reference/commands/train"):
        assert (site / f"{page}.html").is_file(), page


@needs_sphinx
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_pages_fit_a_phone_and_a_laptop(site: Path, tmp_path: Path) -> None:
    found = measure_site(site, tmp_path, (390, 1280))
    assert [one for one in found if one.needed > one.width + 1] == []
    assert [one for one in found if one.silent] == []
