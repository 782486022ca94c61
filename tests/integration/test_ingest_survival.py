"""A killed call, a full disk, several calls at once: the store ends up as if nothing had been."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuromamba.commands import preprocess as preprocessing
from neuromamba.data.ingest import folder as ingest_folder
from neuromamba.data.ingest.quarantine import read_quarantine
from neuromamba.data.store.manifest import read_manifest
from neuromamba.data.store.reader import RunFile
from tests.helpers.paths import DATA_SCRIPTS
from tests.helpers.scans import GRID, contents, names_in, save, scan

SCRIPT = DATA_SCRIPTS / "preprocessing.py"
SLURM = SCRIPT.with_name("preprocessing.slurm")
RUNS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve runs of 60 ms each, and one that cannot be converted."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(RUNS):
        save(root / f"sub-{seed:02}_bold.nii", scan(seed, frames=1200))
    (root / "sub-99_bold.nii").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store of a call that nothing disturbs."""
    store = tmp_path_factory.mktemp("undisturbed")
    assert finish(folder, store)[0] == 1
    assert len(names_in(store)) == RUNS
    return contents(store)


def ingest(folder: Path, store: Path, *flags: str, **popen: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", str(SCRIPT), "--input", str(folder), "--output", str(store)]
    command += [*GRID, "--num_workers", "1", *flags]
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def finish(folder: Path, store: Path, *flags: str, **popen: object) -> tuple[int, str]:
    """Run a call to its end: exit status and what it printed."""
    with ingest(folder, store, *flags, **popen) as process:
        out, err = process.communicate()
    assert "Traceback" not in out + err
    return process.returncode, out + err


def check_what_is_there(store: Path) -> None:
    """Every file under a final name is whole."""
    for path in (store / "hdf5").glob("*.h5"):
        run = RunFile(path)
        assert run.content_sha256() == run.header.content_sha256
        run.close()


def kill_at_random(folder: Path, store: Path, moment: float, *flags: str) -> int:
    """Start a call, kill it ``moment`` seconds after it began to convert; number of files then."""
    with ingest(folder, store, *flags) as process:
        assert process.stdout is not None
        process.stdout.readline()  # what was found: now it starts
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.stdout.read()  # to the end, also of its workers
    check_what_is_there(store)
    return len(list((store / "hdf5").glob("*.h5")))


def kill_and_finish(
    folder: Path, store: Path, undisturbed: dict[str, bytes], kills: int, workers: int = 1
) -> None:
    moments = random.Random(20)
    latest = 0.35 if workers == 1 else 1.8  # worker processes take a second to start
    flags = ("--num_workers", str(workers))
    counts = [
        kill_at_random(folder, store, moments.uniform(0.0, latest), *flags) for _ in range(kills)
    ]
    while not counts[-1] and latest < 30:  # a busy machine is slower
        latest *= 2
        counts.append(kill_at_random(folder, store, latest, *flags))
    assert counts[-1], "all kills came before the first file; choose later moments"
    assert counts == sorted(counts)  # nothing that was finished is lost
    status, out = finish(folder, store, *flags)
    assert status == 1, out
    assert f"skipped     {counts[-1]:>8}" in out
    assert contents(store) == undisturbed


def test_killed_three_times(folder: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    kill_and_finish(folder, tmp_path, undisturbed, 3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_ten_times(
    folder: Path, undisturbed: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    kill_and_finish(folder, tmp_path, undisturbed, 10, workers)


def test_workers_end_with_their_parent(folder: Path, tmp_path: Path) -> None:
    with ingest(folder, tmp_path, "--num_workers", "2") as process:
        assert process.stdout is not None
        while "[1/" not in process.stdout.readline():
            pass
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not listed.exists():
            pytest.skip("needs the children list of /proc")
        children = [int(pid) for pid in listed.read_text().split()]
        process.kill()
        assert len(children) >= 2
        deadline = time.time() + 20
        while any(is_running(pid) for pid in children) and time.time() < deadline:
            time.sleep(0.1)
        assert not any(is_running(pid) for pid in children)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_left_over_files_are_removed(folder: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    (tmp_path / "hdf5").mkdir()
    host = ingest_folder.remove_abandoned.__globals__["_HOST"]
    left = tmp_path / "hdf5" / f"sub-00.h5.{host}-{gone.pid}.tmp"
    other = tmp_path / "hdf5" / "sub-01.h5.othernode-77.tmp"  # another node is at work
    left.write_bytes(b"half")
    other.write_bytes(b"half")
    assert finish(folder, tmp_path)[0] == 1
    assert not left.exists()
    assert other.exists()


# A full disk ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB; a run takes 0.8 MB, and twice as much more while it is written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount).returncode:
        pytest.skip("a small file system takes root and mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(
    folder: Path, undisturbed: dict[str, bytes], small_disk: Path, tmp_path: Path
) -> None:
    status, out = finish(folder, small_disk)
    assert status == 1, out
    assert "warning: about" in out
    assert "No space left on device" in out
    written = contents(small_disk)
    assert any(name.endswith(".h5") for name in written)
    assert [name for name in written if ".tmp" in name] == []
    check_what_is_there(small_disk)
    # What went wrong is listed; on a larger disk the next call ends as if nothing had been.
    assert len(read_quarantine(small_disk)) + len(names_in(small_disk)) == RUNS + 1
    shutil.copytree(small_disk, tmp_path / "larger")
    assert finish(folder, tmp_path / "larger")[0] == 1
    assert contents(tmp_path / "larger") == undisturbed


def test_file_size_limit(folder: Path, tmp_path: Path) -> None:
    """Like a full disk, without root: writing fails in the middle of a file."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    status, out = finish(folder, tmp_path, preexec_fn=limit)
    assert status == 1, out
    assert "cannot be written (File too large). Check the free space" in out
    assert list((tmp_path / "hdf5").iterdir()) == []
    assert len(read_quarantine(tmp_path)) == RUNS + 1


# Shards -----------------------------------------------------------------------------------------


def test_shards_at_once(folder: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    shards = [ingest(folder, tmp_path, "--shard", str(i), "3") for i in range(3)]
    status = []
    for shard in shards:
        shard.communicate()
        status.append(shard.returncode)
    assert sorted(status) == [0, 0, 1]  # one has the bad file
    assert contents(tmp_path) == undisturbed
    assert len(read_manifest(tmp_path)) == RUNS


@pytest.mark.parametrize("count", [2, 3])
def test_the_same_conversion_several_times_at_once(
    folder: Path, undisturbed: dict[str, bytes], tmp_path: Path, count: int
) -> None:
    """Two people, or a job that was started twice, convert all runs into one store."""
    processes = [ingest(folder, tmp_path) for _ in range(count)]
    for process in processes:
        out, err = process.communicate()
        assert "Traceback" not in out + err
        assert process.returncode == 1  # the file that is no image
    check_what_is_there(tmp_path)
    assert contents(tmp_path) == undisturbed


def test_array_job(folder: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """preprocessing.slurm under bash: as the tasks 1 to 2 of an array, and without Slurm."""
    root = SCRIPT.parents[4]
    base = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    base |= {"REPOSITORY": str(root), "PYTHON": sys.executable}
    copy = shutil.copy(SLURM, tmp_path / "slurm_script")  # as Slurm does

    def run(store: Path, **variables: str) -> int:
        command = ["bash", str(copy), "--input", str(folder), "--output", str(store), *GRID]
        done = subprocess.run(command, cwd=tmp_path, env=base | variables, capture_output=True)
        return done.returncode

    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    array["SLURM_CPUS_PER_TASK"] = "1"
    status = {run(tmp_path / "a", SLURM_ARRAY_TASK_ID=task, **array) for task in ("1", "2")}
    assert status == {0, 1}
    assert contents(tmp_path / "a") == undisturbed
    assert run(tmp_path / "b", SLURM_CPUS_PER_TASK="1") == 1
    assert contents(tmp_path / "b") == undisturbed


def test_a_shard_of_nothing(folder: Path, tmp_path: Path) -> None:
    status, out = finish(folder, tmp_path, "--shard", "19", "20")
    assert status == 0
    assert "converted          0" in out


@pytest.mark.parametrize("shard", [("3", "3"), ("-1", "3"), ("0", "0")])
def test_wrong_shards(
    folder: Path, tmp_path: Path, shard: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--input", str(folder), "--output", str(tmp_path), "--shard", *shard]
    assert preprocessing.main(flags) == 2
    assert "--shard: got" in capsys.readouterr().err
