"""What the repository's Markdown files need in order to be pages of the site.

A link to a folder, which a site does not have, leads to the page that is made from it
(``MADE_FROM``) or to the ``README.md`` in it; without either only its text is kept. Links to pages
and files need nothing: Sphinx checks them, and copies linked files. A file that a program has
written without a heading gets one (``TITLES``, or its name).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

# Folder -> the page that is written when the site is built, and that a checkout does not have.
MADE_FROM = {
    "examples": "docs/gallery/index.rst",
    "docs/reference": "docs/reference/commands/index.rst",
}
# Pages that a program has written without a heading; others are called by their file's name.
TITLES = {
    "backbone": "Time and memory of the backbone",
    "bf16_on_cpu": "bfloat16 on a CPU",
    "cpu_steps": "Training steps on a CPU, before and now",
    "ingest": "Time to convert a folder into a store",
    "loader": "Windows loaded per second",
    "loss_scaling": "Loss over parameters and tokens",
    "memory_plan": "Predicted and measured memory",
    "mixer": "Time and memory of one Mamba2 layer",
    "scaling": "Cost over frames, windows and tokens",
    "short_sequences": "Pathways with short sequences",
    "start_up": "Start of the commands",
    "training_step": "Time of a training step",
    "use_a_model": "Time and memory of using a model",
}
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)\)")


def without_folders(text: str, page: Path, root: Path) -> str:
    """The text of a page with its links to folders replaced.

    Args:
        text: Markdown.
        page: the file that holds it.
        root: the repository.
    """

    def replaced(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        if not target.is_dir() or not target.is_relative_to(root):
            return link[0]
        if made := MADE_FROM.get(target.relative_to(root).as_posix()):
            return f"[{link[1]}]({os.path.relpath(root / made, page.parent)})"
        if (target / "README.md").is_file():
            return f"[{link[1]}]({link[2].rstrip('/')}/README.md)"
        return link[1]

    return LINK.sub(replaced, text)


def with_heading(text: str, page: Path) -> str:
    """The text with a heading; a page without one would have no title in the lists."""
    if re.search(r"(?m)^# ", text):
        return text
    name = page.stem.replace("_", " ")
    title = TITLES.get(page.stem, name[0].upper() + name[1:])
    folder = page.parent.name  # below results/: of another kind of machine
    if folder not in ("", "results"):
        title += f", {folder.replace('_', ' ')}"
    return f"# {title}\n\n{text}"


def with_short_words(body: str) -> str:
    """HTML in which words of code that fit into a line of a phone have a class of their own.

    Browsers break a line after each hyphen, so that a flag would be cut after its ``--``.
    """
    return re.sub(
        r'<span class="pre">([^<]{1,30})</span>', r'<span class="pre short">\1</span>', body
    )


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""

    def read(app: Any, name: str, source: list[str]) -> None:
        path = Path(app.env.doc2path(name))
        if path.suffix == ".md":
            source[0] = with_heading(without_folders(source[0], path, Path(app.srcdir)), path)

    def written(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
        if "body" in context:
            context["body"] = with_short_words(context["body"])

    app.connect("source-read", read)
    app.connect("html-page-context", written)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
