"""The HTML templates of this folder."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from neuromamba.common.text import visible
from neuromamba.pages.policy import policy


def template(name: str) -> Template:
    """A template by its file name; every text that it receives is escaped.

    Characters that cannot be seen are shown by their codes.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.globals["policy"] = policy
    environment.filters["data_uri"] = _data_uri
    return environment.get_template(name)


def _data_uri(picture: Path) -> str:
    """A PNG or GIF file as a ``data:`` address."""
    kind = picture.suffix.lower().removeprefix(".")
    return f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _shown(value: Any) -> Any:
    if isinstance(value, Markup):
        return Markup(visible(value, keep="\n\t"))
    return visible(value, keep="\n\t") if isinstance(value, str) else value
