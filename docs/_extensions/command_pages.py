"""Writes a page of reference for every command of ``neuromamba``, from the parser that reads it.

A command's parser is found by calling the command with ``--help``: whatever builds it, the page
lists what a person who asks for help is shown. The pages are written below
``docs/reference/commands/`` before Sphinx looks for its sources, and are not kept in git.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from neuromamba.__main__ import COMMANDS, Command

FOLDER = Path(__file__).resolve().parents[1] / "reference" / "commands"


def parser_of(command: Command) -> argparse.ArgumentParser:
    """The parser that answers ``--help`` of a command."""
    found: list[argparse.ArgumentParser] = []

    def keep(parser: argparse.ArgumentParser, file: Any = None) -> None:
        found.append(parser)

    module = import_module(f"neuromamba.commands.{command.module}")
    shown = mock.patch.object(argparse.ArgumentParser, "print_help", keep)
    with shown, contextlib.suppress(SystemExit):
        module.main(["--help"])
    (parser,) = found  # a command that asks for no help has no page
    return parser


def escaped(text: str) -> str:
    """Text without meaning for reStructuredText; paths of documents become links."""
    text = re.sub(r"([\\*`|_])", r"\\\1", text)
    return re.sub(r"\b(docs/[\w\\]+)\.md\b", lambda m: f":doc:`/{_plain(m[1])}`", text)


def _plain(text: str) -> str:
    return text.replace("\\", "")


def description(text: str) -> Iterator[str]:
    """Lines of a description: indented paragraphs are commands, others are text."""
    for paragraph in re.split(r"\n[ ]*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        if all(line.startswith("    ") for line in lines):
            yield from [".. code-block:: console", "", *(f"   {line[4:]}" for line in lines), ""]
        elif any(line.startswith("  ") for line in lines):  # a list that is aligned by spaces
            yield from ["::", "", *(f"   {line}" for line in lines), ""]
        else:
            yield from [escaped(" ".join(line.strip() for line in lines)), ""]


def option(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    """Lines of one flag or argument."""
    formatter = parser._get_formatter()
    if action.option_strings:
        values = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
        names = ", ".join(f"{name} {values}".rstrip() for name in action.option_strings)
    else:
        (names,) = formatter._metavar_formatter(action, action.dest)(1)
    yield from [f".. option:: {names}", ""]
    words = formatter._expand_help(action) if action.help else ""
    yield from [f"   {escaped(' '.join(words.split()))}", ""]


def page(name: str, command: Command) -> str:
    """The page of a command, as reStructuredText."""
    parser = parser_of(command)
    title = f"neuromamba {name}"
    lines = [title, "=" * len(title), "", *description(parser.description or command.summary)]
    usage = parser.usage or f"{parser.prog} [flags]"
    lines += [".. code-block:: text", "", f"   {usage}", ""] if parser.usage else []
    lines += [f".. program:: {title}", ""]
    titles = {"options": "Flags", "positional arguments": "Arguments"}
    for group in parser._action_groups:
        shown = [one for one in group._group_actions if one.help != argparse.SUPPRESS]
        if not shown or [one.dest for one in shown] == ["help"]:
            continue
        heading = titles.get(str(group.title), str(group.title).capitalize())
        lines += [heading, "-" * len(heading), ""]
        if group.description:
            lines += [escaped(" ".join(group.description.split())), ""]
        for action in shown:
            if action.dest != "help":
                lines += option(parser, action)
    if parser.epilog:
        lines += description(parser.epilog)
    return "\n".join(lines).rstrip() + "\n"


def file_name(name: str) -> str:
    """Name of a command's page without its ending: ``regions train`` is ``regions-train``."""
    return name.replace(" ", "-")


def overview() -> str:
    """The list of all commands by purpose."""
    lines = [
        "Commands",
        "========",
        "",
        "Every command of ``neuromamba`` and its flags, as ``neuromamba COMMAND --help`` shows",
        "them. :doc:`/docs/which_command` lists the commands by question.",
        "",
    ]
    for purpose, commands in COMMANDS.items():
        heading = purpose.capitalize()
        lines += [heading, "-" * len(heading), "", ".. list-table::", "   :widths: 35 65"]
        lines += ["   :width: 100%", ""]
        for name, command in commands.items():
            lines.append(f"   * - :doc:`neuromamba {name} <{file_name(name)}>`")
            lines.append(f"     - {escaped(command.summary)}")
        lines += ["", ".. toctree::", "   :hidden:", ""]
        lines += [f"   {file_name(name)}" for name in commands]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def write_pages(folder: Path = FOLDER) -> None:
    """Write the pages; those that are right already keep their time, so that Sphinx skips them."""
    pages = {"index": overview()}
    for commands in COMMANDS.values():
        pages |= {file_name(name): page(name, command) for name, command in commands.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.rst"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", lambda app: write_pages())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
