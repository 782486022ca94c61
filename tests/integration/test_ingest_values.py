"""Values and places that an ingest gets right where they once went silently wrong."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuromamba.commands.check_store import main as check_store
from neuromamba.commands.preprocess import main
from neuromamba.data.store.reader import RunFile, list_runs
from tests.helpers.scans import GRID, LAS, SHAPE, brain, save, scan


def ingest(folder: Path, store: Path, *flags: str, status: int = 0) -> list[RunFile]:
    arguments = ["--input", str(folder), "--output", str(store), *GRID, "--num_workers", "1"]
    assert main([*arguments, *flags]) == status
    return [RunFile(path) for path in list_runs(store)]


def volume(run: RunFile, frame: int = 0) -> np.ndarray:
    """A frame on the grid, in the source's units."""
    header = run.header
    dense = np.zeros(np.prod(header.grid))
    dense[run.vox] = run.read([frame])[0] * header.scale + header.offset
    return dense.reshape(header.grid)


# --- where the brain is -------------------------------------------------------------------------


def boxed(folder: Path, name: str, cut: int, values: np.ndarray | None = None) -> Path:
    """A run without its first ``cut`` planes along each axis, with the affine that follows."""
    affine = LAS.copy()
    affine[:3, 3] += LAS[:3, :3] @ [cut, cut, cut]
    values = scan(3) if values is None else values
    return save(folder / f"{name}.nii.gz", values[cut:, cut:, cut:], affine)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_boxes_of_several_programs_lie_on_one_place(
    tmp_path: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """[05] Centred by their shapes, brains lay up to 10 mm apart."""
    for name, seed in (("a1", 3), ("a2", 4), ("a3", 5)):
        boxed(tmp_path / "in", name, 0, scan(seed))
    boxed(tmp_path / "in", "b1", cut, scan(3) + brain()[..., None].astype(np.int16))
    *others, odd = ingest(tmp_path / "in", tmp_path / "store")
    assert odd.header.affine == others[0].header.affine
    assert odd.header.crop_offset == tuple(np.add(others[0].header.crop_offset, cut))
    kept = volume(odd) != 0
    assert kept.sum() > 100
    assert np.allclose(volume(odd)[kept], volume(others[0])[kept] + 1, atol=0.1)
    check_store(["--image_path", str(tmp_path / "store")])
    assert "several places" not in capsys.readouterr().out


def test_new_runs_follow_those_that_are_there(tmp_path: Path) -> None:
    boxed(tmp_path / "first", "a1", 0)
    (before,) = ingest(tmp_path / "first", tmp_path / "store")
    for name in ("b1", "b2"):
        boxed(tmp_path / "second", name, 2, scan(4 if name == "b1" else 5))
    runs = ingest(tmp_path / "second", tmp_path / "store")
    assert {run.header.affine for run in runs} == {before.header.affine}


def test_half_a_voxel_aside_is_refused_or_resampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        save(tmp_path / "in" / f"a{i}.nii.gz", scan(i))
    beside = LAS.copy()
    beside[0, 3] += 8
    save(tmp_path / "in" / "b1.nii.gz", scan(7), beside)
    ingest(tmp_path / "in", tmp_path / "store", status=1)
    assert "8.0 mm beside those of the other runs" in capsys.readouterr().out
    runs = ingest(tmp_path / "in", tmp_path / "resampled", "--resample", "16")
    assert len({run.header.affine for run in runs}) == 1
    assert len(runs) == 3


def test_a_store_of_two_places_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As converted before runs were placed by their affines."""
    for name, cut in (("a1", 0), ("b1", 2)):
        boxed(tmp_path / name, name, cut, scan(cut))
        ingest(tmp_path / name, tmp_path / f"store{name}")
    store = tmp_path / "storea1"
    (other,) = list_runs(tmp_path / "storeb1")
    other.rename(store / "hdf5" / other.name)
    assert check_store(["--image_path", str(store)]) == 1
    assert "several places of the grid" in capsys.readouterr().out


# --- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("highest", [1.0, 0.8])
def test_weights_count_above_one_half(tmp_path: Path, highest: float) -> None:
    """[10] Cut at > 0, the whole box was brain."""
    rng = np.random.default_rng(0)
    weights = np.where(brain(), highest, 0.2 * rng.random(SHAPE)).astype(np.float32)
    name = "sub-11_task-rest_space-MNI152NLin6Asym_desc"
    save(tmp_path / "in" / f"{name}-preproc_bold.nii.gz", scan(1) + np.int16(9))
    save(tmp_path / "in" / f"{name}-brain_mask.nii.gz", weights)
    (run,) = ingest(tmp_path / "in", tmp_path / "store")
    inside = brain()[:, 1:13, :]  # the grid has two planes less
    assert np.array_equal(run.vox, np.flatnonzero(inside))


def test_masks_of_labels_count_above_zero(tmp_path: Path) -> None:
    labels = brain().astype(np.int16)
    labels[: SHAPE[0] // 2] *= 3
    save(tmp_path / "in" / "sub-1_bold.nii.gz", scan(1) + np.int16(9))
    save(tmp_path / "in" / "sub-1_desc-brain_mask.nii.gz", labels)
    (run,) = ingest(tmp_path / "in", tmp_path / "store")
    assert run.header.n_voxels == brain()[:, 1:13].sum()


@pytest.mark.parametrize("mean", [0.0, 703.7, -12.0])
def test_masked_floats_saved_as_scaled_integers(tmp_path: Path, mean: float) -> None:
    """[11] The background became a constant near 0, and both remedies of the message failed."""
    values = (mean + np.random.default_rng(1).normal(0, 30, (*SHAPE, 24))) * brain()[..., None]
    image = nibabel.Nifti1Image(values, LAS)
    image.set_sform(LAS, 4)
    image.header.set_data_dtype(np.int16)
    image.header["pixdim"][4] = 2
    (tmp_path / "in").mkdir()
    nibabel.save(image, tmp_path / "in" / "a1.nii.gz")
    background = np.asarray(nibabel.load(tmp_path / "in" / "a1.nii.gz").dataobj)[0, 0, 0, 0]
    (run,) = ingest(tmp_path / "in", tmp_path / "store")
    assert np.array_equal(run.vox, np.flatnonzero(brain()[:, 1:13, :]))
    if background != 0:
        assert run.header.mask_source.startswith("other than")


# --- headers ------------------------------------------------------------------------------------


def packed(**fields: tuple[str, int, float]) -> bytes:
    image = nibabel.Nifti1Image(scan(2), LAS)
    image.set_sform(LAS, 4)
    image.header["pixdim"][4] = 2
    raw = bytearray(image.to_bytes())
    for form, place, value in fields.values():
        struct.pack_into(form, raw, place, value)
    return gzip.compress(bytes(raw))


def test_offset_zero_is_right_after_the_header(tmp_path: Path) -> None:
    """[13] Bytes of the header were read as voxels."""
    for name, raw in (("a1", packed()), ("b1", packed(vox_offset=("<f", 108, 0.0)))):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.nii.gz").write_bytes(raw)
    (plain,) = ingest(tmp_path / "a1", tmp_path / "s1")
    (zero,) = ingest(tmp_path / "b1", tmp_path / "s2")
    assert np.array_equal(plain.read(range(24)), zero.read(range(24)))
    assert np.array_equal(plain.vox, zero.vox)


@pytest.mark.parametrize("axes", [(1, 24), (24, 1), (1, 24, 1)])
def test_axes_of_length_one_are_left_out(tmp_path: Path, axes: tuple[int, ...]) -> None:
    values = scan(2).reshape(*SHAPE, *axes)
    image = nibabel.Nifti1Image(values, LAS)
    image.set_sform(LAS, 4)
    (tmp_path / "in").mkdir()
    nibabel.save(image, tmp_path / "in" / "a1.nii.gz")
    (run,) = ingest(tmp_path / "in", tmp_path / "store", "--tr", "2")
    assert np.allclose(volume(run, 5), scan(2)[:, 1:13, :, 5], atol=0.1)


def test_large_values_that_change_enough_are_taken(tmp_path: Path) -> None:
    """int32 as such is no mistake."""
    values = (scan(1).astype(np.int32) * 1000) * brain()[..., None]
    save(tmp_path / "in" / "a1.nii.gz", values)
    (run,) = ingest(tmp_path / "in", tmp_path / "store")
    assert np.allclose(volume(run), values[:, 1:13, :, 0], rtol=1e-4)


def test_forms_may_differ_by_a_normalisation(tmp_path: Path) -> None:
    """qform of the scanner, sform of the template: a head is turned by 20 degrees at most."""
    angle = np.radians(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image = nibabel.Nifti1Image(scan(1), LAS)
    image.set_sform(LAS, 4)
    image.set_qform(turn @ LAS, 1)
    image.header["pixdim"][4] = 2
    (tmp_path / "in").mkdir()
    nibabel.save(image, tmp_path / "in" / "a1.nii.gz")
    assert len(ingest(tmp_path / "in", tmp_path / "store")) == 1
