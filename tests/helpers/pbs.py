"""A stand-in for PBS's qsub: reads a script's directives as OpenPBS documents them, and runs it.

Directives: qsub(1B). Resources: pbs_resources(7B); a chunk is ``[N:]resource=value[:...]``, chunks
are joined by ``+``. A chunk has one core and no GPU unless it asks for them.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.sample_scripts import run_script

_COUNTS = ("ncpus", "ngpus", "mpiprocs", "ompthreads", "nodect")
_PLACES = ("free", "pack", "scatter", "vscatter", "excl", "exclhost", "shared")


class Refused(Exception):
    """qsub would not take it."""


@dataclass
class Chunk:
    """What each of ``count`` chunks has."""

    count: int
    resources: dict[str, str]

    def number(self, name: str) -> int:
        """A count; by default one core, one process, no GPU."""
        return int(self.resources.get(name, {"ncpus": 1, "mpiprocs": 1}.get(name, 0)))


@dataclass
class Submission:
    """The directives of a script."""

    name: str = ""
    chunks: list[Chunk] = field(default_factory=list)
    walltime: str = ""
    tasks: list[int] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    rerunnable: bool = False

    def node_file(self) -> str:
        """Lines of ``PBS_NODEFILE``: a host for each MPI process."""
        lines, host = [], 0
        for chunk in self.chunks:
            for _ in range(chunk.count):
                lines += [f"node{host}"] * chunk.number("mpiprocs")
                host += 1
        return "".join(f"{line}\n" for line in lines)


def read_directives(text: str, words: list[str]) -> Submission:
    """Directives of a script up to its first command, and those of qsub's own words.

    Raises:
        Refused: something that OpenPBS's grammar does not have.
    """
    found = Submission()
    given: list[str] = []
    for line in text.splitlines():
        if line.startswith("#PBS "):
            given += shlex.split(line.removeprefix("#PBS "))
        elif line.strip() and not line.startswith("#"):
            break
    options = iter([*given, *words])
    for option in options:
        value = next(options, None)
        if value is None:
            raise Refused(f"qsub: {option} has no value")
        _take(found, option, value)
    if found.tasks and not found.rerunnable:
        raise Refused("qsub: array jobs must be rerunnable (-r y)")
    return found


def _take(found: Submission, option: str, value: str) -> None:
    if option == "-N":
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,235}", value):
            raise Refused(f"qsub: illegal -N value {value}")
        found.name = value
    elif option == "-l":
        _resource(found, value)
    elif option == "-J":
        match = re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?(?:%\d+)?", value)
        if not match or int(match[1]) >= int(match[2]):
            raise Refused(f"qsub: illegal -J value {value}")
        found.tasks = list(range(int(match[1]), int(match[2]) + 1, int(match[3] or 1)))
    elif option == "-r":
        found.rerunnable = value == "y"
    elif option == "-v":
        for name, one in re.findall(r"(\w+)=((?:'[^']*'|[^,'])*)", value):
            found.variables[name] = one.strip("'")
    elif option not in ("-A", "-q", "-j", "-o", "-e", "-m", "-M"):
        raise Refused(f"qsub: invalid option {option}")


def _resource(found: Submission, value: str) -> None:
    name, _, rest = value.partition("=")
    if name == "select":
        found.chunks = [_chunk(text) for text in rest.split("+")]
    elif name == "walltime":
        if not re.fullmatch(r"\d+:[0-5]\d:[0-5]\d", rest):
            raise Refused(f"qsub: Illegal attribute or resource value {value}")
        found.walltime = rest
    elif name == "place":
        if not all(part in _PLACES for part in rest.split(":")):
            raise Refused(f"qsub: Illegal attribute or resource value {value}")
    else:
        raise Refused(f"qsub: Unknown resource {name}")


def _chunk(text: str) -> Chunk:
    first, *others = text.split(":")
    count = 1
    if first.isdigit():
        count = int(first)
    else:
        others = [first, *others]
    resources = {}
    for one in others:
        name, equals, value = one.partition("=")
        pattern = r"\d+" if name in _COUNTS else r"\d+(b|kb|mb|gb|tb|w|kw|mw|gw|tw)?"
        if not equals or name not in (*_COUNTS, "mem") or not re.fullmatch(pattern, value):
            raise Refused(f"qsub: Illegal attribute or resource value {one}")
        resources[name] = value
    return Chunk(count, resources)


def qsub(script: Path, folder: Path, *words: str) -> list[tuple[int, str, list[list[str]]]]:
    """Run every task of a job as PBS would: its status, what it printed, commands it started.

    Raises:
        Refused: see ``read_directives``.
    """
    job = read_directives(script.read_text(), list(words))
    nodes = folder / "nodes"
    nodes.write_text(job.node_file())
    ended = []
    for task in job.tasks or [None]:
        variables = {
            "PBS_JOBID": "12.server" if task is None else f"12[{task}].server",
            "PBS_NODEFILE": str(nodes),
            "PBS_O_WORKDIR": str(folder),
            "PBS_JOBNAME": job.name,
        } | job.variables
        if task is not None:
            variables["PBS_ARRAY_INDEX"] = str(task)
        done, started = run_script(str(script), folder, **variables)
        ended.append((done.returncode, done.stdout + done.stderr, started))
    return ended
