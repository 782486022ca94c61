"""What a command, or a program, has imported when it ends: in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.helpers.paths import PROJECT

LIGHTNING = {"pytorch_lightning", "lightning_fabric", "torchmetrics"}
MEDICAL = {"nibabel", "nilearn", "pandas", "sklearn"}
SLOW = (
    *("torch", "pytorch_lightning", "lightning_fabric", "torchmetrics", "transformers"),
    *("torch._dynamo", "scipy", "scipy.stats", "scipy.ndimage", "sklearn"),
    *("nibabel", "nilearn", "h5py", "matplotlib", "pandas"),
)
# The status of a program's ``main(words)``, the slow modules it has imported, and their number.
_PROGRAM = """
import json, sys
sys.path.insert(0, {project!r})
{main}
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
slow = [name for name in {slow!r} if sys.modules.get(name)]
print(json.dumps([status, slow, len(sys.modules)]))
"""
_COMMAND = "from neuromamba.__main__ import main"


class Ended(NamedTuple):
    """A process that has ended.

    Attributes:
        status: of the exit.
        slow: names of ``SLOW`` that it has imported.
        modules: number of modules that Python has loaded.
        output, errors: what it printed.
    """

    status: int
    slow: list[str]
    modules: int
    output: str
    errors: str


def run_and_count(*words: str, cwd: Path | None = None, main: str = _COMMAND) -> Ended:
    """Run ``neuromamba WORDS``, or another ``main``: the source text that defines it."""
    program = _PROGRAM.format(project=str(PROJECT), slow=SLOW, main=main)
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    *output, last = done.stdout.splitlines()
    status, slow, modules = json.loads(last)
    return Ended(status, slow, modules, "\n".join(output), done.stderr)
