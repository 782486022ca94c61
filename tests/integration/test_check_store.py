"""check-store: every kind of damage is found, nothing else; --clean moves just that."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from neuromamba.commands.check_store import main
from neuromamba.data.ingest import check_store as library
from neuromamba.data.store.header import RunSource
from neuromamba.data.store.manifest import manifest_row, read_manifest, write_manifest
from neuromamba.data.store.reader import list_runs, read_header
from neuromamba.data.store.writer import write_run
from tests.helpers.paths import DATA_SCRIPTS
from tests.helpers.preloaded import preloaded_python
from tests.helpers.tiny import write_tiny_run

State = dict[str, tuple[str, int]]


def state(root: Path) -> State:
    """Hash and time of every file below a folder."""
    return {
        path.relative_to(root).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def store(pristine_store: Path, tmp_path: Path) -> Path:
    """A sound store of 20 runs with a manifest, as conversion leaves it."""
    root = tmp_path / "store"
    shutil.copytree(pristine_store, root)
    write_manifest(root, [manifest_row(f"hdf5/{p.name}", read_header(p)) for p in list_runs(root)])
    return root


class Checked:
    """What the command printed and returned."""

    def __init__(self, store: Path, capsys: pytest.CaptureFixture[str], *extra: str) -> None:
        capsys.readouterr()
        before = state(store)
        self.status = main(["--image_path", str(store), "--num_workers", "1", *extra])
        captured = capsys.readouterr()
        self.lines, self.errors = captured.out.splitlines(), captured.err
        if "--clean" not in extra:
            assert state(store) == before, "something was changed"

    def named(self, kind: str) -> dict[str, str]:
        """Lines "<kind>: <file>: <reason>" as file -> reason."""
        found = [line.split(": ", 2)[1:] for line in self.lines if line.startswith(f"{kind}: ")]
        return {name.removeprefix("hdf5/"): reason for name, reason in found}

    @property
    def problems(self) -> list[str]:
        return [line for line in self.lines if line.startswith("problem: ")]

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.lines if line.startswith("warning: ")]


@pytest.mark.parametrize("extra", [[], ["--full"], ["--sample", "1"]])
def test_a_sound_store(store: Path, capsys: pytest.CaptureFixture[str], extra: list[str]) -> None:
    before = state(store)
    for clean in ([], ["--clean"]):
        checked = Checked(store, capsys, *extra, *clean)
        assert checked.status == 0
        assert (checked.problems, checked.warnings, checked.named("bad")) == ([], [], {})
        assert f"ok{20:>18}" in checked.lines
        assert sum(": ok, 12 frames" in line for line in checked.lines) == 20
    assert state(store) == before
    assert not (store / "quarantine").exists()
    # What is sound without a manifest, compressed, with statistics of voxels, of unknown TR.
    (store / "manifest.csv").unlink()
    write_tiny_run(store / "hdf5" / "z.h5", "z", 50, compression="lz4", voxel_statistics=True)
    write_tiny_run(store / "hdf5" / "long.h5", "long", 51, frames=300, tr=float("nan"))
    checked = Checked(store, capsys, *extra)
    assert checked.status == 0
    assert checked.warnings == ["warning: no manifest.csv; --clean writes it"]
    assert Checked(store, capsys, "--clean").status == 0
    assert len(read_manifest(store)) == 22


# Damage to one file --------------------------------------------------------------------------


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def flip_in(path: Path, name: str, byte: int) -> None:
    with h5py.File(path) as file:
        offset = file[name].id.get_offset()
    flip(path, offset + byte)


def attribute(name: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file.attrs[name] = value

    return change


def scaled(name: str, factor: float) -> Callable[[Path], None]:
    return lambda path: attribute(name, getattr(read_header(path), name) * factor)(path)


def without(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del (file if name in file else file.attrs)[name]

    return change


def disordered(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["vox"][3:5] = file["vox"][3:5][::-1]


def outside(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["vox"][-1] = 12**3


def unhashed_outlier(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["content_sha256"]
        file["bold"][0, 7] = -32768


def rewritten(path: Path) -> None:
    """All values of the first half replaced in a file without a hash: only statistics tell."""
    with h5py.File(path, "r+") as file:
        del file.attrs["content_sha256"]
        file["bold"][:6] = 32767


def voxel_nan(path: Path) -> None:
    write_tiny_run(path, path.stem, 61, voxel_statistics=True)
    with h5py.File(path, "r+") as file:
        file["voxel_std"][9] = np.nan


def voxel_shift(path: Path) -> None:
    write_tiny_run(path, path.stem, 60, voxel_statistics=True)
    with h5py.File(path, "r+") as file:
        file["voxel_mean"][9] += 0.1


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "byte of bold": (lambda p: flip_in(p, "bold", 1001), "not what was written (hash)"),
    "byte of vox": (lambda p: flip_in(p, "vox", 0), "hash|increasing"),
    "vox disordered": (disordered, "not increasing within the grid"),
    "vox outside": (outside, "not increasing within the grid"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-700]), "not a readable HDF5 file"),
    "empty": (lambda p: p.write_bytes(b""), "not a readable HDF5 file"),
    "text": (lambda p: p.write_text("run"), "not a readable HDF5 file"),
    "superblock": (lambda p: flip(p, 0), "not a readable HDF5 file"),
    "attribute gone": (without("crop_offset"), "attributes missing: crop_offset"),
    "foreign": (without("format_version"), "no format_version"),
    "version": (attribute("format_version", 99), "format version 99"),
    "bold gone": (without("bold"), "/bold is nothing"),
    "lengths": (attribute("n_frames", 5), "/bold is int16 (12,"),
    "text as number": (attribute("mean", "many"), "an attribute is damaged"),
    "NaN mean": (attribute("mean", np.nan), "not finite: mean"),
    "infinite scale": (attribute("scale", np.inf), "not finite: scale"),
    "NaN affine": (attribute("affine", np.full((4, 4), np.nan)), "not finite: affine"),
    "singular affine": (attribute("affine", np.zeros((4, 4))), "affine is not invertible"),
    "RAS": (attribute("affine", np.diag([2.0, 2, 2, 1])), "the affine says otherwise"),
    "RAS twice": (
        lambda p: (
            attribute("affine", np.diag([2.0, 2, 2, 1]))(p),
            attribute("orientation", "RAS")(p),
        )[0],
        "orientation is RAS, expected LAS",
    ),
    "negative TR": (attribute("tr", -2.0), "tr is -2"),
    "lost TR": (
        lambda p: (attribute("tr", np.nan)(p), attribute("tr_source", "header")(p))[0],
        "tr is nan (from header)",
    ),
    "scale": (scaled("scale", 1.001), "scale and offset do not lead to the min"),
    "offset": (scaled("offset", 1.001), "scale and offset do not lead to the max"),
    "max": (scaled("max", 1.01), "do not lead to the max"),
    "std 0": (attribute("std", 0.0), "do not belong to a run that varies"),
    "subject": (attribute("subject", "a/b"), "the subject 'a/b' holds the character U+002F"),
    "outlier": (unhashed_outlier, "1 values lie below the min"),
    "mean": (scaled("mean", 1.001), "is stored, the frames give"),
    "std": (scaled("std", 1.001), "is stored, the frames give"),
    "content": (rewritten, "is stored, the frames give"),
    "voxel statistics": (voxel_nan, "/voxel_std is not"),
    "one voxel's mean": (voxel_shift, "/voxel_mean differs from the frames by up to 0.1"),
}


# In a file of 12 frames, of which a sample of 10 is read: within the bounds that it gives.
NEEDS_FULL = {"mean", "std", "one voxel's mean"}


def test_every_damage_is_found_and_nothing_else(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # In one call with sound files.
    sound = [path.name for path in list_runs(store)]
    for i, (damage, _) in enumerate(DAMAGE.values()):
        path = store / "hdf5" / f"damaged-{i:02}.h5"
        write_tiny_run(path, path.stem, 100 + i)
        damage(path)
    (store / "manifest.csv").unlink()
    for extra in ([], ["--full"]):
        checked = Checked(store, capsys, *extra)
        assert checked.status == 1
        bad = checked.named("bad")
        expected = len(DAMAGE) - (0 if extra else len(NEEDS_FULL))
        assert len(bad) == expected
        for i, (what, (_, message)) in enumerate(DAMAGE.items()):
            if what in NEEDS_FULL and not extra:
                continue
            reason = bad[f"damaged-{i:02}.h5"]
            assert any(part in reason for part in message.split("|")), (what, reason)
            assert "cannot be read (" not in reason, (what, reason)
        assert f"bad{expected:>17}" in checked.lines

    before = state(store)
    checked = Checked(store, capsys, "--full", "--clean")
    assert checked.status == 1
    assert [path.name for path in list_runs(store)] == sound
    after = state(store)
    for name, (digest, _) in before.items():  # moved as they are, or untouched
        moved = name.replace("hdf5/", "quarantine/") if "damaged" in name else name
        assert after[moved][0] == digest
    reasons = (store / "quarantine" / "reasons.tsv").read_text().splitlines()
    assert reasons[0] == "file\tmoved_from\treason"
    assert len(reasons) == 1 + len(DAMAGE)
    assert reasons[1].startswith("damaged-00.h5\thdf5/damaged-00.h5\tthe content is not what")
    assert {row.file for row in read_manifest(store)} == {f"hdf5/{name}" for name in sound}
    again = Checked(store, capsys)
    assert (again.status, again.problems, again.warnings) == (0, [], [])


def test_damaged_chunk(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store / "hdf5" / "sub-01.h5"
    write_tiny_run(path, "sub-01", 0, compression="lz4")
    with h5py.File(path) as file:
        offset = file["bold"].id.get_chunk_info(1).byte_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = b"\xff" * 64
    path.write_bytes(data)
    (store / "manifest.csv").unlink()
    assert list(Checked(store, capsys).named("bad")) == ["sub-01.h5"]


def test_bounds_of_a_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sample never condemns a sound file, however it varies over time; gross errors are seen."""
    (tmp_path / "hdf5").mkdir()
    rng = np.random.default_rng(0)
    vox = np.arange(40)
    affine = np.diag([-2.0, 2, 2, 1])
    for i in range(30):
        frames = rng.normal(0, 1, (200, 40)) * rng.choice([0.01, 1, 50], (200, 1))
        frames[rng.integers(200)] += 1000.0 * (i % 3)  # one frame that a sample may miss
        path = tmp_path / "hdf5" / f"{i:02}.h5"
        write_run(
            path,
            frames,
            vox,
            grid=(4, 4, 4),
            affine=affine,
            source=RunSource(subject=path.stem, tr=1.0),
        )
    for extra in ([], ["--sample", "0.5"], ["--full"]):
        assert Checked(tmp_path, capsys, *extra).status == 0
    scaled("std", 1.001)(tmp_path / "hdf5" / "00.h5")  # within what the sample can say
    scaled("std", 30)(tmp_path / "hdf5" / "03.h5")
    assert list(Checked(tmp_path, capsys).named("bad")) == ["03.h5"]
    assert list(Checked(tmp_path, capsys, "--full").named("bad")) == ["00.h5", "03.h5"]


