"""How commands end."""

from __future__ import annotations

import errno
import os

import pytest

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError

CASES: list[tuple[BaseException, int, str]] = [
    (UserInputError("--flag: bad."), 2, "error: --flag: bad.\n"),
    (KeyboardInterrupt(), 130, "error: interrupted; call again.\n"),
    (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/x"),
        2,
        "error: 'out/x': No space left on device; make room, and call again.\n",
    ),
    (
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out/x"),
        2,
        "error: 'out/x': Permission denied; allow it, or choose another place, and call again.\n",
    ),
]


@pytest.mark.parametrize(("error", "status", "said"), CASES)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert run_command(command, "call again.") == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EBADF, "a bug")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    def command() -> None:
        raise error

    with pytest.raises(type(error), match="a bug"):
        run_command(command, "call again.")


def test_statuses_of_a_command_are_passed_on() -> None:
    assert run_command(lambda: None, "") == 0
    assert run_command(lambda: 1, "") == 1
