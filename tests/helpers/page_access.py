"""Whether a page can be read: contrast, names for screen readers, reach of a keyboard."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.helpers.chromium import found_by

_FRAME = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" style="border:0;width:{width}px;height:2000px" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("page").addEventListener("load", (event) => {{
  const inner = event.target.contentDocument;
  const style = (one) => inner.defaultView.getComputedStyle(one);
  const parts = (text) => {{
    const found = text.match(/[\\d.]+/g).map(Number);
    return found.length > 3 ? found : [...found, 1];
  }};
  const light = ([r, g, b]) => {{
    const [x, y, z] = [r, g, b].map((one) => one / 255)
      .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  }};
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (one) => {{
    const layers = [];
    for (let at = one; at; at = at.parentElement) layers.push(parts(style(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  }};
  const pale = [], silent = [], tables = [], unreached = [], unnamed = [], unfocused = [];
  const walk = inner.createTreeWalker(inner.body, NodeFilter.SHOW_TEXT);
  let letters = 0;
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {{
    const one = node.parentElement, text = node.textContent.trim();
    if (!text || one.closest("svg, script, style, noscript, :disabled")) continue;
    if (!one.getClientRects().length) continue;
    letters += text.length;
    const look = style(one), back = behind(one);
    const pair = [light(over(parts(look.color), back)), light(back)].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05), size = parseFloat(look.fontSize);
    const large = size >= 24 || (size >= 18.66 && look.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) pale.push(text.slice(0, 40) + " " + ratio.toFixed(2));
  }}
  for (const one of inner.querySelectorAll("img"))
    if (!one.alt.trim()) silent.push(one.outerHTML.slice(0, 60));
  for (const one of inner.querySelectorAll("svg"))
    if (!one.closest("svg[role=img][aria-label]:not([aria-label=''])")) silent.push("svg");
  for (const table of inner.querySelectorAll("table")) {{
    if (!table.getAttribute("aria-label")) tables.push("no name");
    for (const cell of table.querySelectorAll("thead th"))
      if (cell.scope != "col") tables.push(cell.textContent);
    for (const row of table.tBodies[0].rows)
      if (row.cells.length > 1 && row.cells[0].scope != "row")
        tables.push(row.cells[0].textContent);
  }}
  const able = "a[href], button:not(:disabled), input, select, [tabindex='0']";
  for (const one of inner.body.querySelectorAll("*")) {{
    const more = one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1;
    if (more && /auto|scroll/.test(style(one).overflow) && !one.matches(able))
      unreached.push(one.className || one.tagName);
  }}
  for (const one of inner.querySelectorAll("button, a[href], input, select, [role=region]"))
    if (!(one.matches("button, a") && one.textContent.trim()) && !one.getAttribute("aria-label"))
      unnamed.push(one.outerHTML.slice(0, 60));
  for (const one of inner.querySelectorAll(able)) {{
    if (!one.getClientRects().length) continue;
    one.focus({{focusVisible: true}});
    const look = style(one);
    if (look.outlineStyle == "none" || parseFloat(look.outlineWidth) < 2)
      unfocused.push(one.outerHTML.slice(0, 60));
  }}
  const levels = [...inner.querySelectorAll("h1, h2, h3, h4")].map((one) => +one.tagName[1]);
  document.getElementById("found").textContent = JSON.stringify({{
    ground: light(behind(inner.body)), letters: letters, pale: pale, silent: silent,
    tables: tables, unreached: unreached, unnamed: unnamed, unfocused: unfocused, levels: levels,
    language: inner.documentElement.lang,
  }});
}});
</script>"""


class Access(NamedTuple):
    """What hinders a reader of a page, by WCAG 2.2 level AA.

    Attributes:
        ground: relative luminance of the page, from 0 (black) to 1 (white).
        letters: of the texts that were looked at.
        pale: texts with a contrast below 4.5 (large ones: 3), and the contrast.
        silent: pictures without an alternative text.
        tables: headers without a scope, tables without a name.
        unreached: what scrolls, but not by a keyboard.
        unnamed: links, controls and regions without a name.
        unfocused: what shows no outline when a keyboard has reached it.
        levels: of the headings, in order.
        language: of the document.
    """

    ground: float
    letters: int
    pale: list[str]
    silent: list[str]
    tables: list[str]
    unreached: list[str]
    unnamed: list[str]
    unfocused: list[str]
    levels: list[int]
    language: str

    @property
    def hindrances(self) -> list[str]:
        """All of them, a line each."""
        found = [
            f"{name}: {one}"
            for name in ("pale", "silent", "tables", "unreached", "unnamed", "unfocused")
            for one in getattr(self, name)
        ]
        steps = zip(self.levels, self.levels[1:], strict=False)
        if self.levels.count(1) != 1 or any(after > before + 1 for before, after in steps):
            found.append(f"levels: {self.levels}")
        return found if self.language else [*found, "no language"]


def access(page: str, width: int, dark: bool, folder: Path) -> Access:
    """Measure the HTML of a page in Chromium, at a width in pixels."""
    frame = _FRAME.format(width=width, page=html.escape(page))
    return Access(**found_by(frame, folder / f"access_{width}_{int(dark)}.html", dark))


def inches_on_a_phone(page: str) -> list[float]:
    """Width of each PNG figure of a page as it was drawn, in the form that a phone shows."""
    found = []
    for source, other in re.findall(
        r'(?:srcset="data:image/png;base64,([^"]+)"><img src="[^"]+"'
        r'|<img src="data:image/png;base64,([^"]+)")',
        page,
    ):
        image = Image.open(io.BytesIO(base64.b64decode(source or other)))
        found.append(image.width / image.info["dpi"][0])
    return found
