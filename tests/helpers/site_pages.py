"""All pages of a built site in Chromium: their widths, and pictures without a text."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.helpers.chromium import CHROMIUM

# One frame shows page after page, at each width: a browser per page would take minutes.
_FRAME = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" style="border:0;height:1600px"></iframe><pre id="found"></pre><script>
const pages = PAGES, widths = WIDTHS, found = [], frame = document.getElementById("frame");
let n = 0;
function next() {
  if (n == pages.length * widths.length) {
    document.getElementById("found").textContent = JSON.stringify(found);
    return;
  }
  const page = pages[n % pages.length], width = widths[Math.floor(n / pages.length)];
  frame.style.width = width + "px";
  frame.onload = () => {
    const inner = frame.contentDocument;
    const silent = [...inner.querySelectorAll("img:not([alt])")];
    found.push([page, width, inner.documentElement.scrollWidth, silent.map((one) => one.src)]);
    n += 1;
    next();
  };
  frame.src = page;
}
next();
</script>"""


class SitePage(NamedTuple):
    """A page at a width.

    Attributes:
        page: its path below the site.
        width: of the window, in pixels.
        needed: width of all that the page holds, ``scrollWidth``.
        silent: addresses of pictures without an ``alt``; an empty one marks a decoration.
    """

    page: str
    width: int
    needed: int
    silent: list[str]


def measure_site(site: Path, folder: Path, widths: tuple[int, ...]) -> list[SitePage]:
    """Lay out every page of a site; ``folder`` takes the page with the frame."""
    assert CHROMIUM is not None
    pages = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    pages = [path for path in pages if path != site / "index.html"]  # it only leads to another
    text = _FRAME.replace("PAGES", json.dumps([path.as_uri() for path in pages]))
    frame = folder / "frame.html"
    frame.write_text(text.replace("WIDTHS", json.dumps(widths)), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=600000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,2000"]
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, check=True)
    (shown,) = re.findall(r'(?s)<pre id="found">(.*?)</pre>', done.stdout)
    rows = json.loads(html.unescape(shown))
    assert len(rows) == len(pages) * len(widths)
    start = f"{site.as_uri()}/"
    return [SitePage(page.removeprefix(start), *row) for page, *row in rows]
