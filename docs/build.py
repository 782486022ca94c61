"""Build the site, ``docs/_build/html``: warnings are errors, nothing is loaded from elsewhere.

    python docs/build.py [--no-gallery] [--output DIR]

``make docs`` installs what this needs first. Without the gallery the scripts of ``examples/`` are
shown, but not executed, so that a change of a text is seen within a minute.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent
BUILD = DOCS / "_build"
# What a browser fetches by itself: scripts, styles, pictures, fonts; not links to follow.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["'](?:https?:)?//[^"']+"""
    r"""|<link\b[^>]*\brel=["'](?:stylesheet|preload|icon)["'][^>]*\bhref=["'](?:https?:)?//[^"']+"""
    r"""|@import\s+(?:url\()?["'](?:https?:)?//[^"')]+|url\(["']?(?:https?:)?//[^"')]+""",
    re.IGNORECASE,
)


def fetched_from_elsewhere(folder: Path) -> list[str]:
    """References of pages and style sheets to other servers, with the file that has them."""
    return [
        f"{path.relative_to(folder)}: {found}"
        for pattern in ("*.html", "*.css")
        for path in sorted(folder.rglob(pattern))
        for found in FETCHED.findall(path.read_text(encoding="utf-8"))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Build the site; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="make docs", description="Build the site into docs/_build/html.", allow_abbrev=False
    )
    parser.add_argument(
        "--no-gallery", action="store_true", help="do not execute the scripts of examples/"
    )
    parser.add_argument(
        "--output", type=Path, default=BUILD, metavar="DIR", help="default: docs/_build"
    )
    args = parser.parse_args(argv)
    try:
        from sphinx.cmd.build import main as sphinx
    except ImportError:
        print("error: Sphinx is not installed. Run: bash setup_env.sh --docs", file=sys.stderr)
        return 2

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["NEUROMAMBA_GALLERY"] = str(int(not args.no_gallery))  # conf.py reads it
    out = args.output.resolve()
    os.chdir(DOCS.parent)
    options = ["-b", "html", "-q", "-W", "-c", str(DOCS), "-d", str(out / "doctrees")]
    status = sphinx([*options, ".", str(out / "html")])
    if status:
        return int(status)
    for line in (remote := fetched_from_elsewhere(out / "html")):
        print(f"error: the page loads from another server: {line}", file=sys.stderr)
    if remote:
        return 1
    print(f"The site is built: {out / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
