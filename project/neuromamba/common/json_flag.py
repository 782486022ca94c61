"""The flag ``--json [FILE]`` of commands that print a text: the same facts for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.errors import UserInputError


def add_json(parser: Any) -> None:
    """Add ``--json [FILE]``."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="JSON in place of the text, or beside it into a file",
    )


def write_json(record: Any, path: str | None) -> None:
    """Write facts to a file, or with "-" print them; None does neither."""
    if path is None:
        return
    text = json.dumps(record, indent=1)
    if path == "-":
        print(text)
        return
    write_file(path, f"{text}\n", "--json")


def write_file(path: str, text: str, flag: str) -> None:
    """Write a text.

    Raises:
        UserInputError: it cannot be written; names the flag.
    """
    try:
        write_text_atomically(Path(path), text)
    except OSError as error:
        raise UserInputError(f"{flag}: cannot write '{path}' ({error.strerror}).") from None
