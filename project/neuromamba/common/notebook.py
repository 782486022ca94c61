"""Commands and their pages in a notebook, or in a script of ``examples/``."""

from __future__ import annotations

import html
import shlex
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

from neuromamba.common.errors import UserInputError


class EmbeddedPage:
    """A page that a command has written, shown in a notebook inside of a frame.

    Attributes:
        path: the HTML file; it must need no other file, as all pages of this package do.
        height: of the frame, in pixels.
    """

    def __init__(self, path: Path, height: int) -> None:
        self.path = path
        self.height = height

    def __repr__(self) -> str:
        return f"page: {self.path}"

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"))
        return (
            f'<iframe title="{html.escape(self.path.stem)}" loading="lazy" srcdoc="{page}" '
            f'style="width:100%;height:{self.height}px;border:1px solid #888"></iframe>'
        )


class CommandLine:
    """Runs commands of ``neuromamba`` in a folder and prints the end of what they say::

        neuromamba = CommandLine()
        neuromamba("demo --quick")
        neuromamba.page("output/demo/report.html")

    Each command is a process of its own, exactly as typed in a shell.

    Args:
        folder: where the commands run; None makes a temporary one, which is removed with this
            object.
        lines: how many lines of a command's output are printed, the last ones.
    """

    def __init__(self, folder: str | Path | None = None, lines: int = 12) -> None:
        if folder is None:
            folder = tempfile.mkdtemp(prefix="neuromamba_")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines = lines

    def __call__(self, command: str) -> None:
        """Run a command.

        Args:
            command: its words after ``neuromamba``; relative paths start in ``folder``.

        Raises:
            UserInputError: it ended with another exit status than 0; says what it printed last.
        """
        words = shlex.split(command)
        print(f"$ neuromamba {shlex.join(words)}")
        done = subprocess.run(
            [sys.executable, "-m", "neuromamba", *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        said = done.stdout.rstrip().splitlines()
        if len(said) > self.lines:
            said = ["...", *said[-self.lines :]]
        print("\n".join(said), flush=True)
        if done.returncode:
            last = done.stderr.rstrip().splitlines()[-1:]
            raise UserInputError(
                f"neuromamba {words[0] if words else ''}: exit status {done.returncode}. "
                + "".join(last)
            )

    def page(self, path: str | Path, height: int = 640) -> EmbeddedPage:
        """A page below ``folder``, as the last expression of a cell.

        Raises:
            UserInputError: there is no such file.
        """
        file = self.folder / path
        if not file.is_file():
            raise UserInputError(f"{path}: there is no such page in {self.folder}.")
        return EmbeddedPage(file, height)
