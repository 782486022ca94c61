"""The reference's layouts to store: agreement with the NIfTI converter, bad input, resume.

The layouts are written here as the reference describes them: ``img/<subject>/frame_<t>.pt`` with a
tensor [X, Y, Z, 1] of fp16 and ``global_stats.pt`` beside it; ``hdf5/<subject>.h5`` with a data set
per frame.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import torch

from neuromamba.commands.convert_reference import main
from neuromamba.data.ingest.convert import ConversionOptions
from neuromamba.data.ingest.folder import convert_folder
from neuromamba.data.store.manifest import read_manifest
from neuromamba.data.store.reader import RunFile, list_runs
from tests.helpers.paths import DATA_SCRIPTS
from tests.helpers.preloaded import preloaded_python

SCRIPT = DATA_SCRIPTS / "convert_data_into_hdf5_revised.py"
SHAPE = (9, 10, 8)


def phantom(frames: int = 12, seed: int = 0) -> np.ndarray:
    """An asymmetrical block of values that fp16 holds exactly, float32 [9, 10, 8, frames]."""
    values = np.zeros((*SHAPE, frames), np.float32)
    block = np.random.default_rng(seed).integers(500, 1500, size=(4, 6, 5, frames))
    values[1:5, 2:8, 1:6] = block
    values[2, 3, 4] = 2000  # one voxel that can be found again
    return values


def scaled(values: np.ndarray) -> np.ndarray:
    """z-values with the background at the minimum, as ``znorm_minback`` has them, in fp16."""
    brain = values[values != 0]
    z = (values - brain.mean()) / brain.std()
    return z.astype(np.float16).astype(np.float32)


def write_pt(
    folder: Path, values: np.ndarray, *, dtype: torch.dtype = torch.float16, channel: bool = True
) -> Path:
    """``folder/frame_<t>.pt`` and ``global_stats.pt``."""
    folder.mkdir(parents=True)
    for t in range(values.shape[-1]):
        frame = torch.from_numpy(values[..., t].copy()).to(dtype)
        torch.save(frame[..., None] if channel else frame, folder / f"frame_{t}.pt")
    brain = values[values != 0]
    statistics = {
        "valid_voxels": brain.size,
        "global_mean": torch.tensor(brain.mean(dtype=np.float64)),
        "global_std": float(brain.std(dtype=np.float64)),
        "global_max": torch.tensor(brain.max()),
    }
    torch.save(statistics, folder / "global_stats.pt")
    return folder


def write_h5(path: Path, values: np.ndarray, layout: str = "frame_{}") -> Path:
    """Per-TR data sets named by ``layout``, or one data set: "first", "last"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["global_mean"] = values[values != 0].mean()
        if layout == "first":
            file.create_dataset("bold", data=np.moveaxis(values, -1, 0)[..., None])
        elif layout == "last":
            chunks = (*values.shape[:3], 5)
            file.create_dataset("data", data=values, chunks=chunks, compression="gzip")
        else:
            file.create_dataset("mask", data=values[..., 0] != 0)
            for t in range(values.shape[-1]):
                frame = values[..., t, None].astype(np.float16)
                file.create_dataset(layout.format(t), data=frame, compression="gzip")
    return path


