"""The headers of a store's runs in one file, so that a large cohort opens in seconds.

``<image_path>/headers.json`` holds what the files say, with their sizes and times of change. A file
that differs in either is read again; without the cache, or with one that is damaged, all are.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.data.store.header import RunHeader
from neuromamba.data.store.reader import read_header

logger = logging.getLogger(__name__)

CACHE = "headers.json"
_FIELDS = [field.name for field in dataclasses.fields(RunHeader)]
_WORTH_A_BAR = 500  # files to read


def read_headers(
    image_path: str | Path, paths: Sequence[Path], *, write: bool
) -> tuple[dict[str, RunHeader], list[UserInputError]]:
    """The headers of runs by the names of their files, in the order of ``paths``.

    Args:
        image_path: the store's folder.
        paths: files of the store.
        write: bring the cache up to date, if the folder can be written.

    Returns:
        The headers of the files that can be read, and what is wrong with the others.
    """
    cache_path = Path(image_path) / CACHE
    known = _load(cache_path)
    stamps = {path.name: _stamp(path) for path in paths}
    old = [p for p in paths if p.name not in known or known[p.name][0] != stamps[p.name]]
    fresh: dict[str, RunHeader] = {}
    errors: list[UserInputError] = []
    terminal = sys.stderr.isatty()
    hidden = len(old) < _WORTH_A_BAR or not terminal
    for path in tqdm(old, desc="headers", unit="run", leave=False, disable=hidden):
        try:
            fresh[path.name] = read_header(path)
        except UserInputError as error:
            errors.append(error)
    unread = {path.name for path in old} - fresh.keys()
    headers = {
        name: fresh[name] if name in fresh else _header(known[name][1])
        for name in stamps
        if name not in unread
    }
    if write and (fresh or known.keys() - headers.keys()):
        _save(cache_path, {name: (stamps[name], header) for name, header in headers.items()})
    return headers, errors


def _stamp(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError:
        return []  # read_header says what is wrong with it
    return [found.st_size, found.st_mtime_ns]


def _header(values: Sequence[Any]) -> RunHeader:
    def plain(value: Any) -> Any:
        return tuple(map(plain, value)) if isinstance(value, list) else value

    return RunHeader(**{name: plain(v) for name, v in zip(_FIELDS, values, strict=True)})


def _load(cache_path: Path) -> dict[str, tuple[list[int], list[Any]]]:
    """File name -> its stamp and the header's values; empty if the cache cannot be used."""
    try:
        content = parse_json(cache_path.read_text(encoding="utf-8"))
        if content["fields"] != _FIELDS:
            return {}
        return {name: (stamp, values) for name, (stamp, values) in content["runs"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(
            "warning: %s cannot be used (%s); the files are read instead", cache_path, error
        )
        return {}


def _save(cache_path: Path, headers: Mapping[str, tuple[list[int], RunHeader]]) -> None:
    runs = {
        name: [stamp, [getattr(header, field) for field in _FIELDS]]
        for name, (stamp, header) in headers.items()
    }
    try:
        write_text_atomically(cache_path, json.dumps({"fields": _FIELDS, "runs": runs}))
    except OSError as error:
        logger.info("%s is not kept (%s)", cache_path, error.strerror)