def test_oddities_are_warnings(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without("content_sha256")(store / "hdf5" / "sub-01.h5")
    os.rename(store / "hdf5" / "sub-02.h5", store / "hdf5" / "other.h5")
    frames = np.random.default_rng(0).normal(size=(12, 50)).astype(np.float32)
    frames[:, 7] = 0
    affine = np.diag([-2.0, 2, 2, 1])
    path = store / "hdf5" / "still.h5"
    write_run(
        path,
        frames,
        np.arange(50),
        grid=(12,) * 3,
        affine=affine,
        source=RunSource(subject="still", tr=1.0),
    )
    (store / "manifest.csv").unlink()
    checked = Checked(store, capsys)
    assert checked.status == 0
    assert checked.warnings[1:] == [
        "warning: several TRs: 2.0 (20), 1.0 (1)",
        "warning: hdf5/other.h5: its header makes it sub-02.h5",
        "warning: hdf5/still.h5: 1 voxels (2.0%) are constant in the 10 frames read",
        "warning: hdf5/sub-01.h5: no hash (written by an older version): only statistics were "
        "checked",
    ]


# Files with each other -----------------------------------------------------------------------


def test_duplicates(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = store / "hdf5"
    # One subject's run under two names: the first stays.
    shutil.copy(folder / "sub-03.h5", folder / "sub-03_run-2.h5")
    # Two subjects with the same content, or from the same source: neither can be trusted.
    shutil.copy(folder / "sub-04.h5", folder / "sub-99.h5")
    attribute("subject", "sub-99")(folder / "sub-99.h5")
    write_tiny_run(folder / "x.h5", "x", 30, source_sha256="ab")
    write_tiny_run(folder / "y.h5", "y", 31, source_sha256="ab")
    (store / "manifest.csv").unlink()
    assert Checked(store, capsys).named("bad") == {
        "sub-03_run-2.h5": "the same content as hdf5/sub-03.h5",
        "sub-04.h5": "the same content as hdf5/sub-99.h5",
        "sub-99.h5": "the same content as hdf5/sub-04.h5",
        "x.h5": "the same source as hdf5/y.h5",
        "y.h5": "the same source as hdf5/x.h5",
    }


def test_leftovers(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = store / "hdf5"
    for name in ("sub-50.h5.tmp", "sub-51.h5.tmp", "notes.txt", ".nfs0001"):
        (folder / name).write_text(name)
    (folder / "old").mkdir()
    (folder / "old" / "run.h5").write_text("kept")
    os.utime(folder / "sub-50.h5.tmp", (0, 0))
    checked = Checked(store, capsys)
    expected = {
        "notes.txt": "no file of the store",
        "old": "no file of the store",
        "sub-50.h5.tmp": "left by an interrupted conversion",
    }
    assert (checked.status, checked.named("bad")) == (1, expected)
    assert any("sub-51.h5.tmp: a conversion may be writing" in line for line in checked.warnings)
    # Names that are taken in the quarantine are kept, too.
    (store / "quarantine").mkdir()
    (store / "quarantine" / "notes.txt").write_text("older")
    (store / "quarantine" / "old").mkdir()
    assert Checked(store, capsys, "--clean").status == 1
    kept = {p.relative_to(store / "quarantine").as_posix() for p in store.glob("quarantine/**/*")}
    assert kept == {
        "notes.txt",
        "notes.txt.1",
        "old",
        "old.1",
        "old.1/run.h5",
        "sub-50.h5.tmp",
        "reasons.tsv",
    }
    assert (store / "quarantine" / "notes.txt").read_text() == "older"
    assert (folder / "sub-51.h5.tmp").exists()
    assert (folder / ".nfs0001").exists()


def test_manifest(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row.subject: row for row in read_manifest(store)}
    lines = (store / "manifest.csv").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("hdf5/sub-07.h5")]
    lines = [line.replace(",12,", ",13,", 1) if "sub-08" in line else line for line in lines]
    lines.append(lines[-1].replace("sub-20", "sub-77"))
    (store / "manifest.csv").write_text("\n".join(lines) + "\n")
    checked = Checked(store, capsys)
    assert checked.status == 1
    assert checked.named("bad") == {}
    assert checked.problems == [
        "problem: manifest.csv: no line of hdf5/sub-07.h5",
        "problem: manifest.csv: hdf5/sub-08.h5 differs in n_frames",
        "problem: manifest.csv: hdf5/sub-77.h5 is not there",
    ]
    assert Checked(store, capsys, "--clean").status == 1
    assert {row.subject: row for row in read_manifest(store)} == rows
    (store / "manifest.csv").write_text("file,subject\n")
    assert "columns missing" in Checked(store, capsys).problems[0]
    assert Checked(store, capsys, "--clean").status == 1
    assert Checked(store, capsys).status == 0


def test_mixtures(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = store / "hdf5"
    write_tiny_run(folder / "a.h5", "a", 40, space="native")
    write_tiny_run(folder / "b.h5", "b", 41, space="MNI152NLin6Asym", grid=(12, 12, 14))
    write_tiny_run(folder / "c.h5", "c", 42, affine=np.diag([-3.0, 3, 3, 1]))
    checked = Checked(store, capsys, "--clean")
    assert checked.status == 1
    assert [line for line in checked.problems if "several" in line] == [
        "problem: several grids: (12, 12, 12) (22), (12, 12, 14) (1)",
        "problem: several voxel sizes: (2.0, 2.0, 2.0) (22), (3.0, 3.0, 3.0) (1)",
        "problem: several spaces: native (1), MNI152NLin6Asym (1)",
    ]
    assert len(list_runs(store)) == 23  # which of them are wrong is not for us to say


# The command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_path", "absent"], "--image_path: no folder 'absent'"),
        (["--image_path", "empty"], "holds no runs"),
        (["--image_path", "flat"], "--image_path: 'flat' has no folder hdf5/"),
        (["--sample", "0"], "--sample: got 0"),
        (["--sample", "1.5"], "--sample: got 1.5"),
        (["--num_workers", "0"], "--num_workers: got 0"),
        (["--quarantine", "store/hdf5/bad"], "--quarantine: 'store/hdf5/bad' lies in"),
        (["--clean", "--quarantine", "file"], "file' is a file; choose a folder"),
        (["--clean", "--quarantine", "file/below"], "file' is a file; choose a folder"),
    ],
)
def test_wrong_flags(
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(store.parent)
    Path("empty").mkdir()
    Path("flat").mkdir()
    Path("file").write_text("")
    shutil.copy("store/hdf5/sub-01.h5", "flat")
    assert main(["--image_path", "store", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_another_quarantine_and_the_folder_of_the_runs(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "hdf5" / "sub-05.h5").write_text("broken")
    place = store.parent / "bad"
    extra = ("--clean", "--quarantine", str(place))
    assert Checked(store / "hdf5", capsys, *extra).status == 1
    assert (place / "sub-05.h5").read_text() == "broken"
    assert len(read_manifest(store)) == 19
    assert not (store / "quarantine").exists()


def test_a_quarantine_on_another_file_system(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == store.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    (store / "hdf5" / "sub-05.h5").write_text("broken")
    before = state(store)
    checked = Checked(store, capsys, "--clean", "--quarantine", str(other / "neuromamba_bad"))
    assert checked.status == 2
    assert "is on another file system than" in checked.errors
    assert state(store) == before


def test_command_line_with_workers(store: Path) -> None:
    flip_in(store / "hdf5" / "sub-05.h5", "bold", 77)
    script = str(DATA_SCRIPTS / "check_and_clean_hdf5.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [preloaded_python(), script, "--image_path", "store", "--num_workers", "2"],
        cwd=store.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "bad: hdf5/sub-05.h5: the content is not what was written (hash)" in done.stdout
    assert "nothing was changed; --clean moves 1 file(s) to 'store/quarantine'" in done.stdout


def test_ctrl_c_moves_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "hdf5" / "sub-01.h5").write_text("broken")
    before = state(store)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "mark_duplicates", interrupt)
    checked = Checked(store, capsys, "--clean")
    assert checked.status == 130
    assert "nothing was moved" in checked.errors
    assert state(store) == before
