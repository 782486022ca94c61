"""Widths of a page as Chromium lays it out."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# The page is laid out in a frame of the width asked for: a window cannot be arbitrarily narrow.
_FRAME = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" style="border:0;width:{width}px;height:2000px" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("page").addEventListener("load", (event) => {{
  const inner = event.target.contentDocument, width = event.target.clientWidth;
  const style = (one) => inner.defaultView.getComputedStyle(one);
  const scrolls = (one) => /auto|scroll|hidden/.test(style(one).overflowX);
  const cut = [], scrolled = [], unmarked = [], narrow = [];
  for (const one of inner.body.querySelectorAll("*")) {{
    if (scrolls(one) && one.scrollWidth > one.clientWidth + 1)
      scrolled.push(one.className || one.tagName);
    const more = one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1;
    if (more && /auto|scroll/.test(style(one).overflow) && one.tagName != "SELECT"
        && !style(one).backgroundAttachment.includes("local"))
      unmarked.push(one.className || one.tagName);
    if (style(one).display == "table-cell" && one.clientWidth < 45 && one.clientHeight > 90
        && one.textContent.trim().length > 12)
      narrow.push(one.textContent.slice(0, 60));
    if (one.getBoundingClientRect().right <= width + 1) continue;
    let around = one.parentElement;
    while (around && !scrolls(around)) around = around.parentElement;
    if (!around) cut.push(one.tagName + " " + one.textContent.slice(0, 60));
  }}
  document.getElementById("found").textContent = JSON.stringify(
    {{width: inner.documentElement.scrollWidth, cut: cut, scrolled: scrolled, unmarked: unmarked,
     narrow: narrow}});
}});
</script>"""


class Layout(NamedTuple):
    """A page at a width.

    Attributes:
        width: of the whole page in pixels, ``scrollWidth``.
        cut: elements that reach beyond the right edge, and cannot be scrolled to.
        scrolled: classes (or tags) of the containers that have to be scrolled sideways.
        unmarked: of those that scroll in any direction, without a shadow that says so.
        narrow: texts of cells of a few letters' width and many lines.
    """

    width: int
    cut: list[str]
    scrolled: list[str]
    unmarked: list[str]
    narrow: list[str]


def layout(page: str, width: int, folder: Path) -> Layout:
    """Lay out the HTML of a page."""
    frame = _FRAME.format(width=width, page=html.escape(page))
    return Layout(**found_by(frame, folder / f"frame_{width}.html"))


def found_by(frame: str, file: Path, dark: bool = False) -> Any:
    """What the script of a page leaves as JSON in its ``<pre id="found">``.

    Args:
        frame: the page.
        file: to write it to.
        dark: whether pages see a dark colour scheme.
    """
    assert CHROMIUM is not None
    file.write_text(frame, encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={file.parent / 'profile'}",
            f"--blink-settings=preferredColorScheme={int(not dark)}",
            "--virtual-time-budget=5000",
            "--window-size=1600,2100",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (found,) = re.findall(r'<pre id="found">(\{.*?\})</pre>', done.stdout, re.DOTALL)
    return json.loads(html.unescape(found))


class Opened(NamedTuple):
    """A page that was opened: its document afterwards, and what the browser's console says."""

    document: str
    console: list[str]


def opened(page: str, folder: Path) -> Opened:
    """Open the HTML of a page, and let its scripts run."""
    assert CHROMIUM is not None
    file = folder / "opened.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=5000",
            "--enable-logging=stderr",
            "--v=0",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Opened(done.stdout, re.findall(r"CONSOLE:\d+\] (.*)", done.stderr))
