"""Fixtures of the tests that drive the command line; ``tiny.py`` says what they are."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from neuromamba.commands.train import main
from tests.helpers.forked import Nursery
from tests.helpers.tiny import SUBJECTS, CommandLine, write_tiny_run
from tests.helpers.tiny_runs import Runs
from tests.helpers.trained_regions import TrainedRegions, train_regions


@pytest.fixture(scope="session")
def pristine_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of Dummy, 20 subjects of 12 frames on 12 x 12 x 12; copy it before use."""
    root = tmp_path_factory.mktemp("pristine")
    (root / "hdf5").mkdir()
    (root / "metadata").mkdir()
    rows = ["subject,sex,age,intelligence,diagnosis"]
    for i in range(SUBJECTS):
        subject = f"sub-{i + 1:02d}"
        write_tiny_run(root / "hdf5" / f"{subject}.h5", subject, i)
        diagnosis = ("control", "patient")[i // 2 % 2]
        rows.append(f"{subject},{'FM'[i % 2]},{20 + 2 * i},{100 + i % 7},{diagnosis}")
    (root / "metadata" / "participants.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def trained_regions(tmp_path_factory: pytest.TempPathFactory) -> TrainedRegions:
    """A small NeuroSSM; see ``tests.helpers.trained_regions``."""
    return train_regions(tmp_path_factory.mktemp("private_place"))


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Starts ranks."""
    found = Nursery(tmp_path_factory.mktemp("logs"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def runs(nursery: Nursery, pristine_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """On a copy of the store."""
    root = tmp_path_factory.mktemp("fault_tolerance")
    shutil.copytree(pristine_store, root / "store")
    return Runs(nursery, root / "store", root)


@pytest.fixture
def own_store(pristine_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the store for one test, whose runs keep their split there."""
    return Path(shutil.copytree(pristine_store, tmp_path_factory.mktemp("own") / "store"))


@pytest.fixture
def cli(
    pristine_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CommandLine]:
    """The command line, in an empty working directory, with a fresh copy of the store."""
    torch.set_num_threads(1)  # tensors this small only wait for each other
    shutil.copytree(pristine_store, tmp_path / "store")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    level = logging.getLogger("neuromamba").level
    yield CommandLine(tmp_path / "store", tmp_path / "work")
    logging.getLogger("neuromamba").setLevel(level)


@pytest.fixture
def refused(cli: CommandLine, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs flags that must be refused; returns the message after the checks of all cases."""

    def check(extra: str, argv: list[str] | None = None) -> str:
        before = contents(cli.folder)
        runs = {path: path.read_bytes() for path in (cli.store / "hdf5").glob("*")}
        capsys.readouterr()
        status = main(cli.argv(extra) if argv is None else argv)
        captured = capsys.readouterr()
        assert status == 2
        lines = [line for line in captured.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and captured.err.rstrip().endswith(lines[0]), captured.err
        assert "Traceback" not in captured.err + captured.out
        assert contents(cli.folder) == before, "something was written"
        assert {path: path.read_bytes() for path in (cli.store / "hdf5").glob("*")} == runs
        assert not list(cli.store.rglob("*.tmp"))
        return lines[0].removeprefix("error: ")

    return check


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }
