"""The store: round trip, header, atomic writing, broken files, reading across processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.store import reader as hdf5_store
from neuromamba.data.store.header import why_no_name
from neuromamba.data.store.manifest import manifest_row, read_manifest, write_manifest
from neuromamba.data.store.reader import RunFile, RunHeader, list_runs, read_header, run_file_name
from tests.helpers.paths import ROOT
from tests.helpers.store_files import write_store_file
from tests.helpers.tiny import write_tiny_run

GRID = (6, 5, 4)
LAS = np.array([[-3.0, 0, 0, 9], [0, 3, 0, -6], [0, 0, 3.5, 1], [0, 0, 0, 1]])


def make_run(path: Path, frames: np.ndarray | None = None, **fields: Any) -> np.ndarray:
    if frames is None:
        rng = np.random.default_rng(1)
        frames = rng.normal(8000, 900, size=(70, 31)).astype(np.float32)
    vox = np.arange(3, 3 + 2 * frames.shape[1], 2)
    given = {"subject": "sub-01", "grid": GRID, "affine": LAS, "tr": 0.72, **fields}
    write_store_file(path, frames, vox, **given)
    return frames


@pytest.mark.parametrize("compression", [None, "none", "lz4"])
def test_round_trip_within_half_a_step(tmp_path: Path, compression: str | None) -> None:
    frames = make_run(tmp_path / "a.h5", compression=compression)
    run = RunFile(tmp_path / "a.h5")
    stored = run.read(range(70))
    assert stored.dtype == np.int16
    values = stored * run.header.scale + run.header.offset
    assert np.abs(values - frames).max() <= run.header.scale / 2 * (1 + 1e-9)
    assert run.vox.dtype == np.int32
    assert run.vox.tolist() == list(range(3, 65, 2))
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["bold"].dtype == np.dtype("<i2")
        assert file["vox"].dtype == np.dtype("<i4")
        assert file["bold"].chunks == ((4, 31) if compression == "lz4" else None)
        assert file.attrs["format_version"] == 1
    run.close()


def test_extremes_and_constants(tmp_path: Path) -> None:
    wide = np.array([[-3e38, 0.0], [3e38, 1.0]], np.float32)
    make_run(tmp_path / "wide.h5", wide)
    assert RunFile(tmp_path / "wide.h5").read([0, 1]).tolist() == [[-32767, 0], [32767, 0]]
    make_run(tmp_path / "constant.h5", np.full((3, 2), 7.5, np.float32))
    header = read_header(tmp_path / "constant.h5")
    assert RunFile(tmp_path / "constant.h5").read([0])[0, 0] * header.scale + header.offset == 7.5
    assert (header.std, header.min, header.max) == (0.0, 7.5, 7.5)


def test_header_survives(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "session": "02",
        "task": "rest",
        "run": "1",
        "dataset": "ABIDE",
        "source_shape": (7, 8, 9),
        "source_affine": np.diag([2.0, 2, 2, 1]),
        "crop_offset": (-1, 2, 0),
        "cropped_voxels": 12,
        "tr_source": "header",
        "dropped_frames": 4,
        "mask_source": "nonzero",
        "source": "x/é.nii.gz",
        "source_sha256": "ab",
        "options": "cd",
    }
    frames = make_run(tmp_path / "a.h5", **fields)
    header = read_header(tmp_path / "a.h5")
    for name, value in fields.items():
        assert np.array_equal(getattr(header, name), value), name
    assert (header.n_frames, header.n_voxels, header.grid) == (70, 31, GRID)
    assert np.array_equal(header.affine, LAS)
    assert (header.orientation, header.tr) == ("LAS", 0.72)
    assert header.mean == pytest.approx(frames.mean(dtype=np.float64), rel=1e-12)
    assert header.std == pytest.approx(frames.std(dtype=np.float64), rel=1e-12)
    assert header.label == "sub-01_ses-02_task-rest_run-1"
    assert header.brain_fraction == 31 / 120


@pytest.mark.parametrize(
    "frames", [[5], [0, 1, 2], [3, 7, 11, 15], [2, 5, 6], [9, 4, 4], [69, 0], []]
)
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_read_any_frames(tmp_path: Path, frames: list[int], compression: str) -> None:
    make_run(tmp_path / "a.h5", compression=compression)
    with h5py.File(tmp_path / "a.h5") as file:
        everything = file["bold"][:]
    found = RunFile(tmp_path / "a.h5").read(frames)
    assert found.shape == (len(frames), 31)
    assert np.array_equal(found, everything[np.array(frames, dtype=int)])


@pytest.mark.parametrize("frames", [[70], [-1], [0, 100]])
def test_frames_outside_the_run(tmp_path: Path, frames: list[int]) -> None:
    make_run(tmp_path / "a.h5")
    with pytest.raises(IndexError, match="of 70"):
        RunFile(tmp_path / "a.h5").read(frames)


def _read_in_child(run: RunFile, results: Any) -> None:
    results.put(run.read([1, 2]).tolist())


def test_lazy_picklable_and_safe_to_fork(tmp_path: Path) -> None:
    run = RunFile(tmp_path / "a.h5")  # the file need not exist yet
    make_run(tmp_path / "a.h5")
    expected = run.read([1, 2]).tolist()
    copy = pickle.loads(pickle.dumps(run))
    assert copy.__dict__["_file"] is None
    assert copy.read([1, 2]).tolist() == expected
    # The forked child inherits an open handle, which it must not use. A subprocess does the
    # fork, because this process may have threads.
    code = (
        "import os, sys\n"
        "from neuromamba.data.store.reader import RunFile\n"
        "run = RunFile(sys.argv[1]); rows = run.read([1, 2]); handle = run._file\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    same = (run.read([1, 2]) == rows).all() and run._file is not handle\n"
        "    os._exit(0 if same else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], cwd=ROOT, check=True)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=_read_in_child, args=(run, results))
    child.start()
    assert results.get(timeout=60) == expected
    child.join()
    results.close()
    run.close()
    assert run.read([1, 2]).tolist() == expected


def test_mistakes_of_the_caller(tmp_path: Path) -> None:
    frames = np.ones((2, 2), np.float32)
    given: dict[str, Any] = {"subject": "a", "grid": GRID, "affine": LAS, "tr": 1.0}
    for vox in ([1, 0], [0, 0], [0, 120], [-1, 0]):
        with pytest.raises(ValueError, match="increasing"):
            write_store_file(tmp_path / "a.h5", frames, np.array(vox), **given)
    with pytest.raises(ValueError, match=r"a frame \[N\]"):
        write_store_file(tmp_path / "a.h5", frames, np.array([0]), **given)
    with pytest.raises(ValueError, match="RAS"):
        write_store_file(
            tmp_path / "a.h5", frames, np.array([0, 1]), **{**given, "affine": np.eye(4)}
        )
    with pytest.raises(UserInputError, match="NaN or infinite"):
        write_store_file(tmp_path / "a.h5", frames * np.nan, np.array([0, 1]), **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    make_run(tmp_path / "a.h5", tr=2.0)
    before = (tmp_path / "a.h5").read_bytes()

    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(h5py.Dataset, "__setitem__", fail)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else UserInputError
    with pytest.raises(expected) as caught:
        make_run(tmp_path / "a.h5", tr=3.0)
    if expected is UserInputError:
        assert "No space left" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    assert (tmp_path / "a.h5").read_bytes() == before


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="file size limits exist on POSIX only")
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from neuromamba.common.errors import UserInputError\n"
        "from neuromamba.data.store.header import RunSource\n"
        "from neuromamba.data.store.writer import write_run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "frames = np.random.default_rng(0).normal(size=(100, 900)).astype('f4')\n"
        "try:\n"
        "    write_run(sys.argv[1], frames, np.arange(900), grid=(10, 10, 10),\n"
        "              affine=np.diag([-1.0, 1, 1, 1]), source=RunSource(subject='a', tr=1.0))\n"
        "except UserInputError as error:\n"
        "    sys.exit('cannot be written' not in str(error))\n"
        "sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5")], cwd=ROOT)
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserInputError, match="cannot be written"):
        make_run(tmp_path / "file" / "a.h5")
    with pytest.raises(UserInputError, match="cannot be written"):
        make_run(tmp_path / "absent" / "a.h5")


def _spoil(path: Path, how: str) -> None:
    if how == "text":
        path.write_text("not HDF5")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    else:
        with h5py.File(path, "r+") as file:
            if how == "foreign":
                del file.attrs["format_version"]
            elif how == "version":
                file.attrs["format_version"] = 99
            elif how == "attribute":
                del file.attrs["crop_offset"]
            elif how == "affine":
                file.attrs["affine"] = np.eye(3)
            elif how == "shape":
                file.attrs["n_frames"] = 5
            elif how == "dtype":
                values = file["bold"][:].astype("f4")
                del file["bold"]
                file["bold"] = values
            elif how == "no bold":
                del file["bold"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("text", "not a readable HDF5 file"),
        ("truncated", "not a readable HDF5 file"),
        ("foreign", "no format_version.*neuromamba convert-reference"),
        ("version", "format version 99, expected 1"),
        ("attribute", "attributes missing: crop_offset"),
        ("affine", "damaged.*4 x 4"),
        ("shape", r"/bold is int16 \(70, 31\)"),
        ("dtype", "/bold is float32"),
        ("no bold", "/bold is nothing"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, how: str, message: str) -> None:
    path = tmp_path / "a.h5"
    make_run(path)
    _spoil(path, how)
    for read in (read_header, lambda p: RunFile(p).read([0])):
        with pytest.raises(UserInputError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "neuromamba preprocess" in str(caught.value)


def use_all(path: Path) -> None:
    run = RunFile(path)
    try:
        run.read(range(70))
        run.voxel_statistics()
        run.raw_layout()
        _ = run.vox, run.content_sha256()
    finally:
        run.close()


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_truncated_files(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.h5"
    make_run(path, compression=compression)
    content = path.read_bytes()
    for length in range(0, len(content), 61):
        path.write_bytes(content[:length])
        with pytest.raises(UserInputError, match=rf"{path}: not a readable HDF5 file"):
            use_all(path)


# The HDF5 library itself loops for ever when it finds its heap of strings (from 5,700) half there.
@pytest.mark.parametrize("length", [1, 97, 500, 1000, 2000, 3000, 4500, 5500])
def test_truncated_while_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """HDF5 tells of it with errors of many types; here it is always one that names the file."""
    path = tmp_path / "a.h5"
    make_run(path)
    open_file = hdf5_store._open

    def opened_then_cut(path: Path) -> Any:
        file = open_file(path)
        os.truncate(path, length)
        return file

    monkeypatch.setattr(hdf5_store, "_open", opened_then_cut)
    with pytest.raises(UserInputError, match=str(path)):
        use_all(path)


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, ValueError, OSError])
def test_every_error_of_hdf5_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """Seen once: a file cut while its root group was not read yet, with a KeyError."""

    def attrs(file: h5py.File) -> Any:
        raise kind("Unable to synchronously open object (unable to determine object type)")

    make_run(tmp_path / "a.h5")
    monkeypatch.setattr(h5py.File, "attrs", property(attrs))
    with pytest.raises(UserInputError, match=r"a\.h5: cannot be read any more \(Unable to"):
        read_header(tmp_path / "a.h5")


def test_missing_file_and_damaged_vox(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no such file"):
        read_header(tmp_path / "a.h5")
    make_run(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["vox"][0] = 1000
    with pytest.raises(UserInputError, match="/vox is damaged"):
        _ = RunFile(tmp_path / "a.h5").vox


def test_file_names() -> None:
    assert run_file_name("sub-01") == "sub-01.h5"
    assert run_file_name("7", "a", "rest", "2") == "7_ses-a_task-rest_run-2.h5"
    for bad in (("",), ("a/b",), ("a", "", "x/y")):
        with pytest.raises(ValueError, match="not a file name"):
            run_file_name(*bad)


def test_list_runs(tmp_path: Path) -> None:
    (tmp_path / "hdf5").mkdir()
    with pytest.raises(UserInputError, match=r"--image_path.*hdf5/ is empty"):
        list_runs(tmp_path)
    for name in ("b.h5", "a.h5"):
        make_run(tmp_path / "hdf5" / name)
    (tmp_path / "hdf5" / "c.h5.tmp").write_text("left over")
    names = [path.name for path in list_runs(tmp_path)]
    assert names == ["a.h5", "b.h5"]
    assert [path.name for path in list_runs(tmp_path / "hdf5")] == names
    (tmp_path / "nifti" / "deep").mkdir(parents=True)
    with pytest.raises(UserInputError, match="no folder hdf5/"):
        list_runs(tmp_path / "nifti")
    for name in ("deep/x.nii.gz", "y.nii"):
        (tmp_path / "nifti" / name).write_text("")
    with pytest.raises(UserInputError, match=r"2 NIfTI file\(s\).*neuromamba preprocess"):
        list_runs(tmp_path / "nifti")
    (tmp_path / "img" / "100307").mkdir(parents=True)
    (tmp_path / "img" / "100307" / "frame_0.pt").write_text("")
    with pytest.raises(UserInputError, match=r"frame_<t>.pt: .*neuromamba convert-reference.*--tr"):
        list_runs(tmp_path / "img")
    with pytest.raises(UserInputError, match="--image_path: no folder"):
        list_runs(tmp_path / "absent")
    with pytest.raises(UserInputError, match=r"is a file; expected a folder that holds hdf5/\.$"):
        list_runs(tmp_path / "nifti" / "y.nii")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["mine.pickle"], "1 file(s) of series of regions, such as mine.pickle"),
        (["sub-1/roi.npy", "sub-2/roi.npy"], "2 file(s) of series of regions, such as roi.npy"),
        (["a.1D", "labels.csv"], "1 file(s) of series of regions, such as a.1D"),
        (["sub-1.csv", "sub-2.csv"], "2 file(s) that may be series of regions"),
    ],
)
def test_series_of_regions_are_for_other_commands(
    tmp_path: Path, files: list[str], words: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    for place, found in ((tmp_path, words), (tmp_path / files[0], "is a file")):
        with pytest.raises(UserInputError) as raised:
            list_runs(place)
        assert str(raised.value).startswith(f"--image_path: '{place}'")
        assert found in str(raised.value)
        assert "neuromamba regions train takes them" in str(raised.value)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "participants.csv").write_text("")  # one table tells nothing
    with pytest.raises(UserInputError, match="Give the folder that neuromamba preprocess wrote"):
        list_runs(tmp_path / "images")


def test_manifest(tmp_path: Path) -> None:
    headers: list[RunHeader] = []
    for name, tr in (("b", float("nan")), ("a", 2.0)):
        make_run(tmp_path / f"{name}.h5", subject=name, tr=tr, source="x, y.nii")
        headers.append(read_header(tmp_path / f"{name}.h5"))
    rows = [manifest_row(f"hdf5/{header.subject}.h5", header) for header in headers]
    write_manifest(tmp_path, rows)
    found = read_manifest(tmp_path)
    assert [row.file for row in found] == ["hdf5/a.h5", "hdf5/b.h5"]
    assert found[0] == rows[1]
    assert np.isnan(found[1].tr)
    (tmp_path / "manifest.csv").write_text("file,subject\nx,y\n")
    with pytest.raises(UserInputError, match=r"columns missing.*n_frames"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(UserInputError, match="cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserInputError, match="cannot be written"):
        write_manifest(tmp_path / "file", rows)


def test_file_locking_is_off_by_default() -> None:
    assert hdf5_store.os.environ["HDF5_USE_FILE_LOCKING"] == "FALSE"


def test_a_value_that_dwarfs_all_others(tmp_path: Path) -> None:
    """One spike would leave two integers for everything else."""
    rng = np.random.default_rng(0)
    frames = rng.normal(5000, 50, (20, 40)).astype(np.float32)
    given: dict[str, Any] = {"subject": "a", "grid": GRID, "affine": LAS, "tr": 1.0}
    for spike, refused in ((2e4, False), (1e6, False), (1e7, True), (1e30, True), (-1e9, True)):
        frames[7, 3] = spike
        if refused:
            with pytest.raises(UserInputError, match="the signal would be lost"):
                write_store_file(tmp_path / "a.h5", frames, np.arange(40), **given)
            assert list(tmp_path.iterdir()) == []
        else:
            write_store_file(tmp_path / "a.h5", frames, np.arange(40), **given)
            (tmp_path / "a.h5").unlink()


NO_NAMES = [
    "",
    "../../x",
    "a/b",
    "a\nb",
    "a\rb",
    "a\x00b",
    "a\x85b",
    "a\u2028b",
    "\x1b[2J",
    " a",
    "a ",
]
NO_NAMES += ["x" * 10_000, "\u88ab" * 70, "\udcff"]
NAMES = ["sub-01", "a\u202eb", "<b>", "..", "=1", "x" * 150, "M\u00fcller", "a b"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_no_file_and_no_split_can_hold(name: str, tmp_path: Path) -> None:
    """Subjects are lines of split files and begin names of files; the file is named."""
    assert why_no_name(name)
    path = tmp_path / "run.h5"
    write_tiny_run(path, "sub-01", 0)
    stored = name.replace("\udcff", "\x7f").replace("\x00", "\x01")  # HDF5 ends a text there
    with h5py.File(path, "r+") as file:
        file.attrs["subject"] = stored
    with pytest.raises(UserInputError, match="an attribute is damaged") as found:
        read_header(path)
    assert len(str(found.value)) < len(str(path)) + 250


@pytest.mark.parametrize("entity", ["session", "task", "run"])
def test_other_names_have_the_same_rule(entity: str) -> None:
    assert (
        why_no_name("sub-01", **{entity: "../x"})
        == f"the {entity} '../x' holds the character U+002F"
    )
    assert why_no_name("x" * 150, **{entity: "y" * 60}) and not why_no_name("a", **{entity: "b"})


@pytest.mark.parametrize("name", NAMES)
def test_unusual_names_are_names(name: str, tmp_path: Path) -> None:
    assert why_no_name(name) == ""
    path = tmp_path / "run.h5"
    write_tiny_run(path, name, 0)
    assert read_header(path).subject == name
