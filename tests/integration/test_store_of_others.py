"""A store that is deleted or damaged while a training reads it, or belongs to somebody else."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neuromamba.commands.train import main
from neuromamba.data.store.reader import RunFile
from tests.helpers.tiny import CommandLine

_NOBODY = 65534


def delete(store: Path) -> None:
    shutil.rmtree(store)


def delete_a_run(store: Path) -> None:
    for path in (store / "hdf5").glob("*.h5"):
        path.unlink()


def truncate(store: Path) -> None:
    for path in (store / "hdf5").glob("*.h5"):
        os.truncate(path, 100)


def overwrite(store: Path) -> None:
    for path in (store / "hdf5").glob("*.h5"):
        path.write_bytes(b"<html>Login</html>" * 500)


@pytest.mark.parametrize("harm", [delete, delete_a_run, truncate, overwrite])
@pytest.mark.parametrize("reads", [3, 20])
def test_a_store_that_goes_while_it_is_read(
    cli: CommandLine,
    harm: Callable[[Path], None],
    reads: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line names the file, whether it is the first epoch or a later one."""
    counted = 0
    read = RunFile.read

    def counting(run: RunFile, *words: Any, **named: Any) -> Any:
        nonlocal counted
        counted += 1
        if counted == reads:
            harm(cli.store)
        if counted >= reads:
            run.close()  # as after a restart of a loading process: the file is opened anew
        return read(run, *words, **named)

    monkeypatch.setattr(RunFile, "read", counting)
    flags = "--max_epochs 4 --window_cache 0 --num_workers 0 --output_dir run"
    assert main(cli.argv(flags)) == 2
    assert counted >= reads
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and f"{cli.store / 'hdf5'}" in lines[0], error
    assert "Traceback" not in error


@pytest.fixture
def others(cli: CommandLine) -> Iterator[Path]:
    """A folder that nobody may write, but enter, with the store; and the user is nobody."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    root = Path(tempfile.mkdtemp(prefix="neuromamba-others-"))
    root.chmod(0o755)
    shutil.copytree(cli.store, root / "store")
    for path in [root / "store", *(root / "store").rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (root / "work").mkdir()
    (root / "work").chmod(0o777)
    yield root
    shutil.rmtree(root)


@contextlib.contextmanager
def nobody(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.chdir(before)


def test_a_store_that_cannot_be_written(
    cli: CommandLine, others: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training reads it, and keeps its split in its own folder."""
    cli.run("--max_epochs 1")  # all that is loaded late is loaded, while it can be read
    argv = cli.argv("--max_epochs 1 --output_dir run")
    argv[argv.index("--image_path") + 1] = str(others / "store")
    before = {path: path.stat().st_mtime_ns for path in (others / "store").rglob("*")}
    with nobody(others / "work"):
        assert main(argv) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert (others / "work" / "run" / "splits" / "Dummy").is_dir()
    assert {path: path.stat().st_mtime_ns for path in (others / "store").rglob("*")} == before


@pytest.mark.parametrize("what", ["hdf5", "hdf5/sub-01.h5", "metadata/participants.csv"])
def test_a_store_that_cannot_be_read(
    cli: CommandLine, others: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run("--max_epochs 1")
    argv = cli.argv("--max_epochs 1 --output_dir run")
    argv[argv.index("--image_path") + 1] = str(others / "store")
    (others / "store" / what).chmod(0)
    capsys.readouterr()
    with nobody(others / "work"):
        assert main(argv) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "store" in line and "Permission denied" in line
