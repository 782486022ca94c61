"""NIfTI to store: orientation, masks, grid, TR, bad input, resume, the command line."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest

from neuromamba.commands.preprocess import main
from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest import gzip_stream
from neuromamba.data.ingest.brain_grid import place
from neuromamba.data.ingest.convert import ConversionOptions, Outcome
from neuromamba.data.ingest.folder import convert_folder
from neuromamba.data.ingest.layouts import find_runs
from neuromamba.data.ingest.repetition_time import resolve_tr
from neuromamba.data.store.manifest import read_manifest
from neuromamba.data.store.reader import RunFile, list_runs
from tests.helpers.paths import DATA_SCRIPTS
from tests.helpers.shared_files import EDGE_CASES, GIFT, linked

SCRIPT = DATA_SCRIPTS / "preprocessing.py"
SHAPE = (9, 10, 8)
# Over the field of view of the usual MNI grids.
RAS = np.array([[20.0, 0, 0, -80], [0, 25, 0, -130], [0, 0, 24, -66], [0, 0, 0, 1]])
SMALL = ConversionOptions(img_size=(12, 12, 12))


def phantom(frames: int = 6, seed: int = 0) -> np.ndarray:
    """An asymmetrical block of positive noise in zeros, float32 [9, 10, 8, frames]."""
    values = np.zeros((*SHAPE, frames), np.float32)
    block = np.random.default_rng(seed).uniform(500, 1500, size=(4, 6, 5, frames))
    values[1:5, 2:8, 1:6] = block
    values[2, 3, 4] = 5000 + np.arange(frames)  # one voxel that can be found again
    return values


def save(
    path: Path, values: np.ndarray, affine: Any = RAS, *, tr: float = 2.0, unit: str = "sec"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", unit)
    if values.ndim == 4:
        image.header["pixdim"][4] = tr
    nibabel.save(image, path)
    return path


def convert(folder: Path, options: ConversionOptions = SMALL, workers: int = 1) -> list[Outcome]:
    return convert_folder(folder, folder.parent / "store", options, num_workers=workers)


def only(folder: Path, options: ConversionOptions = SMALL) -> tuple[Outcome, RunFile]:
    """Convert a folder of one run, which must succeed."""
    (outcome,) = convert(folder, options)
    assert outcome.status in ("converted", "skipped"), outcome.message
    return outcome, RunFile(folder.parent / "store" / "hdf5" / outcome.source.output)


def dense(run: RunFile) -> np.ndarray:
    """The stored run as float64 [X, Y, Z, T], background 0."""
    header = run.header
    values = np.zeros((math.prod(header.grid), header.n_frames))
    values[run.vox] = (run.read(range(header.n_frames)) * header.scale + header.offset).T
    return values.reshape(*header.grid, header.n_frames)


def world_of_brightest(volume: np.ndarray, affine: Any) -> np.ndarray:
    index = np.unravel_index(np.argmax(volume), volume.shape)
    return np.asarray(affine) @ [*index, 1]


# Orientation and grid ------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPI", "PSR", "SAL"])
def test_the_orientation_of_the_source_does_not_matter(tmp_path: Path, codes: str) -> None:
    image = nibabel.Nifti1Image(phantom(), RAS)
    ornt = nibabel.orientations.axcodes2ornt(tuple(codes))
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], ornt)
    )
    assert "".join(nibabel.aff2axcodes(turned.affine)) == codes
    save(tmp_path / "in" / "a.nii.gz", np.asarray(turned.dataobj), turned.affine)
    save(tmp_path / "ras" / "in" / "a.nii.gz", phantom())
    _, run = only(tmp_path / "in")
    _, reference = only(tmp_path / "ras" / "in")
    assert np.array_equal(run.vox, reference.vox)
    assert np.array_equal(run.read(range(6)), reference.read(range(6)))
    assert np.allclose(run.header.affine, reference.header.affine, atol=1e-5)
    # Independently of any reorientation: the marked voxel stays at its place in the world.
    found = world_of_brightest(dense(run)[..., 0], run.header.affine)
    assert np.allclose(found, RAS @ [2, 3, 4, 1], atol=1e-4)
    assert nibabel.aff2axcodes(np.asarray(run.header.affine)) == ("L", "A", "S")
    assert np.allclose(run.header.source_affine, turned.affine, atol=1e-5)


def test_crop_and_pad_are_centred_and_recorded(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii", phantom())
    outcome, run = only(tmp_path / "in", ConversionOptions(img_size=(12, 7, 8)))
    header = run.header
    assert header.crop_offset == (1, -2, 0)  # floor(3 / 2), floor(-3 / 2), 0
    assert header.source_shape == SHAPE
    las = phantom()[::-1]
    expected = np.zeros((12, 7, 8, 6))
    expected[1:10] = las[:, 2:9]
    assert np.abs(dense(run) - expected).max() <= header.scale / 2 * (1 + 1e-6)
    assert header.cropped_voxels == 0
    assert not outcome.notes


def test_a_crop_through_the_brain_is_counted(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii", phantom())
    options = ConversionOptions(img_size=(12, 12, 12), crop_offset=(0, -4, 1))
    outcome, run = only(tmp_path / "in", options)
    assert run.header.crop_offset == (0, -4, 1)
    assert run.header.cropped_voxels == 4 * 2 * 5
    assert "cuts off 40 brain voxels (33.3%)" in outcome.notes[0]
    (failed,) = convert(tmp_path / "in", ConversionOptions(crop_offset=(0, 500, 0)))
    assert "no brain voxel falls into --img_size 96 96 96" in failed.message


def test_place_keeps_order_and_world() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[3, 4, 5] = mask[1, 9, 0] = True
    placed = place(mask, RAS, (7, 12, 9))
    assert placed.offset == (-1, 1, 0)
    assert placed.vox.tolist() == [(0 * 12 + 10) * 9, (2 * 12 + 5) * 9 + 5]
    assert placed.source_index.tolist() == [(1 * 10 + 9) * 8, (3 * 10 + 4) * 8 + 5]
    assert np.allclose(placed.affine @ [2, 5, 5, 1], RAS @ [3, 4, 5, 1])


def test_resampling_by_the_affine(tmp_path: Path) -> None:
    smooth = np.zeros((12, 12, 12, 3), np.float32)
    x, y, z = np.meshgrid(*[np.arange(12)] * 3, indexing="ij")
    smooth[...] = (1000 * np.exp(-((x - 5) ** 2 + (y - 6) ** 2 + (z - 6) ** 2) / 8))[..., None]
    smooth[smooth < 100] = 0
    smooth *= [1.0, 1.1, 0.9]
    affine = np.diag([3.0, 3, 3, 1])
    save(tmp_path / "in" / "a.nii", smooth, affine)
    options = ConversionOptions(img_size=(36, 36, 36), resample=1.5, space="native")
    _, run = only(tmp_path / "in", options)
    volume = dense(run)[..., 0]
    assert np.allclose(np.linalg.norm(np.asarray(run.header.affine)[:3, :3], axis=0), 1.5)
    centre = np.array(np.nonzero(volume > 0)) @ volume[volume > 0] / volume.sum()
    world = np.asarray(run.header.affine) @ [*centre, 1]
    assert np.abs(world[:3] - [15, 18, 18]).max() < 0.2
    assert run.header.n_voxels == pytest.approx(8 * np.count_nonzero(smooth[..., 0]), rel=0.01)
    # The same size is the same data.
    _, same = only(tmp_path / "in", replace(options, img_size=(12, 12, 12), resample=3.0))
    assert np.abs(dense(same) - smooth[::-1]).max() <= same.header.scale


# Masks ---------------------------------------------------------------------------------------

HEAD_AFFINE = np.array([[8.0, 0, 0, -92], [0, 9, 0, -121.5], [0, 0, 8, -74], [0, 0, 0, 1]])


def head(frames: int = 4) -> np.ndarray:
    """A bright ball in dim nonzero noise, float32 [24, 24, 24, frames]."""
    index = np.indices((24, 24, 24)) - 11.5
    ball = (index**2).sum(axis=0) < 81
    noise = np.random.default_rng(0).uniform(1, 20, size=(24, 24, 24, frames))
    return (noise + 1000 * ball[..., None]).astype(np.float32)


def save_head(path: Path, values: np.ndarray) -> Path:
    return save(path, values, HEAD_AFFINE)


def test_mask_rule(tmp_path: Path) -> None:
    options = ConversionOptions(img_size=(24, 24, 24))
    # Nowhere zero: computed.
    path = save_head(tmp_path / "in" / "sub-1_task-x_space-MNI_desc-preproc_bold.nii.gz", head())
    _, run = only(tmp_path / "in", options)
    assert run.header.mask_source == "computed_epi"
    assert run.header.n_voxels == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.1)
    # A sibling mask wins, reoriented by its own affine; a voxel of zeros inside it is kept.
    values = head()
    values[11, 12, 13] = 0
    save_head(path, values)
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[4:15, 12, 13] = 1
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 23
    sibling = tmp_path / "in" / "sub-1_task-x_space-MNI_desc-brain_mask.nii.gz"
    save(sibling, mask[::-1], HEAD_AFFINE @ flip)
    _, run = only(tmp_path / "in", options)
    assert run.header.mask_source == f"sibling:{sibling.name}"
    kept = np.zeros(24**3, bool)
    kept[run.vox] = True
    assert np.array_equal(kept.reshape(24, 24, 24), mask[::-1] > 0)
    assert run.header.min == 0
    # The flag wins over the sibling.
    _, run = only(tmp_path / "in", ConversionOptions(img_size=(24, 24, 24), mask="nonzero"))
    assert (run.header.mask_source, run.header.n_voxels) == ("nonzero", 24**3 - 1)
    other = save_head(tmp_path / "other.nii", mask)
    _, run = only(tmp_path / "in", ConversionOptions(img_size=(24, 24, 24), mask=str(other)))
    assert (run.header.mask_source, run.header.n_voxels) == ("file:other.nii", 11)


def test_nonzero_in_any_frame_counts(tmp_path: Path) -> None:
    values = phantom()
    values[7, 1, 1, 3] = 9
    save(tmp_path / "in" / "a.nii", values)
    _, run = only(tmp_path / "in")
    assert (run.header.mask_source, run.header.n_voxels) == ("nonzero", 4 * 6 * 5 + 1)


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a_bold.nii", phantom())
    mask = save(tmp_path / "in" / "a_desc-brain_mask.nii", np.ones((9, 10, 7), np.uint8))
    (outcome,) = convert(tmp_path / "in")
    assert "9 x 10 x 7) is not on the grid of 'a_bold.nii' (9 x 10 x 8)" in outcome.message
    save(mask, np.ones(SHAPE, np.uint8), RAS + np.diag([0, 0, 1, 0]))
    assert "has another affine" in convert(tmp_path / "in")[0].message
    save(mask, np.zeros(SHAPE, np.uint8))
    assert "is empty" in convert(tmp_path / "in")[0].message
    with pytest.raises(UserInputError, match="--mask: 'nonzer' is no file and none of auto"):
        ConversionOptions(mask="nonzer")


@pytest.mark.parametrize("value", [0, 100])
@pytest.mark.parametrize("rule", ["auto", "nonzero", "computed"])
def test_a_run_of_one_value_is_no_matter_of_the_mask(tmp_path: Path, rule: str, value: int) -> None:
    save(tmp_path / "in" / "a_bold.nii", np.full((*SHAPE, 6), value, np.int16))
    (outcome,) = convert(tmp_path / "in", replace(SMALL, mask=rule))
    assert f"every voxel has the value {value} in every frame" in outcome.message
    assert "--mask" not in outcome.message


# Values, frames and TR -----------------------------------------------------------------------


def test_scl_slope_negative_values_and_big_endian(tmp_path: Path) -> None:
    raw = np.arange(9 * 10 * 8 * 3, dtype=np.int16).reshape(*SHAPE, 3) - 700
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_shape(raw.shape)
    header.set_data_dtype(np.int16)
    header.set_slope_inter(0.5, -20)
    header.set_sform(RAS, 1)
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in" / "a.nii", "wb") as stream:
        header["vox_offset"], header["magic"] = 352, b"n+1"
        stream.write(header.binaryblock + bytes(4))
        stream.write(raw.astype(">i2").tobytes(order="F"))
    expected = nibabel.Nifti1Image.from_filename(tmp_path / "in" / "a.nii").get_fdata()
    assert expected.min() == -370
    _, run = only(tmp_path / "in", ConversionOptions(img_size=SHAPE, mask="nonzero"))
    assert np.abs(dense(run) - expected[::-1]).max() <= run.header.scale / 2 * (1 + 1e-6)
    assert run.header.min == -370


def test_dropped_frames(tmp_path: Path) -> None:
    values = phantom()
    values[..., 0] = np.nan  # not read, hence no error
    save(tmp_path / "in" / "a.nii", values)
    _, run = only(tmp_path / "in", ConversionOptions(img_size=(12, 12, 12), drop_first=2))
    assert (run.header.n_frames, run.header.dropped_frames) == (4, 2)
    (outcome,) = convert(tmp_path / "in", ConversionOptions(drop_first=5))
    assert "1 frame(s) after --drop_first 5, expected at least 2" in outcome.message


@pytest.mark.parametrize(
    ("header", "unit", "sidecar", "flag", "expected", "source", "note"),
    [
        (0.72, "sec", None, None, 0.72, "header", ""),
        (2000, "msec", None, None, 2.0, "header", ""),
        (2000, "sec", None, None, 2.0, "header, read as msec", "2000 sec; taken as msec"),
        (2.5, "msec", None, None, 2.5, "header, read as sec", "taken as sec"),
        (2000, "unknown", None, None, 2.0, "header, read as msec", "taken as msec"),
        (1.0, "sec", None, None, 1.0, "header", "placeholder"),
        (0.0, "sec", None, None, math.nan, "unknown", "give --tr"),
        (math.nan, "sec", None, None, math.nan, "unknown", "give --tr"),
        (-2.0, "sec", None, None, math.nan, "unknown", "give --tr"),
        (1e6, "sec", None, None, math.nan, "unknown", "give --tr"),
        (0.0, "sec", 2.0, None, 2.0, "sidecar", ""),
        (0.72, "sec", 2.0, None, 2.0, "sidecar", "header is 0.72 s, of the sidecar 2 s"),
        (2000, "msec", 2.0, None, 2.0, "sidecar", ""),
        (1.0, "sec", 2.0, None, 2.0, "sidecar", ""),
        (1.0, "sec", 2.0, 3.0, 3.0, "--tr", ""),
        (2.0, "sec", 2000.0, None, math.nan, "unknown", "sidecar is 2000 s"),
    ],
)
def test_tr(
    header: float,
    unit: str,
    sidecar: float | None,
    flag: float | None,
    expected: float,
    source: str,
    note: str,
) -> None:
    tr, found, said = resolve_tr(header, unit, sidecar, flag)
    assert tr == pytest.approx(expected, nan_ok=True)
    assert found == source
    assert note in said
    assert bool(note) == bool(said)


def test_tr_of_files(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a_bold.nii", phantom(), tr=0)
    outcome, run = only(tmp_path / "in")
    assert math.isnan(run.header.tr)
    assert "give --tr SECONDS" in outcome.notes[0]
    (tmp_path / "in" / "a_bold.json").write_text(json.dumps({"RepetitionTime": 0.8}))
    outcome, run = only(tmp_path / "in")
    assert (outcome.status, run.header.tr, run.header.tr_source) == ("converted", 0.8, "sidecar")
    _, run = only(tmp_path / "in", ConversionOptions(img_size=(12, 12, 12), tr=1.5))
    assert (run.header.tr, run.header.tr_source) == (1.5, "--tr")
    (tmp_path / "in" / "a_bold.json").write_text("{")
    assert "a_bold.json: not a JSON sidecar" in convert(tmp_path / "in")[0].message


# Names ---------------------------------------------------------------------------------------


def test_names_and_companions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    names = {
        "x/sub-01_ses-a_task-x_run-2_space-MNI_desc-preproc_bold": "sub-01_ses-a_task-x_run-2",
        "sub-02_lowres": "sub-02",
        "100206_rest": "100206_run-rest",
        "B_1": "B_1",
        "B_2": "B_2",
        "100307_rfMRI_REST1_LR": "100307_run-rfMRI-REST1-LR",
        "100307_rfMRI_REST2_LR": "100307_run-rfMRI-REST2-LR",
    }
    for seed, name in enumerate(names):
        save(folder / f"{name}.nii.gz", phantom(seed=seed))
    for name in ("sub-02_boldref", "sub-02_T1w", "x/sub-01_desc-brain_mask"):
        save(folder / f"{name}.nii.gz", phantom()[..., 0])
    (folder / "._sub-02_lowres.nii.gz").write_text("resource fork")
    outcomes = convert(folder)
    assert {o.status for o in outcomes} == {"converted"}
    assert {o.source.output for o in outcomes} == {f"{name}.h5" for name in names.values()}
    assert "3 other image(s) passed over" in capsys.readouterr().out
    rows = {row.subject: row for row in read_manifest(tmp_path / "store")}
    assert rows["sub-01"].session == "a"
    assert rows["100307"].subject == "100307"  # both runs: no split can part them
    assert rows["sub-01"].source == "x/sub-01_ses-a_task-x_run-2_space-MNI_desc-preproc_bold.nii.gz"
    assert rows["100206"].kept_fraction == pytest.approx(120 / 12**3, abs=1e-6)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for seed, name in enumerate(("x/sub-1_bold", "y/sub-1_bold", "sub-2_bold")):
        save(tmp_path / "in" / f"{name}.nii", phantom(seed=seed))
    outcomes = {o.source.name: o for o in convert(tmp_path / "in")}
    assert outcomes["sub-2_bold.nii"].status == "converted"
    assert outcomes["x/sub-1_bold.nii"].status == "failed"
    assert outcomes["y/sub-1_bold.nii"].status == "failed"
    message = outcomes["x/sub-1_bold.nii"].message
    assert "by its name the run sub-1, and so is y/sub-1_bold.nii" in message


# Bad input -----------------------------------------------------------------------------------


def test_bad_files_are_named_and_the_others_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    save(folder / "good.nii.gz", phantom())
    whole = (folder / "good.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "start.nii.gz").write_bytes(whole[:100])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    (folder / "flipped.nii.gz").write_bytes(flipped)
    (folder / "short.nii").write_bytes(gzip.decompress(whole)[:-1000])
    (folder / "empty.nii").write_bytes(b"")
    (folder / "text.nii").write_text("hello" * 200)
    save(folder / "flat.nii", phantom()[..., 0])
    save(folder / "one.nii", phantom(1))
    values = phantom()
    values[2, 3, 4, 1:3] = np.nan
    values[3, 3, 3, 2] = np.inf
    save(folder / "nan.nii", values)
    save(folder / "zeros.nii", np.zeros((*SHAPE, 3), np.float32))
    save(folder / "constant.nii", np.sign(phantom()))
    save(folder / "complex.nii", phantom().astype(np.complex64))
    expected = {
        "truncated.nii.gz": "truncated or corrupt",
        "start.nii.gz": "truncated or corrupt|not a NIfTI",
        "flipped.nii.gz": "truncated or corrupt",
        "short.nii": "truncated or corrupt",
        "empty.nii": "not a NIfTI image",
        "text.nii": "not a NIfTI image",
        "flat.nii": "3D image of 9 x 10 x 8, expected a 4D run",
        "one.nii": "1 frame(s), expected at least 2",
        "nan.nii": "3 NaN or infinite values in 2 of 6 frames",
        "zeros.nii": "every voxel has the value 0 in every frame",
        "constant.nii": "all brain voxels have the value 1 in every frame",
        "complex.nii": "the values are complex64",
    }
    status = main(
        ["--input", str(folder), "--output", str(tmp_path / "store"), "--num_workers", "1"]
    )
    assert status == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert len(lines) == len(expected)
    for name, message in expected.items():
        (line,) = (line for line in lines if f"/{name}:" in line)
        assert any(part in line for part in message.split("|")), line
        assert "unexpected" not in line
    assert [path.name for path in (tmp_path / "store" / "hdf5").iterdir()] == ["good.h5"]
    assert [row.subject for row in read_manifest(tmp_path / "store")] == ["good"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "absent"], "--input: 'absent' does not exist"),
        (["--input", "file"], "--input: 'file' is a file"),
        (["--input", "empty"], "--input: no *.nii or *.nii.gz in 'empty'"),
        (["--input", "masks"], "--input: only masks"),
        (["--input", "in", "--output", "file"], "--output: 'file/hdf5' cannot be made"),
        (["--input", "in", "--mask", "comput"], "--mask: 'comput' is no file"),
        (["--input", "in", "--img_size", "0", "9", "9"], "--img_size: got 0"),
        (["--input", "in", "--tr", "-1"], "--tr: got -1,"),
        (["--input", "in", "--resample", "nan"], "--resample: got nan"),
        (["--input", "in", "--drop_first", "-1"], "--drop_first: got -1"),
        (["--input", "in", "--num_workers", "0"], "--num_workers: got 0"),
        (["--input", "in", "--dataset_name", "ABID"], "Did you mean 'ABIDE'"),
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
    save(Path("in/a.nii"), phantom())
    save(Path("masks/a_mask.nii"), phantom()[..., 0])
    assert main(["--output", "store", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not Path("store/hdf5").exists() or not list(Path("store/hdf5").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_read_only_output(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.nii", phantom())
    (tmp_path / "store").mkdir(mode=0o500)
    assert main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "store")]) == 2


# Resume, workers, interruption ---------------------------------------------------------------


def test_resume(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "a.nii.gz", phantom())
    save(folder / "b.nii.gz", phantom(seed=1))

    def status(options: ConversionOptions = SMALL) -> list[str]:
        return [outcome.status for outcome in convert(folder, options)]

    assert status() == ["converted", "converted"]
    assert status() == ["skipped", "skipped"]
    save(folder / "b.nii.gz", phantom(seed=2))
    assert status() == ["skipped", "converted"]
    (tmp_path / "store" / "hdf5" / "a.h5").write_bytes(b"broken")
    outcomes = convert(folder)
    assert [o.status for o in outcomes] == ["converted", "skipped"]
    assert "damaged" in outcomes[0].message
    assert status(ConversionOptions(img_size=(12, 12, 12), drop_first=1)) == ["converted"] * 2
    assert status() == ["converted"] * 2
    assert status(ConversionOptions(img_size=(12, 12, 12), overwrite=True)) == ["converted"] * 2
    assert "options have changed" in convert(folder, ConversionOptions())[0].message


def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / "in" / f"{name}.nii.gz", phantom(seed=ord(name)))
    files: list[dict[str, bytes]] = []
    for workers in (1, 2):
        convert(tmp_path / "in", SMALL, workers)
        store = tmp_path / "store"
        paths = [*list_runs(store), store / "manifest.csv"]
        files.append({path.name: path.read_bytes() for path in paths})
        shutil.rmtree(store)
    assert files[0] == files[1]
    assert len(files[0]) == 4


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.nii", phantom(seed=ord(name)))
    original, calls = h5py.Dataset.__setitem__, []

    def fail_on_the_second(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise failure
        original(*args)

    monkeypatch.setattr(h5py.Dataset, "__setitem__", fail_on_the_second)
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "store")]
    status = main([*arguments, "--img_size", "12", "12", "12", "--num_workers", "1"])
    assert status == (130 if isinstance(failure, KeyboardInterrupt) else 1)
    assert [path.name for path in (tmp_path / "store" / "hdf5").iterdir()] == ["a.h5"]
    assert [row.subject for row in read_manifest(tmp_path / "store")] == ["a"]


def test_ctrl_c_with_workers_keeps_what_is_done(tmp_path: Path) -> None:
    """A second call finishes the rest; no temporary file, no traceback."""
    values = head(40)
    for number in range(20):
        save_head(tmp_path / "in" / f"{number:02}.nii", values + np.float32(number))
    command = [sys.executable, "-u", str(SCRIPT), "--input", "in", "--output", "out"]
    command += ["--img_size", "24", "24", "24", "--num_workers", "2"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert "20 run(s)" in process.stdout.readline()
        assert "[1/20]" in process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    files = list((tmp_path / "out" / "hdf5").iterdir())
    assert {path.suffix for path in files} == {".h5"}
    assert f"converted{len(files):>11}" in out
    assert f"not done{20 - len(files):>12}" in out
    rest = convert_folder(
        tmp_path / "in", tmp_path / "out", ConversionOptions(img_size=(24, 24, 24)), num_workers=1
    )
    assert [o.status for o in rest].count("skipped") == len(files)
    assert "failed" not in {o.status for o in rest}


def test_the_same_source_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "a.nii.gz", phantom())
    shutil.copy(tmp_path / "in" / "a.nii.gz", tmp_path / "in" / "b.nii.gz")
    kept, refused = convert(tmp_path / "in")
    assert (kept.status, refused.status) == ("converted", "failed")
    assert "b.nii.gz: the same file as a.nii.gz, under another name" in refused.message
    # Converted in an earlier call, it is there already: pointed out.
    (tmp_path / "in" / "a.nii.gz").rename(tmp_path / "in" / "c.nii.gz")
    convert(tmp_path / "in")
    assert "same source under 2 names: hdf5/a.h5, hdf5/b.h5" in capsys.readouterr().out


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "a.nii", phantom())
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "store")]
    assert main([*arguments, "--dry_run"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("a "))
    assert re.split("  +", line) == [
        "a",
        "9 x 10 x 8 x 6",
        "2 s (header)",
        "MNI152 (field of view)",
        "nonzero, else computed",
        "RAS, pad 87 86 88",
        "convert",
    ]
    save(tmp_path / "in" / "b.nii", phantom(1))
    assert main([*arguments, "--dry-run"]) == 1
    assert not (tmp_path / "store").exists()


def test_command_line_from_anywhere(tmp_path: Path) -> None:
    """No PYTHONPATH, another working folder, parallel workers, plain lines in a log."""
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.nii.gz", phantom(seed=ord(name)))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(SCRIPT), "--input", "in", "--output", "out"]
    command += ["--img_size", "12", "12", "12", "--num_workers", "2", "--compression", "lz4"]
    command += ["--dataset_name", "HCP", "--crop_offset", "-1", "0", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "[2/2]" in done.stdout
    assert "converted          2" in done.stdout
    for path in list_runs(tmp_path / "out"):
        header = RunFile(path).header
        assert (header.dataset, header.crop_offset) == ("S1200", (-1, 0, 2))
    done = subprocess.run(
        [*command[:2], "--input", "nowhere", "--output", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --input: 'nowhere' does not exist")
    assert "Traceback" not in done.stderr


def test_without_isal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in" / "a.nii.gz", phantom())
    _, run = only(tmp_path / "in")
    expected = run.read(range(6))
    run.close()
    monkeypatch.setattr(gzip_stream, "_decompressor", zlib.decompressobj)
    outcome, run = only(tmp_path / "in", ConversionOptions(img_size=(12, 12, 12), overwrite=True))
    assert outcome.status == "converted"
    assert np.array_equal(run.read(range(6)), expected)


# Real data -----------------------------------------------------------------------------------


def test_gift_mni_bold(shared_data: Path, tmp_path: Path) -> None:
    options = ConversionOptions(img_size=(30, 36, 24))
    folder = linked(shared_data / "gift_mni_bold", GIFT, tmp_path / "in")
    outcomes = convert_folder(folder, tmp_path / "out", options, num_workers=1)
    assert [outcome.status for outcome in outcomes] == ["converted"] * len(GIFT)
    for path in list_runs(tmp_path / "out"):
        run = RunFile(path)
        assert run.header.mask_source == "computed_epi"
        assert run.header.crop_offset == (2, 2, 1)
        x, y, z = np.unravel_index(run.vox, run.header.grid)
        kept = len(np.unique(np.stack([x // 6, y // 6, z // 6]), axis=1).T)
        assert 0.2 < kept / (5 * 6 * 4) < 0.7
        # Against nibabel, voxel by voxel through the world.
        image = nibabel.Nifti1Image.from_filename(folder / run.header.source)
        source = np.rint(
            np.linalg.inv(image.affine)
            @ np.asarray(run.header.affine)
            @ np.stack([x, y, z, np.ones_like(x)])
        ).astype(int)
        expected = image.get_fdata()[source[0], source[1], source[2]].T
        stored = run.read(range(50)) * run.header.scale + run.header.offset
        assert np.abs(stored - expected).max() <= run.header.scale / 2 * (1 + 1e-6)


def test_edge_cases(shared_data: Path, tmp_path: Path) -> None:
    folder = linked(shared_data / "edge_cases", EDGE_CASES, tmp_path / "in")
    for outcome in convert_folder(folder, tmp_path / "mni", num_workers=1):
        assert outcome.status == "failed"
        assert "not in MNI space by its header" in outcome.message
        assert "--space native" in outcome.message
    # On purpose, and each alone: their voxels differ.
    found: dict[str, Outcome] = {}
    again = {}
    for path in map(folder.joinpath, EDGE_CASES):
        name = path.name.split(".")[0]
        (tmp_path / name).mkdir()
        (tmp_path / name / path.name).symlink_to(path)
        native = ConversionOptions(space="native")
        (found[name],) = convert_folder(tmp_path / name, tmp_path / "a", native, num_workers=1)
        shutil.rmtree(tmp_path / "a")
        native = replace(native, mask="nonzero")
        (again[name],) = convert_folder(tmp_path / name, tmp_path / "a", native, num_workers=1)
        shutil.rmtree(tmp_path / "a")
    example, echo = found["example4d"].header, found["echo1"].header
    assert example is not None
    assert (example.tr, example.tr_source) == (2.0, "header, read as msec")
    assert example.mask_source == "nonzero"
    assert example.crop_offset == (-16, 0, 36)
    assert example.space == "native"
    assert any("oblique by 9.3 degrees, kept" in note for note in found["example4d"].notes)
    assert echo is not None
    assert nibabel.aff2axcodes(np.asarray(echo.source_affine)) == ("L", "P", "S")
    assert (echo.orientation, echo.mask_source, echo.n_frames) == ("LAS", "computed_epi", 5)
    # Slabs for which nilearn finds no brain: refused or pointed out, never silently kept.
    assert "mask (computed_epi) is empty" in found["functional"].message
    assert any("covers only 0.7%" in note for note in found["fmri1"].notes)
    assert any("oblique by 11.8 degrees, kept" in note for note in found["fmri1"].notes)
    assert {outcome.status for outcome in again.values()} == {"converted"}


def test_qform_and_sform_that_mirror_each_other(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(phantom(), RAS)
    image.set_sform(RAS, 4)
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ RAS, 1)
    (tmp_path / "in").mkdir()
    nibabel.save(image, tmp_path / "in" / "sub-01_bold.nii.gz")
    (outcome,) = convert(tmp_path / "in")
    assert outcome.status == "failed"
    assert "qform and sform contradict each other" in outcome.message


def test_pairs_of_files_are_named(tmp_path: Path) -> None:
    save(tmp_path / "in" / "sub-01_bold.nii", phantom())
    pair = nibabel.Nifti1Pair(phantom(), RAS)
    nibabel.save(pair, tmp_path / "in" / "sub-02_bold.hdr")
    found = find_runs(tmp_path / "in")
    assert [source.name for source in found.sources] == ["sub-01_bold.nii"]
    assert [(p.name, ".hdr and .img" in p.why) for p in found.passed_over] == [
        ("sub-02_bold.hdr", True)
    ]


def test_a_grid_that_cuts_off_most_of_the_brain(tmp_path: Path) -> None:
    save(tmp_path / "in" / "sub-01_bold.nii", phantom())
    (outcome,) = convert(tmp_path / "in", replace(SMALL, img_size=(3, 3, 3)))
    assert outcome.status == "failed" and "--img_size 3 3 3 cuts off" in outcome.message
