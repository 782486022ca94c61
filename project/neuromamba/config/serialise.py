"""Configurations to and from plain containers, and YAML files.

The containers can be held by a checkpoint that is read with ``weights_only=True``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.plain_data import check_plain

ConfigT = TypeVar("ConfigT")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain containers (tuples become lists) for YAML and checkpoints."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    keys = _file_keys(type(config))
    return {keys.get(k, k): plain(value) for k, value in dataclasses.asdict(config).items()}


def from_dict(cls: type[ConfigT], values: Mapping[str, Any], source: str) -> ConfigT:
    """Build a configuration from plain containers.

    Raises:
        UserInputError: an unknown key or a value of another type, naming ``source``.
    """
    if not isinstance(values, Mapping):
        raise UserInputError(
            f"{source}: {cls.__name__}: got {type(values).__name__}, expected names with values."
        )
    hints = get_type_hints(cls)
    keys = _file_keys(cls)
    fields = {keys.get(f.name, f.name): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    declared = {key: field.type for key, field in fields.items()}
    for key, value in values.items():
        look_up(str(key)[:80], declared, source)
        if not _fits(value, hints[fields[key].name]):
            raise UserInputError(
                f"{source}: {key}: got {repr(value)[:80]}, expected {declared[key]}."
            )
    given = {fields[k].name: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**given)
    except UserInputError as error:  # it names a flag, which here nobody has typed
        raise UserInputError(f"{source}: {error}") from None


def _file_keys(cls: type) -> Mapping[str, str]:
    """Return the fields of a configuration that have another name in files -> that name."""
    return getattr(cls, "FILE_KEYS", {})


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a file has the type of a field."""
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return isinstance(value, list | tuple) and all(_fits(v, item) for v in value)
    if isinstance(hint, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, int | float if hint is float else hint)


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """Read a YAML mapping; a missing, unreadable or malformed file is a ``UserInputError``."""
    try:
        with open(path, encoding="utf-8") as stream:
            values = yaml.safe_load(stream)
        check_plain(values)
    except OSError as error:
        raise UserInputError(f"{what}: cannot read '{path}' ({error.strerror}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of characters and dates
        first = str(error).replace("\n", " ")
        raise UserInputError(f"{what}: '{path}' is not valid YAML ({first}).") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserInputError(f"{what}: '{path}' must hold 'flag: value' lines.")
    return values
