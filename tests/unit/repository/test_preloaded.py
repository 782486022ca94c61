"""The Python with loaded libraries does what ``python`` does with the same words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.preloaded import preloaded_python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "beside.py").write_text("name = __name__\n")
    script = (
        "import os, sys, beside\n"
        "print(sys.argv, __name__, __file__, beside.name, os.getcwd(), os.environ['OURS'])\n"
        "print(sys.stdin.read(), sys.path[0], file=sys.stderr)\n"
    )
    (tmp_path / "place" / "script.py").write_text(script)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["place/script.py", "--flag", "a b"],
        ["-m", "place.script", "x"],
        ["-c", "import sys; print(sys.argv, __name__, sys.path[0] == '')", "1"],
        ["-u", "-W", "error", "-c", "import warnings; warnings.warn('x')"],
        ["-W", "ignore", "-c", "import warnings, sys; warnings.warn('x'); sys.exit(75)"],
        ["-c", "import sys; sys.exit('a message')"],
        ["-c", "import atexit; atexit.register(print, 'the end'); raise SystemExit"],
        ["-c", "import os; os.kill(os.getpid(), 9)"],
        ["-c", "import sys; print('neuromamba' in sys.modules)"],
    ],
    ids=lambda words: " ".join(words)[:30],
)
def test_as_python(folder: Path, words: list[str]) -> None:
    """Status, output, and errors but for the lines of the traceback."""
    ended = []
    for python in (sys.executable, preloaded_python()):
        done = subprocess.run(
            [python, *words],
            cwd=folder,
            env=os.environ | {"OURS": "1", "PYTHONPATH": str(folder / "place")},
            input="typed",
            capture_output=True,
            text=True,
        )
        ended.append((done.returncode, done.stdout, done.stderr.splitlines()[-1:]))
    assert ended[0] == ended[1]


def test_libraries_are_loaded_and_programs_start_the_same_python() -> None:
    program = "import sys; print('torch' in sys.modules, sys.executable)"
    words = [preloaded_python(), "-c", program]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout.split() == ["True", preloaded_python()]


def test_a_program_ends_with_its_caller(tmp_path: Path) -> None:
    program = f"import os, time; open('{tmp_path}/id', 'w').write(f'{{os.getpid()}}\\n')"
    process = subprocess.Popen([preloaded_python(), "-c", f"{program}; time.sleep(60)"])
    for _ in range(1000):
        if (tmp_path / "id").exists() and (tmp_path / "id").read_text().endswith("\n"):
            break
        time.sleep(0.01)
    number = int((tmp_path / "id").read_text())
    os.kill(number, 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(1000):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("it is still there")
