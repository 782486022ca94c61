"""Maps come back to the voxels of the file they came from, whatever its orientation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel import orientations

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.convert import ConversionOptions
from neuromamba.data.ingest.folder import convert_folder
from neuromamba.data.store.reader import RunFile, list_runs
from neuromamba.inference.source_space import exact_indices, to_source_image
from tests.helpers.scans import LAS, SHAPE, brain, save, scan

CROPPED = (6, 20, 10)  # the brain of SHAPE is 8 x 8 x 8 and more: cut on x, padded on y


def converted(folder: Path, image: nibabel.Nifti1Image, **options: Any) -> RunFile:
    """The run of an image, converted by itself."""
    path = folder / "nifti" / "sub-1_task-rest_bold.nii.gz"
    path.parent.mkdir(parents=True)
    nibabel.save(image, path)
    options = {"img_size": CROPPED, "mask": "nonzero"} | options
    outcomes = convert_folder(
        path.parent, folder / "store", ConversionOptions(**options), num_workers=1, report=len
    )
    assert [o.status for o in outcomes] == ["converted"], outcomes[0].message
    return RunFile(list_runs(folder / "store")[0])


def copies(tmp_path: Path) -> dict[str, nibabel.Nifti1Image]:
    """One scan in several orders of its axes: the same intensity at the same place in mm."""
    original = nibabel.load(save(tmp_path / "original.nii.gz", scan(frames=4)))
    now = orientations.io_orientation(original.affine)
    return {
        codes: original.as_reoriented(
            orientations.ornt_transform(now, orientations.axcodes2ornt(codes))
        )
        for codes in ("LAS", "RAS", "SPR")
    }


def placed(image: nibabel.Nifti1Image) -> tuple[np.ndarray, np.ndarray]:
    """Positions in mm [N, 3] and values [N] of the voxels that are not 0, in one fixed order."""
    volume = np.asarray(image.dataobj)
    index = np.argwhere(volume != 0)
    mm = index @ image.affine[:3, :3].T + image.affine[:3, 3]
    order = np.lexsort(mm.T)
    return mm[order], volume[tuple(index.T)][order]


def test_maps_of_reoriented_copies_agree_in_mm(tmp_path: Path) -> None:
    maps = {}
    for codes, image in copies(tmp_path).items():
        run = converted(tmp_path / codes, image)
        values = np.random.default_rng(0).normal(size=run.vox.size).astype(np.float32)
        back = to_source_image(values, run.vox, run.header)
        assert back.shape == image.shape[:3]
        np.testing.assert_allclose(back.affine, image.affine)
        np.testing.assert_allclose(back.get_qform(), image.affine, atol=1e-4)
        assert nibabel.aff2axcodes(back.affine) == tuple(codes)
        assert int(back.header["sform_code"]) == 4
        maps[codes] = placed(back)
        assert len(maps[codes][1]) == run.vox.size < np.count_nonzero(brain())
    for mm, values in maps.values():
        np.testing.assert_array_equal(mm, maps["LAS"][0])
        np.testing.assert_array_equal(values, maps["LAS"][1])


def test_intensities_return_to_their_own_voxels(tmp_path: Path) -> None:
    for codes, image in copies(tmp_path).items():
        run = converted(tmp_path / codes, image)
        header = run.header
        frames = run.read(range(header.n_frames)) * header.scale + header.offset
        back = to_source_image(frames, run.vox, header, outside=-1)
        got, source = np.asarray(back.dataobj), np.asarray(image.dataobj)
        assert got.shape == source.shape
        assert back.header.get_zooms()[3] == 2.0
        kept = got[..., 0] != -1
        np.testing.assert_allclose(got[kept], source[kept], atol=header.scale)
        assert np.count_nonzero(kept) == run.vox.size
        assert (got[~kept] == -1).all()


def turned(degrees: float) -> np.ndarray:
    """LAS turned about the z axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return turn @ LAS


@pytest.mark.parametrize("affine", [LAS, turned(10)], ids=["straight", "oblique"])
def test_a_resampled_run_is_interpolated_back(tmp_path: Path, affine: np.ndarray) -> None:
    image = nibabel.load(save(tmp_path / "one.nii.gz", scan(frames=4), affine))
    run = converted(tmp_path / "one", image, resample=8.0, img_size=(30, 32, 30))
    header = run.header
    assert exact_indices(run.vox, header) is None
    index = np.stack(np.unravel_index(run.vox, header.grid), axis=1)
    mm = index @ np.array(header.affine)[:3, :3].T + np.array(header.affine)[:3, 3]
    slope = np.array([0.5, -0.25, 1.0])
    back = to_source_image(mm @ slope + 500, run.vox, header)
    assert back.shape == SHAPE
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)
    at, values = placed(back)
    wrong = np.abs(values - (at @ slope + 500))
    # Linear in mm, so exact inside; at the edge some neighbours are missing, but none counts as 0.
    assert np.median(wrong) < 1e-3
    assert wrong.max() < 8 * np.abs(slope).sum()
    overlap = np.count_nonzero((np.asarray(back.dataobj) != 0) & brain())
    assert overlap > 0.95 * np.count_nonzero(brain())
    labels = (run.vox % 3 + 1).astype(np.float32)
    nearest = to_source_image(labels, run.vox, header, interpolation="nearest")
    assert set(np.unique(nearest.dataobj)) == {0, 1, 2, 3}


def test_wrong_affines_and_shapes_are_refused(tmp_path: Path) -> None:
    run = converted(tmp_path, nibabel.load(save(tmp_path / "one.nii.gz", scan(frames=4))))
    small = dataclasses.replace(run.header, source_shape=(5, 5, 5))
    with pytest.raises(UserInputError, match=r"sub-1.*outside the source of 5 x 5 x 5"):
        to_source_image(np.ones(run.vox.size), run.vox, small)
    with pytest.raises(ValueError, match="do not belong"):
        to_source_image(np.ones(3), run.vox, run.header)
    with pytest.raises(ValueError, match="cubic"):
        to_source_image(np.ones(run.vox.size), run.vox, run.header, interpolation="cubic")