def write_nifti(path: Path, values: np.ndarray, codes: str = "LAS") -> Path:
    """The same array around the centre of MNI space, with these axis codes and 22 mm voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([{"L": -22.0, "R": 22.0}[codes[0]], 22.0, 22.0, 1.0])
    affine[:3, 3] = [0, -18, 18] - affine[:3, :3] @ [4.0, 4.5, 3.5]
    image = nibabel.Nifti1Image(values, affine)
    image.header["pixdim"][4] = 2.0
    nibabel.save(image, path)
    return path


def convert(folder: Path, *extra: str, status: int = 0) -> list[RunFile]:
    """The command on ``folder/in``; returns the runs of ``folder/out``."""
    command = ["--input", str(folder / "in"), "--output", str(folder / "out"), "--tr", "2"]
    assert main([*command, "--num_workers", "1", *extra]) == status
    return [RunFile(path) for path in list_runs(folder / "out")]


def dense(run: RunFile) -> np.ndarray:
    """float64 [X, Y, Z, T], background 0."""
    header = run.header
    values = np.zeros((np.prod(header.grid), header.n_frames))
    values[run.vox] = (run.read(range(header.n_frames)) * header.scale + header.offset).T
    return values.reshape(*header.grid, header.n_frames)


WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "pt fp16": lambda root, v: write_pt(root / "img" / "a", v),
    "pt fp32 3D": lambda root, v: write_pt(
        root / "img" / "a", v, dtype=torch.float32, channel=False
    ),
    "h5 frame_": lambda root, v: write_h5(root / "hdf5" / "a.h5", v),
    "h5 numbers": lambda root, v: write_h5(root / "hdf5" / "a.h5", v, "{}"),
    "h5 group": lambda root, v: write_h5(root / "hdf5" / "a.h5", v, "bold/TR_{:04d}"),
    "h5 first": lambda root, v: write_h5(root / "a.h5", v, "first"),
    "h5 last": lambda root, v: write_h5(root / "a.h5", v, "last"),
}


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("codes", ["LAS", "RAS"])
def test_same_as_the_nifti_converter(tmp_path: Path, layout: str, codes: str) -> None:
    values = phantom()
    WRITERS[layout](tmp_path / "in", values)
    extra = ["--time_axis", layout.split()[1]] if layout in ("h5 first", "h5 last") else []
    extra += ["--orientation", codes, "--voxel_size", "22", "--img_size", "12", "7", "12"]
    (run,) = convert(tmp_path, *extra)
    write_nifti(tmp_path / "nifti" / "a.nii", values, codes)
    options = ConversionOptions(img_size=(12, 7, 12))
    (outcome,) = convert_folder(tmp_path / "nifti", tmp_path / "of_nifti", options, num_workers=1)
    reference = RunFile(tmp_path / "of_nifti" / "hdf5" / outcome.source.output)
    assert np.array_equal(run.vox, reference.vox)
    assert np.array_equal(run.read(range(12)), reference.read(range(12)))
    for name in ("scale", "offset", "mean", "std", "min", "max", "crop_offset", "cropped_voxels"):
        assert getattr(run.header, name) == getattr(reference.header, name), name
    assert run.header.mask_source == "nonzero"
    assert np.allclose(run.header.affine, reference.header.affine)
    assert np.allclose(np.asarray(run.header.affine)[:3, :3], np.diag([-22, 22, 22]))
    # Independently of either converter: left and right stand where the codes say.
    las = values if codes == "LAS" else values[::-1]
    expected = np.zeros((12, 7, 12, 12))
    expected[1:10, :, 2:10] = las[:, 2:9]
    assert np.abs(dense(run) - expected).max() <= run.header.scale / 2 * (1 + 1e-6)


@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("cubic", [True, False])
def test_the_axis_of_time_is_found(tmp_path: Path, layout: str, cubic: bool) -> None:
    """By three equal axes, or by --img_size; in the channel-last form as well ("first")."""
    values = phantom()[:8, :8] if cubic else phantom()
    write_h5(tmp_path / "in" / "a.h5", values, layout)
    (run,) = convert(tmp_path, "--img_size", *map(str, values.shape[:3]))
    assert (run.header.n_frames, run.header.grid) == (12, values.shape[:3])
    assert np.abs(dense(run) - values).max() <= run.header.scale / 2 * (1 + 1e-6)
    if cubic:
        (again,) = convert(tmp_path)
        assert np.array_equal(again.vox, run.vox)
        assert np.array_equal(again.read(range(12)), run.read(range(12)))


def test_statistics_and_links_in_hdf5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_h5(tmp_path / "in" / "a.h5", phantom(), "bold/{}")
    with h5py.File(path, "r+") as file:
        file["bold"].attrs["global_std"] = 1.0
        file["bold/global_max"] = np.array([4000.0])
        file["again"] = h5py.SoftLink("/bold")
        file["elsewhere"] = h5py.ExternalLink("absent.h5", "/bold")
    (run,) = convert(tmp_path)
    assert f"global_max 4000 is stored, the frames give {run.header.max:g}" in (
        out := capsys.readouterr().out
    )
    assert "global_std 1 is stored" in out
    assert "global_mean" not in out


def test_affine_of_the_mni_grid(tmp_path: Path) -> None:
    """91 x 109 x 91 LAS at 2 mm has FSL's affine; a centred crop keeps the world."""
    values = np.zeros((91, 109, 91, 2), np.float32)
    values[40:50, 40:50, 40:50] = np.random.default_rng(0).integers(1, 99, size=(10, 10, 10, 2))
    write_pt(tmp_path / "in" / "a", values)
    fsl = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    (run,) = convert(tmp_path, "--img_size", "96", "96", "96", "--space", "MNI152NLin6Asym")
    header = run.header
    assert np.allclose(header.source_affine, fsl)
    assert header.crop_offset == (2, -7, 2)
    index = np.array([45, 45, 45, 1])
    moved = index + np.array([*header.crop_offset, 0])
    assert np.allclose(np.asarray(header.affine) @ moved, fsl @ index)
    assert header.space == "MNI152NLin6Asym"
    assert (header.tr, header.tr_source) == (2.0, "--tr")
    assert header.source == "a"
    (run,) = convert(tmp_path, "--orientation", "psr", "--voxel_size", "1", "2", "3")
    source = np.asarray(run.header.source_affine)
    assert nibabel.aff2axcodes(source) == ("P", "S", "R")
    assert np.allclose(nibabel.affines.voxel_sizes(source), [1, 2, 3])
    assert np.allclose(source @ [45, 54, 45, 1], [0, -18, 18, 1])
    assert run.header.grid == (91, 91, 109)
    assert np.allclose(nibabel.affines.voxel_sizes(np.asarray(run.header.affine)), [3, 1, 2])


