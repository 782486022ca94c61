"""End of a command: exit status, and errors on one line."""

from __future__ import annotations

import argparse
import errno
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import visible

# Exit statuses besides 0, and 1 for "done, but something was found"; docs/fault_tolerance.md is the
# users' copy.
FAILED = 2
INTERRUPTED = 130
NOBODY_READS = 141  # as a shell gives it for `... | head`: 128 and the signal of a closed pipe

# The machine's answers that a user can mend; another OSError is a bug and keeps its traceback.
_MENDABLE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "make room",
    errno.EACCES: "allow it, or choose another place",
    errno.EPERM: "allow it, or choose another place",
    errno.EROFS: "choose another place",
    errno.EEXIST: "choose another place",
    errno.ENOTDIR: "choose another place",
}


class ExampleFormatter(
    argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter
):
    """Keep the lines of a description, which holds an example, and add defaults to the flags.

    Defaults are written as they are typed. A flag whose help says what happens without it, and one
    that is off or has no value then, gets none.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # Before Python 3.13 a switch has its default in its help already.
        words = (action.help or "").replace(" (default: %(default)s)", "")
        default = action.default
        none = default is False or default in (None, [], (), "", argparse.SUPPRESS)
        if none or re.search(r"\bdefault\b", words):
            return words
        if default is True:
            return f"{words} (default: yes)"
        values = default if isinstance(default, list | tuple) else [default]
        typed = " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)
        return f"{words} (default: {typed})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        """Name the value of ``--a_long_name`` N or X: numbers need no longer name."""
        kinds: dict[object, str] = {int: "N", float: "X"}
        return kinds.get(action.type) or super()._get_default_metavar_for_optional(action)


def run_command(command: Callable[[], int | None], interrupted: str) -> int:
    """Run a command; its exit status.

    Args:
        command: returns a status, or None for 0.
        interrupted: what the user should know after Ctrl-C.
    """
    try:
        with visible_output():
            status = command() or 0
            sys.stdout.flush()
            return status
    except UserInputError as error:
        message, status = str(error), FAILED
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return NOBODY_READS
        if (found := of_machine(error)) is None:
            raise
        message, status = found, FAILED
    except KeyboardInterrupt:
        message, status = f"interrupted; {interrupted}", INTERRUPTED
    print_error(message)
    return status


def _nobody_reads() -> bool:
    """Whether the reader of the output has left; what is still to be written is dropped then."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # not a file, as in a notebook
        return False
    state = select.poll()
    state.register(output, 0)  # without asking for more, the end of the other side is reported
    if not state.poll(0):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)  # else Python's own flush at the end complains
    os.close(nowhere)
    return True


def of_machine(error: BaseException) -> str | None:
    """Say what the machine has answered, if a user can correct it; None for another error."""
    if not isinstance(error, OSError) or error.errno not in _MENDABLE:
        return None
    place = f"'{error.filename}': " if error.filename else ""
    return f"{place}{error.strerror}; {_MENDABLE[error.errno]}, and call again."


def print_error(message: object) -> None:
    """Print the one line in which a command that failed ends."""
    print(f"error: {visible(str(message))}", file=sys.stderr, flush=True)


# What progress bars and coloured logs send to a terminal, and nothing else that could change what
# stands on it: lines, tabs, cursor up, erase, colours.
_SENT = re.compile(r"(\x1b\[[0-9;]*[AKm]|[\n\r\t\x08]+)")


class _VisibleStream:
    """A text stream that shows characters which cannot be seen by their codes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        parts = _SENT.split(text)
        self._stream.write(
            "".join([visible(part) if i % 2 == 0 else part for i, part in enumerate(parts)])
        )
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def visible_output() -> Iterator[None]:
    """Show what cannot be seen in names that a command prints, on a terminal or into a log."""
    before = sys.stdout, sys.stderr
    if any(isinstance(stream, _VisibleStream) for stream in before):
        yield
        return
    sys.stdout, sys.stderr = (_VisibleStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
