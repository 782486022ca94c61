"""Reading of JSON that somebody else may have written or changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError
from neuromamba.common.plain_data import check_plain


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is none, or is nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path, remedy: str, flag: str = "") -> Any:
    """Read a JSON file of a kind that is small.

    Args:
        path: the file.
        remedy: what to do about one that cannot be read, a sentence.
        flag: that named it, if any.

    Raises:
        UserInputError: it cannot be read, is no JSON, or nothing that can be worked with.
    """
    place = f"{flag}: '{path}'" if flag else f"{path}:"
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        check_plain(found)
    except OSError as error:
        raise UserInputError(f"{place} cannot be read ({error.strerror}). {remedy}") from None
    except ValueError as error:
        raise UserInputError(f"{place} is damaged ({error}). {remedy}") from None
    return found


def read_json_record(path: Path, remedy: str, flag: str = "") -> dict[str, Any]:
    """Read a JSON file that holds names with values; arguments and errors of ``read_json``."""
    found = read_json(path, remedy, flag)
    if not isinstance(found, dict):
        place = f"{flag}: '{path}'" if flag else f"{path}:"
        raise UserInputError(
            f"{place} is damaged (found {type(found).__name__}, expected names with values). "
            f"{remedy}"
        )
    return found
