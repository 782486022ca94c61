"""What an ingest checks beside single files: voxel sizes, oblique runs, statistics, memory."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nilearn import datasets
from nilearn.image import resample_img

from neuromamba.commands.preprocess import main
from neuromamba.data.ingest.brain_grid import place
from neuromamba.data.store.reader import RunFile, list_runs
from tests.helpers.paths import DATA_SCRIPTS
from tests.helpers.scans import GRID, names_in, save, scan

SCRIPT = DATA_SCRIPTS / "preprocessing.py"
LARGER = np.array([[-19.2, 0, 0, 86.4], [0, 18.7, 0, -121], [0, 0, 19.2, -68], [0, 0, 0, 1]])


def ingest(folder: Path, store: Path, *flags: str) -> int:
    arguments = ["--input", str(folder), "--output", str(store), *GRID, "--num_workers", "1"]
    return main([*arguments, *flags])


def test_voxel_sizes_of_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, store = tmp_path / "in", tmp_path / "store"
    save(folder / "a.nii", scan(1, shape=(10, 12, 10)), LARGER)
    for seed, name in enumerate("bc"):
        save(folder / f"{name}.nii", scan(seed))
    assert ingest(folder, store) == 1
    assert names_in(store) == ["b", "c"]
    message = "voxels of 19.2 x 18.7 x 19.2 mm, expected 16 x 16 x 16 mm as 2 other run(s)"
    assert message in capsys.readouterr().out
    # Alone in its folder, it is still odd in this store, and at home in another.
    save(tmp_path / "alone" / "a.nii", scan(1, shape=(10, 12, 10)), LARGER)
    assert ingest(tmp_path / "alone", store) == 1
    assert ingest(tmp_path / "alone", tmp_path / "other") == 0
    # The remedy of the message.
    assert ingest(folder, store, "--resample", "16") == 0
    assert names_in(store) == ["a", "b", "c"]


def test_resampling_straightens_an_oblique_run(tmp_path: Path) -> None:
    """A bright spot stays where it is in the world."""
    angle = np.radians(8)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.array([[-8.0, 0, 0, 92], [0, 8, 0, -130], [0, 0, 8, -74], [0, 0, 0, 1]])
    x, y, z = np.indices((24, 28, 24))
    spot = np.exp(-((x - 9) ** 2 + (y - 17) ** 2 + (z - 14) ** 2) / 8)
    values = (1000 * spot)[..., None] * np.array([1.0, 1.1, 0.9])
    values[values < 50] = 0
    save(tmp_path / "in" / "a.nii", values.astype(np.float32), affine)
    flags = ("--img_size", "36", "36", "36")
    assert ingest(tmp_path / "in", tmp_path / "store", *flags) == 1
    assert ingest(tmp_path / "in", tmp_path / "store", *flags, "--resample", "6") == 0
    run = RunFile(tmp_path / "store" / "hdf5" / "a.h5")
    stored = np.asarray(run.header.affine)
    assert np.array_equal(stored[:3, :3], np.diag([-6.0, 6, 6]))
    weights = run.read([0])[0] * run.header.scale + run.header.offset
    index = np.stack(np.unravel_index(run.vox, run.header.grid))
    centre = stored @ [*(index @ weights / weights.sum()), 1]
    assert np.abs(centre - affine @ [9, 17, 14, 1]).max() < 0.5


def test_voxel_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = scan()
    save(tmp_path / "in" / "a.nii", values)
    assert ingest(tmp_path / "in", tmp_path / "store", "--drop_first", "4") == 0
    assert RunFile(tmp_path / "store" / "hdf5" / "a.h5").voxel_statistics() is None
    flags = ("--drop_first", "4", "--voxel_norm")
    assert ingest(tmp_path / "in", tmp_path / "store", *flags) == 0
    assert "the options have changed" in capsys.readouterr().out
    run = RunFile(tmp_path / "store" / "hdf5" / "a.h5")
    found = run.voxel_statistics()
    assert found is not None
    kept = values[:, 1:13, :, 4:].reshape(-1, 20)[run.vox].astype(np.float64)
    np.testing.assert_allclose(found[0], kept.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found[1], kept.std(axis=1), rtol=1e-5)
    assert run.header.dropped_frames == 4


def test_a_run_that_went_bad_keeps_its_old_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in" / "a.nii", scan())
    assert ingest(tmp_path / "in", tmp_path / "store") == 0
    before = list_runs(tmp_path / "store")[0].read_bytes()
    path.write_bytes(path.read_bytes()[:-10])
    assert ingest(tmp_path / "in", tmp_path / "store") == 1
    assert "The store keeps a.h5 of an earlier call." in capsys.readouterr().out
    assert list_runs(tmp_path / "store")[0].read_bytes() == before


def test_several_templates_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, space in enumerate(("MNI152NLin6Asym", "MNI152NLin2009cAsym")):
        save(tmp_path / "in" / f"sub-{seed}_space-{space}_bold.nii", scan(seed))
    assert ingest(tmp_path / "in", tmp_path / "store") == 0
    assert "several spaces in one store: " in capsys.readouterr().out


def test_flags_of_the_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "a.nii", scan())
    assert ingest(tmp_path / "in", tmp_path / "store", "--space", "MNI 152") == 2
    assert "--space: 'MNI 152' is no name of a space" in capsys.readouterr().err


def test_the_usual_grids_of_2_mm_land_on_one() -> None:
    """The centred crop puts HCP's and fMRIPrep's runs at the same indices, and cuts no brain."""
    template = datasets.load_mni152_brain_mask(resolution=2)
    found = []
    for shape, origin in (((91, 109, 91), (-90, -126, -72)), ((97, 115, 97), (-96, -132, -78))):
        ras = np.diag([2.0, 2, 2, 1])
        ras[:3, 3] = origin
        mask = resample_img(template, ras, shape, interpolation="nearest", copy_header=True)
        las = ras @ np.array([[-1, 0, 0, shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        placed = place(np.asarray(mask.dataobj)[::-1] > 0, las, (96, 96, 96))
        assert placed.cropped == 0
        found.append(placed)
    assert np.array_equal(found[0].vox, found[1].vox)
    assert np.array_equal(found[0].affine, found[1].affine)


# Memory -------------------------------------------------------------------------------------------


def write_large_run(path: Path, frames: int) -> None:
    """91 x 109 x 91 float32 at 2 mm in MNI space, a head without a mask; packed as a stream."""
    shape = (91, 109, 91)
    affine = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    header = nibabel.Nifti1Header()
    header.set_data_shape((*shape, frames))
    header.set_data_dtype(np.float32)
    header.set_sform(affine, 4)
    header["pixdim"][4] = 0.72
    header["vox_offset"], header["magic"] = 352, b"n+1"
    x, y, z = np.ogrid[-1:1:91j, -1:1:109j, -1:1:91j]
    head = (10 + 1000 * (x**2 + y**2 + z**2 < 0.6)).astype(np.float32)
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for frame in range(frames):
            # Values that pack well: time is not the matter here.
            stream.write((head * np.float32(1 + 0.01 * (frame % 7))).tobytes(order="F"))


def peak_memory(folder: Path, store: Path, *flags: str) -> float:
    """MB of a call, measured by its parent."""
    command = [sys.executable, str(SCRIPT), "--input", str(folder), "--output", str(store)]
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)\n"
    )
    command += ["--num_workers", "1", *flags]
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """400 frames are 1.4 GB; mask from the data (with nilearn), and from the nonzero voxels."""
    write_large_run(tmp_path / "short" / "a.nii.gz", 40)
    write_large_run(tmp_path / "long" / "a.nii.gz", 400)
    short = peak_memory(tmp_path / "short", tmp_path / "store1")
    long = peak_memory(tmp_path / "long", tmp_path / "store2", "--voxel_norm")
    assert long < 300
    assert long < short + 40
    header = RunFile(list_runs(tmp_path / "store2")[0]).header
    assert (header.mask_source, header.n_frames) == ("computed_epi", 400)
    assert peak_memory(tmp_path / "long", tmp_path / "store3", "--mask", "nonzero") < 200
