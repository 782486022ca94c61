"""Is a run in MNI space: names, field of view, oblique axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.brain_grid import resampled_grid
from neuromamba.data.ingest.nifti import NiftiRun
from neuromamba.data.ingest.space import (
    covered_share,
    field_of_view,
    oblique_angle,
    space_kind,
    space_of_run,
)
from tests.helpers.scans import LAS, SHAPE, save, scan

# Shape, voxel size and origin (centre of the first voxel, mm; RAS) of grids in use.
MNI_GRIDS = {
    "FSL 2 mm": ((91, 109, 91), 2.0, (-90, -126, -72)),
    "2009cAsym 2 mm": ((97, 115, 97), 2.0, (-96, -132, -78)),
    "2009cAsym 1 mm": ((193, 229, 193), 1.0, (-96, -132, -78)),
    "SPM 2 mm": ((79, 95, 79), 2.0, (-78, -112, -70)),
    "SPM 3 mm": ((53, 63, 46), 3.0, (-78, -112, -50)),
    "SPM 12 2 mm": ((91, 109, 91), 2.0, (-90, -126, -72)),
    "HCP 1.6 mm": ((113, 136, 113), 1.6, (-90, -126, -72)),
}
NATIVE_GRIDS = {
    "3 mm isocentred": ((64, 64, 36), 3.4, (-107.1, -107.1, -59.5)),
    "UKB 2.4 mm": ((88, 88, 64), 2.4, (-104.4, -88.0, -60.0)),
    "no origin": ((91, 109, 91), 2.0, (0, 0, 0)),
    "1 mm voxels of an image of 2 mm": ((91, 109, 91), 1.0, (-45, -63, -36)),
}


def affine_of(mm: float, origin: tuple[float, ...]) -> np.ndarray:
    affine = np.diag([mm, mm, mm, 1.0])
    affine[:3, 3] = origin
    return affine


def run_on(folder: Path, shape: tuple[int, int, int], affine: np.ndarray, code: int) -> NiftiRun:
    path = folder / "a.nii"
    save(path, np.zeros((*shape, 1), np.int8), affine, code=code)
    return NiftiRun(path)


@pytest.mark.parametrize("grid", MNI_GRIDS)
@pytest.mark.parametrize("flip", [False, True])
def test_mni_grids_pass(tmp_path: Path, grid: str, flip: bool) -> None:
    shape, mm, origin = MNI_GRIDS[grid]
    affine = affine_of(mm, origin)
    if flip:
        affine[0] = -mm, 0, 0, origin[0] + mm * (shape[0] - 1)
    run = run_on(tmp_path, shape, affine, code=1)
    assert space_of_run(run, "", "") == ("MNI152", "field of view", [])


@pytest.mark.parametrize("grid", NATIVE_GRIDS)
def test_native_grids_do_not(tmp_path: Path, grid: str) -> None:
    shape, mm, origin = NATIVE_GRIDS[grid]
    run = run_on(tmp_path, shape, affine_of(mm, origin), code=1)
    with pytest.raises(UserInputError, match=r"not in MNI space by its header.*docs/preproc"):
        space_of_run(run, "", "")
    assert space_of_run(run, "", "native")[0] == "native"
    assert space_of_run(run, "T1w", "T1w")[0] == "native"


@pytest.mark.parametrize(
    ("origin", "shape", "said", "unsaid"),
    [
        ((-96, -144, -90), (97, 109, 109), "mm) has its centre at (0, -36, 18) mm", "holds"),
        ((-50, -126, -72), (51, 109, 91), "holds 7", "centre"),
        ((-90, 0, -72), (91, 109, 91), "brain, expected 85% or more and has its centre", "None"),
    ],
)
def test_only_what_is_wrong_is_told(
    tmp_path: Path,
    origin: tuple[float, float, float],
    shape: tuple[int, int, int],
    said: str,
    unsaid: str,
) -> None:
    """And not "holds 91% of the MNI brain, expected 85%" where the centre lies elsewhere."""
    run = run_on(tmp_path, shape, affine_of(2, origin), code=1)
    with pytest.raises(UserInputError) as found:
        space_of_run(run, "", "")
    assert said in str(found.value) and unsaid not in str(found.value)


def test_names(tmp_path: Path) -> None:
    run = run_on(tmp_path, SHAPE, LAS, code=4)
    assert space_of_run(run, "", "") == ("MNI152", "header", [])
    assert space_of_run(run, "MNI152NLin6Asym", "")[:2] == ("MNI152NLin6Asym", "name")
    assert space_of_run(run, "", "MNI152NLin6Asym")[:2] == ("MNI152NLin6Asym", "name")
    assert space_of_run(run, "OASIS30ANTs", "OASIS30ANTs")[0] == "OASIS30ANTs"
    for told, wanted, message in (
        ("T1w", "", "in native space, expected MNI"),
        ("OASIS30ANTs", "", "in the space OASIS30ANTs, expected MNI"),
        ("MNI152NLin6Asym", "MNI152NLin2009cAsym", "expected --space MNI152NLin2009cAsym"),
        ("MNI152NLin6Asym", "native", "expected --space native"),
        ("", "OASIS30ANTs", "its name tells no space"),
    ):
        with pytest.raises(UserInputError, match=message):
            space_of_run(run, told, wanted)
    with pytest.raises(UserInputError, match="Warp it so"):
        space_of_run(run, "native", "", "Warp it so.")


def test_a_name_alone_is_not_believed(tmp_path: Path) -> None:
    run = run_on(tmp_path, (91, 109, 91), affine_of(2.0, (0, 0, 0)), code=4)
    with pytest.raises(UserInputError, match=r"the name says MNI152NLin6Asym, but .* the affine"):
        space_of_run(run, "MNI152NLin6Asym", "")
    with pytest.raises(UserInputError, match="the header says MNI152, but"):
        space_of_run(run, "", "")


def test_no_space_in_the_header(tmp_path: Path) -> None:
    run = run_on(tmp_path, SHAPE, LAS, code=0)
    with pytest.raises(UserInputError, match="neither qform nor sform is set"):
        space_of_run(run, "MNI152NLin6Asym", "")
    _, _, notes = space_of_run(run, "", "native")
    assert notes == ["neither qform nor sform is set: the orientation is a guess (LAS)"]


def tilted(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ LAS


def test_oblique_axes(tmp_path: Path) -> None:
    assert oblique_angle(LAS) == 0
    assert oblique_angle(tilted(5)) == pytest.approx(5)
    run = run_on(tmp_path, SHAPE, tilted(2), code=4)
    assert space_of_run(run, "", "")[2] == ["oblique by 2.0 degrees, kept"]
    run = run_on(tmp_path, SHAPE, tilted(5), code=4)
    with pytest.raises(UserInputError, match=r"tilted by 5.0 degrees.*--resample MM"):
        space_of_run(run, "", "")
    _, _, notes = space_of_run(run, "", "", resampled=True)
    assert notes == ["oblique by 5.0 degrees, resampled to straight axes"]
    assert space_of_run(run, "", "native")[2] == ["oblique by 5.0 degrees, kept"]


def test_the_grid_of_an_oblique_run_is_straight_and_holds_it() -> None:
    shape, affine = resampled_grid(SHAPE, tilted(5), 8.0)
    assert np.array_equal(affine[:3, :3], np.diag([-8.0, 8, 8]))
    old, new = field_of_view(SHAPE, tilted(5)), field_of_view(shape, affine)
    assert (new[0] <= old[0] + 1e-6).all() and (new[1] >= old[1] - 8).all()
    assert (new[1] - new[0] >= old[1] - old[0] - 1e-6).all()


def test_boxes() -> None:
    box = field_of_view((2, 3, 4), np.diag([-2.0, 3, 4, 1]))
    assert box.tolist() == [[-3, -1.5, -2], [1, 7.5, 14]]
    assert covered_share(np.array([[-100.0] * 3, [100.0] * 3])) == pytest.approx(172 / 178)
    assert covered_share(np.array([[200.0] * 3, [300.0] * 3])) == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MNI152NLin6Asym", "mni"),
        ("MNIInfant:cohort-1", "mni"),
        ("T1w", "native"),
        ("fsnative", "native"),
        ("Talairach", "other"),
        ("", ""),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert space_kind(name) == kind


def test_scans_of_the_tests_are_in_mni_space(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", scan(), code=1)
    assert space_of_run(NiftiRun(tmp_path / "a.nii"), "", "")[1] == "field of view"
