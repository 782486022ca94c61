"""Which scans files and folders stand for, and what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.inference.region_series import find_series
from neuromamba.inference.sources import find_scans, source_of_file
from tests.helpers.scans import save, save_mask, scan, write_json

NAME = "sub-01_ses-2_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"


def test_a_bids_file_brings_mask_and_json(tmp_path: Path) -> None:
    folder = tmp_path / "sub-01" / "ses-2" / "func"
    path = save(folder / NAME, scan(frames=4))
    mask = save_mask(folder / NAME.replace("preproc_bold", "brain_mask"))
    write_json(tmp_path / "dataset_description.json", {})
    inherited = write_json(tmp_path / "task-rest_bold.json", {"RepetitionTime": 1.5})
    source = source_of_file(path)
    assert (source.subject, source.session, source.task) == ("sub-01", "2", "rest")
    assert source.space == "MNI152NLin6Asym"
    assert source.mask == mask
    assert source.sidecar is not None
    assert source.sidecar.samefile(inherited)


def test_files_of_one_name_in_two_folders_are_two_scans(tmp_path: Path) -> None:
    paths = [save(tmp_path / name / "run1.nii.gz", scan(frames=4)) for name in ("a", "b")]
    scans, _ = find_scans([*paths, paths[0]])
    assert [one.name for one in scans] == ["run1", "run1_2"]  # the third is the first again


def test_a_single_place_is_a_list_of_one(tmp_path: Path) -> None:
    """And not of the letters of its name, whose first, "/", is every file of the machine."""
    path = save(tmp_path / "run1.nii.gz", scan(frames=4))
    for find in (find_scans, find_series):
        for place in (path, str(path), tmp_path, str(tmp_path)):
            assert [one.path for one in find(place)[0]] == [path]


def test_a_folder_without_scans_is_named_as_it_was_given(tmp_path: Path) -> None:
    """Not by --input, a flag that predict does not have."""
    (tmp_path / "empty").mkdir()
    save_mask(tmp_path / "masks" / "sub-01_desc-brain_mask.nii.gz")
    for folder in ("empty", "masks"):
        with pytest.raises(UserInputError, match=r"^BOLD: "):
            find_scans(tmp_path / folder)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        # No entity is made of a name that has none.
        ("f64_1e8_x.nii.gz", "f64_1e8_x"),
        ("100307_rfMRI_REST1_LR.nii.gz", "100307_rfMRI_REST1_LR"),
        ("7T_alpha.nii", "7T_alpha"),
        ("alpha_run2.nii.gz", "alpha_run2"),
        ("A01_bold.nii.gz", "A01_bold"),
        # Of BIDS the entities that tell runs apart; of a generic name the folder's.
        (f"sub-01/{NAME}", "sub-01_ses-2_task-rest"),
        ("Sub_000/Filtered_4DVolume.nii", "Sub_000"),
    ],
)
@pytest.mark.parametrize("whole", [False, True], ids=["file", "folder"])
def test_names_of_scans(tmp_path: Path, file: str, name: str, whole: bool) -> None:
    path = save(tmp_path / file, scan(frames=4))
    (one,), _ = find_scans([tmp_path if whole else path])
    assert one.name == (name if whole or "Filtered" not in file else "Filtered_4DVolume")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.nii.gz", "no such file"),
        ("table.csv", "expected a 4D NIfTI file"),
        ("run_Atlas.dtseries.nii", "CIFTI"),
        ("mesh.func.gii", "surface"),
    ],
)
def test_what_is_no_volume_has_a_reason(tmp_path: Path, name: str, reason: str) -> None:
    if "gone" not in name:
        (tmp_path / name).write_text("x")
    (one,), _ = find_scans([tmp_path / name])
    assert reason in one.error
    assert str(tmp_path / name) in one.error


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"no \*.nii"):
        find_scans([tmp_path])