def test_scaled_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = phantom()
    folder = write_pt(tmp_path / "in" / "a", scaled(values))
    raw = {"global_mean": 1000.0, "global_std": 288.0, "global_max": torch.tensor(2000.0)}
    torch.save(raw, folder / "global_stats.pt")
    (run,) = convert(tmp_path)
    assert run.header.mask_source == "above_minimum"
    assert np.array_equal(run.vox, np.flatnonzero((values != 0).any(-1)))
    assert np.abs(dense(run) - scaled(values) * (values != 0)).max() < 1e-4
    assert "global_mean 1000 is stored" in capsys.readouterr().out
    # Background 0 after scaling (zeroback) is the other rule, found by the corners as well.
    write_pt(tmp_path / "b" / "in" / "a", scaled(values) * (values != 0))
    (run,) = convert(tmp_path / "b")
    assert run.header.mask_source == "nonzero"
    assert np.array_equal(run.vox, np.flatnonzero((values != 0).any(-1)))


def test_background_that_cannot_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = phantom()
    values[values == 0] = 3  # neither 0 nor, because of one voxel, the minimum
    values[4, 4, 4] = 1
    write_pt(tmp_path / "in" / "a", values)
    command = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--tr", "2"]
    assert main([*command, "--num_workers", "1"]) == 1
    message = capsys.readouterr().out
    assert "Give --background zero or --background min" in message
    (run,) = convert(tmp_path, "--background", "zero")
    assert run.header.n_voxels == np.prod(SHAPE)
    assert "the frames are not masked" in capsys.readouterr().out
    (run,) = convert(tmp_path, "--background", "min")
    assert run.header.n_voxels == np.prod(SHAPE) - 1


