"""End of a command: exit status, and errors on one line."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable

from neuromamba.common.errors import UserInputError

# Exit statuses besides 0, and 1 for "done, but something was found"; docs/fault_tolerance.md is the
# users' copy.
FAILED = 2
INTERRUPTED = 130

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

    A flag whose help says what happens without it, and one that has no value then, gets none.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, [], "") or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def run_command(command: Callable[[], int | None], interrupted: str) -> int:
    """Run a command; its exit status.

    Args:
        command: returns a status, or None for 0.
        interrupted: what the user should know after Ctrl-C.
    """
    try:
        return command() or 0
    except UserInputError as error:
        message, status = str(error), FAILED
    except OSError as error:
        remedy = _MENDABLE.get(error.errno or 0)
        if remedy is None:
            raise
        place = f"'{error.filename}': " if error.filename else ""
        message, status = f"{place}{error.strerror}; {remedy}, and call again.", FAILED
    except KeyboardInterrupt:
        message, status = f"interrupted; {interrupted}", INTERRUPTED
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status
