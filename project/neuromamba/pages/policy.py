"""The Content-Security-Policy of our pages: what a browser lets a page do.

A page shows names from data. They are escaped; should one ever get through, the policy keeps it
from doing anything: a page runs only the scripts and uses only the styles whose hashes it names,
shows only pictures that it holds itself, and loads and sends nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable

_HEAD = re.compile(r"<head>\s*(<meta charset=[^>]*>)?", re.IGNORECASE)
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)


def policy(styles: Iterable[str], scripts: Iterable[str], images: str = "data:") -> str:
    """Return the policy of a page.

    Args:
        styles, scripts: what stands between the tags of each ``<style>`` and ``<script>``, exactly.
            It must be ours, with nothing from data in it.
        images: where pictures come from; ``blob:`` is what a script of the page makes.
    """
    parts = {
        "default-src": "'none'",
        "style-src": _hashes(styles),
        "script-src": _hashes(scripts),
        "img-src": images,
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items())


def with_policy(page: str) -> str:
    """Add a policy to a page that another program made, before anything that it rules.

    Args:
        page: HTML in which whatever comes from data has no ``<``.

    Raises:
        ValueError: it has no ``<head>``.
    """
    head = _HEAD.search(page)
    if head is None:
        raise ValueError("a page without <head>")
    found = policy(_STYLE.findall(page), _SCRIPT.findall(page))
    meta = f'\n<meta http-equiv="Content-Security-Policy" content="{html.escape(found)}">'
    return page[: head.end()] + meta + page[head.end() :]


def _hashes(texts: Iterable[str]) -> str:
    """Sources of a policy; a browser hashes a text with its line breaks as they are parsed."""
    found = []
    for text in texts:
        parsed = text.replace("\r\n", "\n").replace("\r", "\n")
        digest = base64.b64encode(hashlib.sha256(parsed.encode()).digest()).decode()
        found.append(f"'sha256-{digest}'")
    return " ".join(found) or "'none'"