def test_frames_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    values = phantom()
    folder = write_pt(tmp_path / "in" / "a", values)
    for t in reversed(range(12)):  # count from 1, as some exports do
        (folder / f"frame_{t}.pt").rename(folder / f"frame_{t + 1}.pt")
    (folder / "notes.txt").write_text("not a frame")
    (run,) = convert(tmp_path, "--drop_first", "3", "--voxel_norm", "--dataset_name", "HCP")
    assert np.abs(dense(run) - values[..., 3:]).max() <= run.header.scale
    assert (run.header.n_frames, run.header.dropped_frames) == (9, 3)
    assert run.header.dataset == "S1200"
    assert run.header.crop_offset == (0, 0, 0)  # the cohort's own was applied by the reference
    statistics = run.voxel_statistics()
    assert statistics is not None
    brain = values.reshape(-1, 12)[run.vox, 3:]
    assert np.allclose(statistics[0], brain.mean(-1), rtol=1e-5)


def test_names(tmp_path: Path) -> None:
    names = {
        "100206": "100206",
        "100307_REST1_LR": "100307_run-REST1-LR",
        "100307_REST2_LR": "100307_run-REST2-LR",
        "1234567_20227_2_0": "1234567_20227_2_0",
        "1234567_20227_3_0": "1234567_20227_3_0",
        "sub-01_ses-a_task-rest_run-2": "sub-01_ses-a_task-rest_run-2",
    }
    for i, name in enumerate(names):
        write_pt(tmp_path / "in" / "img" / name, phantom(2, seed=i))
    write_h5(tmp_path / "in" / "hdf5" / "NDARINV1.h5", phantom(2, seed=9))
    runs = convert(tmp_path)
    assert {run.path.stem for run in runs} == {*names.values(), "NDARINV1"}
    subjects = {run.path.stem: run.header.subject for run in runs}
    assert subjects["100307_run-REST1-LR"] == subjects["100307_run-REST2-LR"] == "100307"
    assert subjects["1234567_20227_2_0"] == "1234567_20227_2_0"
    rows = {row.file: row for row in read_manifest(tmp_path / "out")}
    assert rows["hdf5/100307_run-REST1-LR.h5"].source == "img/100307_REST1_LR"
    assert len(rows) == 7


def test_a_folder_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_pt(tmp_path / "100206", phantom(2)))
    assert main(["--input", ".", "--output", str(tmp_path / "out"), "--tr", "1"]) == 0
    (run,) = (RunFile(path) for path in list_runs(tmp_path / "out"))
    assert (run.header.subject, run.header.source) == ("100206", "100206")


