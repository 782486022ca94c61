"""Commands run one after the other, with a record of those that are finished."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import parse_json
from neuromamba.common.own_command import own_command, own_environment


class StageFailure(Exception):
    """A stage ended with an error; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of a pipeline.

    Attributes:
        name: key in the record.
        makes: files and folders it writes, all its own; removed before it is done again.
        settings: what its result depends on besides earlier stages, such as its command.
        after: names of the stages whose results it uses.
    """

    name: str
    makes: tuple[Path, ...]
    settings: str
    after: tuple[str, ...] = ()


class Pipeline:
    """Does stages that are not finished, and remembers them in a JSON file of its folder.

    A stage is finished if it ended without an error, with the settings it has now, it and every
    stage it depends on, and what it made is still there.

    Args:
        folder: everything is written below it; made if absent.
        record: name of the JSON file.

    Raises:
        UserInputError: the folder holds something else, or cannot be written.
    """

    def __init__(self, folder: Path, record: str) -> None:
        self.path = folder / record
        self._stages: dict[str, dict[str, Any]] = {}
        self._keys: dict[str, str] = {}
        try:
            if self.path.is_file():
                self._stages = dict(parse_json(self.path.read_text(encoding="utf-8"))["stages"])
                for stage in self._stages.values():
                    float(stage["seconds"]), stage["key"]
            elif folder.is_dir() and any(folder.iterdir()):
                raise UserInputError(
                    f"--output_dir: '{folder}' holds something else. Choose a new folder; nothing "
                    f"in this one was touched."
                )
            folder.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise UserInputError(
                f"--output_dir: cannot write to '{folder}' ({error.strerror}). Choose another one."
            ) from None
        except UserInputError:
            raise
        except (KeyError, TypeError, ValueError):
            raise UserInputError(
                f"--output_dir: '{self.path}' is damaged. Remove the folder or choose another one."
            ) from None

    def _write(self) -> None:
        write_text_atomically(self.path, json.dumps({"stages": self._stages}, indent=1) + "\n")

    def do(self, stage: Stage, work: Callable[[], None]) -> None:
        """Do the stage unless it is finished.

        Raises:
            StageFailure, UserInputError: as ``work`` does; the stage counts as not finished.
        """
        text = json.dumps([stage.settings, [self._keys[name] for name in stage.after]])
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._keys[stage.name] = key
        earlier = self._stages.get(stage.name, {})
        if earlier.get("key") == key and all(path.exists() for path in stage.makes):
            print(f"{stage.name}: finished before, in {earlier['seconds']:.0f} s", flush=True)
            return
        if self._stages.pop(stage.name, None):
            self._write()
        for path in stage.makes:
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        start = time.monotonic()
        work()
        seconds = round(time.monotonic() - start, 2)
        self._stages[stage.name] = {"key": key, "seconds": seconds}
        self._write()

    def seconds(self, names: Iterable[str]) -> dict[str, float]:
        """Run time of finished stages."""
        return {name: float(self._stages[name]["seconds"]) for name in names}


def shown(command: Sequence[str]) -> str:
    """A command of ours as one would type it."""
    return shlex.join(("neuromamba", *command))


def run_stage(
    stage: str, command: Sequence[str], defaults: Mapping[str, str] | None = None
) -> None:
    """Print a command of ours, run it with this interpreter and wait.

    Args:
        stage: for the message.
        command: name of the command and its flags.
        defaults: environment variables, where the user has not set them.

    Raises:
        StageFailure: it ended with an error, which it has printed itself.
    """
    print(f"$ {shown(command)}", flush=True)
    run_program(stage, own_command(*command), {**(defaults or {}), **own_environment()})


def run_program(
    stage: str, words: Sequence[str], environment: Mapping[str, str] | None = None
) -> None:
    """Run a program and wait; after Ctrl-C let it clean up.

    Args:
        stage: for the message.
        words: of the command line.
        environment: of the program; by default ``own_environment()``.

    Raises:
        StageFailure: it ended with an error, which it has printed itself.
    """
    process = subprocess.Popen(words, env=environment or own_environment())
    try:
        status = process.wait()
    except KeyboardInterrupt:  # a terminal sends it to the command as well
        for end in (process.terminate, process.kill):
            try:
                process.wait(timeout=10)
                break
            except subprocess.TimeoutExpired:
                end()
        raise
    if status:
        raise StageFailure(f"stage '{stage}' failed with exit status {status}; see above.")
