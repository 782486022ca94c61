"""How commands end."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from neuromamba.common.cli import run_command
from neuromamba.common.errors import UserInputError
from neuromamba.common.text import visible
from neuromamba.training.stopping import run_training

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


NAMES = ["a\u202eb", "a\x1b]0;title\x07b", "a\x1b[2Jb", "a\x9b2Jb", "a\u200bb", "a\x00b"]


@pytest.mark.parametrize("run", [run_command, lambda command, _: run_training(command)])
@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(
    run: Callable[..., int], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal and in a log, in messages and in errors."""

    def command() -> None:
        print(f"subject {name}", "second\tline", sep="\n")
        sys.stderr.write(f"warning: {name}\n")
        raise UserInputError(f"{name}: bad.")

    assert run(command, "") == 2
    found = capsys.readouterr()
    assert found.out == f"subject {visible(name)}\nsecond\tline\n"
    assert found.err.splitlines()[-1] == f"error: {visible(name)}: bad."
    assert not set(found.err + found.out) & set("\u202e\x1b\x07\x9b\u200b\x00")


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise UserInputError("sub-\nerror: a line that the name made up")

    run_command(command, "")
    assert capsys.readouterr().err.count("\n") == 1


def test_progress_bars_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = "\r 50%|##  |\x1b[A\n\x1b[32mgreen\x1b[0m"

    def command() -> None:
        sys.stderr.write(bar)

    run_command(command, "")
    assert capsys.readouterr().err == bar


def test_a_file_name_of_another_encoding_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """Its bytes are halves of characters in Python, which cannot be written as UTF-8."""
    name = os.fsdecode(b"sub-\xff")

    def command() -> None:
        print(name)

    assert run_command(command, "") == 0
    assert capfd.readouterr().out == "sub-\\udcff\n"


def test_a_reader_that_leaves_ends_the_command_without_a_traceback() -> None:
    """As `neuromamba reproduce --dry_run ... | head` does."""
    program = (
        "import sys; from neuromamba.common.cli import run_command\n"
        "def much():\n"
        "    for _ in range(100_000): print('a line')\n"
        "sys.exit(run_command(much, ''))"
    )
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(write)
        assert os.read(read, 6) == b"a line"
        os.close(read)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_another_broken_pipe_keeps_its_traceback() -> None:
    def command() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run_command(command, "")
