"""Parse flags over those of a ``--config`` file; a wrong one is told with the nearest name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.serialise import read_yaml


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``UserInputError`` and suggests the nearest flag."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # argparse takes -1e-3 for a flag and would complain that the value is missing.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-inf$", re.I)

    def error(self, message: str) -> NoReturn:
        raise UserInputError(message)

    def known_flags(self) -> dict[str, argparse.Action]:
        """Flag name without dashes -> its action."""
        return {action.dest: action for action in self._actions if action.option_strings}


def config_file_arguments(parser: Parser, path: str | Path) -> list[str]:
    """Turn a ``--config`` file into arguments, so that it passes the same checks as flags.

    Raises:
        UserInputError: unreadable file, unknown flag, or a nested value.
    """
    known = parser.known_flags()
    arguments: list[str] = []
    for key, value in read_yaml(path, "--config").items():
        action = known[look_up(str(key), known, f"--config {path}")]
        if value is None:
            continue
        if isinstance(value, dict):
            raise UserInputError(f"--config {path}: '{key}' holds a mapping, expected a value.")
        if isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                raise UserInputError(
                    f"--config {path}: '{key}' is {value!r}, expected true or false."
                )
            arguments.append(f"--{key}" if value else f"--no-{key}")
        else:
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{key}", *(str(item) for item in values)]
    return arguments


def parse_arguments(
    parser: Parser, argv: Sequence[str]
) -> tuple[argparse.Namespace, frozenset[str]]:
    """Parse flags over the defaults of ``--config``.

    Returns:
        The namespace, and the names of the flags that were given in either place.

    Raises:
        UserInputError: unknown flag (with the nearest one), wrong type, unreadable file.
    """
    finder = Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    if path is not None:
        argv = [*config_file_arguments(parser, path), *argv]
    args, unknown = parser.parse_known_args(argv)
    for word in unknown:
        flag = word.split("=")[0]
        if flag.startswith("--"):
            look_up(flag, [o for a in parser._actions for o in a.option_strings], "flag", "--help")
        raise UserInputError(f"unexpected argument '{word}'; every value follows its flag.")
    given = {word.split("=")[0].removeprefix("--") for word in argv if word.startswith("--")}
    return args, frozenset(name.removeprefix("no-") for name in given)


def default_of(cls: type, field: str) -> Any:
    """Return the default of a field of a configuration, which is that of its flag."""
    return cls.__dataclass_fields__[field].default  # type: ignore[attr-defined]


def add_switch(group: argparse._ArgumentGroup, name: str, default: bool, text: str) -> None:
    """Add a flag ``--name`` with its opposite ``--no-name``."""
    group.add_argument(
        f"--{name}", action=argparse.BooleanOptionalAction, default=default, help=text
    )