def test_compression(tmp_path: Path) -> None:
    write_pt(tmp_path / "in" / "a", phantom())
    for script, extra, chunks in (
        (SCRIPT, [], (4, 120)),
        (SCRIPT.with_name(f"{SCRIPT.stem}_nogzip.py"), [], None),
        (SCRIPT, ["--compression", "none"], None),
    ):
        out = tmp_path / f"{script.stem}{len(extra)}"
        command = [preloaded_python(), str(script), "--input", "in", "--output", str(out)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [*command, "--tr", "2", "--num_workers", "1", *extra],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        with h5py.File(out / "hdf5" / "a.h5") as file:
            assert file["bold"].chunks == chunks


# Bad input -----------------------------------------------------------------------------------


class Bomb:
    """Unpickling it would make a folder ``exploded`` in the working directory."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("exploded",)


def spoil(root: Path) -> dict[str, str]:
    """Bad runs below ``root``; name -> what the message must hold."""

    def pt(name: str, **given: Any) -> Path:
        return write_pt(root / "img" / name, phantom(**given))

    gaps = pt("gaps")
    for t in (3, 7, 8, 9):
        (gaps / f"frame_{t}.pt").unlink()
    late = pt("late")
    (late / "frame_0.pt").unlink()
    (late / "frame_1.pt").unlink()
    twice = pt("twice")
    (twice / "frame_03.pt").write_bytes((twice / "frame_3.pt").read_bytes())
    torch.save(torch.zeros(9, 10, 7, 1), pt("shape") / "frame_5.pt")
    torch.save(torch.zeros(9, 10, 8, 2), pt("channels") / "frame_0.pt")
    torch.save({"frame": torch.zeros(3)}, pt("dict") / "frame_2.pt")
    torch.save(torch.zeros(*SHAPE, dtype=torch.complex64), pt("complex") / "frame_2.pt")
    torch.save(Bomb(), pt("bomb") / "frame_4.pt")
    torch.save({"frame": Bomb()}, pt("nested") / "frame_0.pt")
    (pt("raw pickle") / "frame_4.pt").write_bytes(pickle.dumps(Bomb()))
    truncated = pt("truncated") / "frame_6.pt"
    truncated.write_bytes(truncated.read_bytes()[:700])
    (pt("empty") / "frame_6.pt").write_bytes(b"")
    overflow = phantom()
    overflow[2, 3, 4, 1] = 1e6  # beyond fp16
    write_pt(root / "img" / "overflow", overflow)
    pt("short", frames=1)
    write_pt(root / "img" / "constant", np.sign(phantom()))
    nothing = pt("nothing", frames=2)
    for t in range(2):
        torch.save(torch.zeros(SHAPE), nothing / f"frame_{t}.pt")

    whole = write_h5(root / "h5" / "cut.h5", phantom()).read_bytes()
    (root / "h5" / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (root / "h5" / "text.h5").write_text("not HDF5")
    with h5py.File(write_h5(root / "h5" / "holes.h5", phantom()), "r+") as file:
        del file["frame_4"]
        del file["frame_5"]
    with h5py.File(write_h5(root / "h5" / "odd.h5", phantom()), "r+") as file:
        del file["frame_4"]
        file["frame_4"] = np.zeros((9, 10, 7))
    with h5py.File(root / "h5" / "none.h5", "w") as file:
        file["table"] = np.zeros((4, 4))
    with h5py.File(write_h5(root / "h5" / "several.h5", phantom()), "r+") as file:
        file["bold"] = np.zeros((*SHAPE, 4))
    chunk = write_h5(root / "h5" / "chunk.h5", phantom())
    with h5py.File(chunk) as file:
        offset = file["frame_9"].id.get_chunk_info(0).byte_offset
    damaged = bytearray(chunk.read_bytes())
    damaged[offset : offset + 40] = b"\xff" * 40
    chunk.write_bytes(damaged)
    write_h5(root / "h5" / "ambiguous.h5", phantom(), "last")
    return {
        "img/gaps": "frame(s) 3, 7-9 are missing",
        "img/late": "frame(s) 0-1 are missing",
        "img/twice": "frame(s) 3 appear twice",
        "img/shape/frame_5.pt": "a frame of 9 x 10 x 7, expected 9 x 10 x 8",
        "img/channels/frame_0.pt": "a tensor 9 x 10 x 8 x 2 of torch.float32",
        "img/dict/frame_2.pt": "holds a dict",
        "img/complex/frame_2.pt": "of torch.complex64",
        "img/bomb/frame_4.pt": "holds an object of type posix.mkdir",
        "img/nested/frame_0.pt": "holds an object of type posix.mkdir",
        "img/raw pickle/frame_4.pt": "truncated or corrupt",
        "img/truncated/frame_6.pt": "truncated or corrupt",
        "img/empty/frame_6.pt": "truncated or corrupt",
        "img/overflow": "1 NaN or infinite values in 1 of 12 frames",
        "img/short": "1 frame(s), expected at least 2",
        "img/constant": "all voxels outside the background have one value",
        "img/nothing": "or there are none",
        "h5/cut.h5": "truncated or corrupt",
        "h5/text.h5": "truncated or corrupt",
        "h5/holes.h5": "frame(s) 4-5 are missing",
        "h5/odd.h5": "/frame_4 is 9 x 10 x 7, expected a frame of 9 x 10 x 8",
        "h5/none.h5": "found no frames",
        "h5/several.h5": "found /frame_<t>, /bold",
        "h5/chunk.h5": "truncated or corrupt",
        "h5/ambiguous.h5": "Give --time_axis first or --time_axis last",
    }


def test_bad_runs_are_named_and_the_others_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = spoil(Path("in"))
    write_pt(Path("in/img/good"), phantom())
    write_h5(Path("in/h5/fine.h5"), phantom(seed=1))
    names = [run.path.name for run in convert(Path(), status=1)]
    assert names == ["fine.h5", "good.h5"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert len(lines) == len(expected)
    for name, message in expected.items():
        (line,) = (line for line in lines if line.startswith(f"failed: in/{name}:"))
        assert message in line, line
        assert "unexpected" not in line
    assert not Path("exploded").exists()
    assert [row.subject for row in read_manifest("out")] == ["fine", "good"]
    assert {path.suffix for path in Path("out/hdf5").iterdir()} == {".h5"}


def test_a_bomb_in_the_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are only compared, so the run is converted, and nothing of the file is run."""
    monkeypatch.chdir(tmp_path)
    folder = write_pt(Path("in/a"), phantom())
    torch.save({"global_mean": Bomb()}, folder / "global_stats.pt")
    convert(Path())
    assert "statistics not compared" in capsys.readouterr().out
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "absent"], "--input: 'absent' does not exist"),
        (["--input", "file"], "--input: 'file' is a file"),
        (["--input", "empty"], "--input: neither folders with frame_<t>.pt nor *.h5"),
        (["--output", "file"], "--output: 'file/hdf5' cannot be made"),
        (["--tr", "0"], "--tr: got 0.0"),
        (["--tr", "nan"], "--tr: got nan"),
        (["--orientation", "LLS"], "--orientation: got 'LLS'"),
        (["--orientation", "LA"], "--orientation: got 'LA'"),
        (["--voxel_size", "2", "2"], "--voxel_size: got 2 numbers"),
        (["--voxel_size", "-2"], "--voxel_size: got -2.0"),
        (["--img_size", "0", "9", "9"], "--img_size: got 0"),
        (["--drop_first", "-1"], "--drop_first: got -1"),
        (["--num_workers", "0"], "--num_workers: got 0"),
        (["--dataset_name", "ABID"], "Did you mean 'ABIDE'"),
    ],
)
def test_wrong_flags(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").write_text("")
    write_pt(Path("in/a"), phantom(2))
    assert main(["--input", "in", "--output", "out", "--tr", "2", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list(Path().glob("out/hdf5/*"))


def test_the_input_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_h5(Path("data/hdf5/a.h5"), phantom())
    before = path.read_bytes()
    assert main(["--input", "data", "--output", "data", "--tr", "2"]) == 2
    assert "whose place the store's file would take" in capsys.readouterr().err
    # Frames of another folder under the name of a foreign file.
    write_pt(Path("in/a"), phantom())
    command = ["--input", "in", "--output", "data", "--tr", "2", "--num_workers", "1"]
    assert main([*command, "--overwrite"]) == 1
    assert "is no readable file of the store" in capsys.readouterr().out
    assert path.read_bytes() == before
    # Frames below the output are converted in place; a second call leaves the store's files out.
    write_pt(Path("both/img/b"), phantom())
    for status in ("converted", "skipped"):
        command = ["--input", "both", "--output", "both", "--tr", "2", "--num_workers", "1"]
        assert main(command) == 0
        assert f"[1/1] img/b: {status}" in capsys.readouterr().out


# Resume --------------------------------------------------------------------------------------


def test_resume_and_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pt(tmp_path / "in" / "a", phantom())
    path = write_h5(tmp_path / "in" / "b.h5", phantom(seed=1))

    def statuses(*extra: str) -> list[str]:
        convert(tmp_path, *extra)
        lines = capsys.readouterr().out.splitlines()
        return [line.split(": ")[1].split(",")[0] for line in lines if line.startswith("[")]

    command = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--tr", "2"]
    assert main([*command, "--dry_run"]) == 0
    assert "a: planned: 9 x 10 x 8 x 12, LAS, background auto" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert statuses() == ["converted", "converted"]
    assert statuses() == ["skipped", "skipped"]
    torch.save(torch.from_numpy(phantom(seed=7)[..., 3]).half(), folder / "frame_3.pt")
    assert statuses() == ["converted", "skipped"]
    write_h5(path, phantom(seed=3))
    assert statuses() == ["skipped", "converted"]
    assert statuses("--orientation", "RAS") == ["converted"] * 2
    assert statuses("--orientation", "RAS", "--space", "x") == ["converted"] * 2
    assert statuses("--orientation", "RAS", "--space", "x", "--overwrite") == ["converted"] * 2


def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    for i, name in enumerate(("a", "b", "c")):
        write_pt(tmp_path / "in" / name, phantom(seed=i))
    files = []
    for workers in ("1", "2"):
        out = tmp_path / f"out{workers}"
        command = ["--input", str(tmp_path / "in"), "--output", str(out), "--tr", "2"]
        assert main([*command, "--num_workers", workers]) == 0
        paths = [*list_runs(out), out / "manifest.csv"]
        files.append({path.name: path.read_bytes() for path in paths})
    assert files[0] == files[1]
    assert len(files[0]) == 4


def test_killed_and_called_again(tmp_path: Path) -> None:
    """SIGKILL in the middle; the second call gives the files of an undisturbed run."""
    for i in range(16):
        write_pt(tmp_path / "in" / f"{i:02}", np.tile(phantom(60, seed=i), (2, 2, 2, 1)))
    command = [sys.executable, "-u", str(SCRIPT), "--input", "in", "--tr", "2"]
    command += ["--num_workers", "1", "--output"]
    subprocess.run([*command, "whole"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen(
        [*command, "killed"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "[1/16]" in process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    done = {path.name for path in list_runs(tmp_path / "killed")}
    assert 1 <= len(done) < 16
    again = subprocess.run([*command, "killed"], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"skipped{len(done):>13}" in again.stdout
    for path in list_runs(tmp_path / "whole"):
        assert path.read_bytes() == (tmp_path / "killed" / "hdf5" / path.name).read_bytes()


# Real data -----------------------------------------------------------------------------------


def test_real_run_from_frames(shared_data: Path, tmp_path: Path) -> None:
    """A real run, masked, as frames and as NIfTI: the same file but for what names the source."""
    source = sorted((shared_data / "gift_mni_bold").rglob("*.nii*"))[0]
    image = nibabel.load(source)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    values = image.get_fdata(dtype=np.float32)
    brain = values.mean(-1) > values.mean()
    brain[[0, -1]] = brain[:, [0, -1]] = brain[:, :, [0, -1]] = False
    values *= brain[..., None]
    write_pt(tmp_path / "in" / "a", values, dtype=torch.float32)
    (run,) = convert(tmp_path, "--orientation", "RAS", "--img_size", "30", "36", "24")
    (tmp_path / "nifti").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, image.affine), tmp_path / "nifti" / "a.nii.gz")
    options = ConversionOptions(img_size=(30, 36, 24), mask="nonzero")
    convert_folder(tmp_path / "nifti", tmp_path / "of_nifti", options, num_workers=1)
    reference = RunFile(tmp_path / "of_nifti" / "hdf5" / "a.h5")
    assert run.header.content_sha256 == reference.header.content_sha256
    assert (run.header.scale, run.header.offset) == (
        reference.header.scale,
        reference.header.offset,
    )
