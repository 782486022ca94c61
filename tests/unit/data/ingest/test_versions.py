"""Which output of a scan is taken, and what is passed over with which reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.ingest.layouts import Found, find_runs
from neuromamba.data.ingest.sources import Choice

SPACE = "space-MNI152NLin6Asym"


def found_in(folder: Path, *names: str, choice: Choice | None = None) -> Found:
    """The layout sees names only, so the files may be empty."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return find_runs(folder, choice=choice or Choice())


def taken(found: Found) -> list[str]:
    return [Path(source.name).name for source in found.sources if not source.error]


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        # [04] Smoothed outputs won by sort order; residual and interpolated became three runs.
        (["res-2_desc-denoisedSmoothed", "res-2_desc-denoised"], "res-2_desc-denoised"),
        (["desc-interpolated", "desc-residual", "desc-residual_smooth"], "desc-residual"),
        (["desc-interpolated", "desc-residual_smooth"], "desc-interpolated"),
        (["desc-denoised", "desc-preproc"], "desc-preproc"),
        (["desc-optcomDenoised", "desc-optcom"], "desc-optcom"),
        (["desc-aaa", "desc-smoothed"], "desc-smoothed"),
    ],
)
def test_one_output_of_a_run(tmp_path: Path, outputs: list[str], expected: str) -> None:
    names = [f"sub-01/func/sub-01_task-rest_{SPACE}_{output}_bold.nii.gz" for output in outputs]
    found = found_in(tmp_path, *names)
    assert taken(found) == [f"sub-01_task-rest_{SPACE}_{expected}_bold.nii.gz"]
    reasons = {image.why for image in found.passed_over}
    assert len(found.passed_over) == len(outputs) - 1
    assert all(f"{expected}_bold.nii.gz is used" in why for why in reasons)


def test_desc_chooses(tmp_path: Path) -> None:
    names = [
        f"sub-0{i}/func/sub-0{i}_task-rest_{SPACE}_desc-{output}_bold.nii.gz"
        for i in (1, 2)
        for output in ("denoised", "denoisedSmoothed")
    ]
    found = found_in(tmp_path, *names, choice=Choice(desc="denoisedSmoothed"))
    assert all("denoisedSmoothed" in name for name in taken(found))
    assert {image.why for image in found.passed_over} == {"not --desc denoisedSmoothed"}
    with pytest.raises(UserInputError, match=r"--desc: no run of desc-other .* denoised, denois"):
        find_runs(tmp_path, choice=Choice(desc="other"))


def test_echoes_are_one_scan(tmp_path: Path) -> None:
    """[04] Three echoes became three runs."""
    names = [f"sub-01/func/sub-01_task-rest_echo-{i}_{SPACE}_bold.nii.gz" for i in (1, 2, 3)]
    found = found_in(tmp_path, *names)
    assert taken(found) == [f"sub-01_task-rest_echo-2_{SPACE}_bold.nii.gz"]
    assert "combine the echoes" in found.sources[0].notes[0]
    assert len(found.passed_over) == 2
    combined = found_in(tmp_path, names[0].replace("echo-1_", ""))
    assert taken(combined) == [f"sub-01_task-rest_{SPACE}_bold.nii.gz"]


@pytest.mark.parametrize(
    ("versions", "best"),
    [
        (["", "_hp0_clean_rclean_tclean"], "_hp0_clean_rclean_tclean"),  # [03] The raw run won.
        (["_hp2000_clean", "_hp2000_clean_rclean"], "_hp2000_clean_rclean"),
        (["_hp0_clean_tclean", "_hp0_clean", "_hp0"], "_hp0_clean_tclean"),
        (["_hp2000", ""], ""),
    ],
)
def test_version_of_an_hcp_run(tmp_path: Path, versions: list[str], best: str) -> None:
    folder = "100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR"
    found = found_in(tmp_path, *(f"{folder}{version}.nii.gz" for version in versions))
    assert taken(found) == [f"rfMRI_REST1_LR{best}.nii.gz"]


def test_tr_of_the_protocol_only_where_it_is_known(tmp_path: Path) -> None:
    """Young adults at 3 T have 0.72 s; Ageing, Development (0.8 s) and 7 T (1 s) have AP and PA."""
    names = ("rfMRI_REST1_LR", "rfMRI_REST1_AP", "rfMRI_REST2_7T_PA")
    found = found_in(tmp_path, *(f"1/MNINonLinear/Results/{n}/{n}.nii.gz" for n in names))
    by_run = {Path(source.name).stem.removesuffix(".nii"): source for source in found.sources}
    assert {name: by_run[name].layout_tr for name in names} == dict(
        zip(names, (0.72, None, None), strict=True)
    )


def test_athena_and_spm_versions_of_a_scan(tmp_path: Path) -> None:
    scan = "da0010001_session_1_rest_1.nii.gz"
    found = found_in(
        tmp_path / "a",
        *(f"0010001/{steps}{scan}" for steps in ("snwmr", "sfnwmr")),
        f"0010001/wmean_mr{scan}",
    )
    assert taken(found) == [f"snwmr{scan}"]
    assert found.sources[0].subject == "0010001"
    spm = found_in(
        tmp_path / "b", *(f"p1/{steps}func01.nii" for steps in ("", "ra", "wra", "swra"))
    )
    assert taken(spm) == ["wrafunc01.nii"]
    assert spm.sources[0].subject == "func01"
    apart = found_in(tmp_path / "c", "x/func01.nii", "x/func02.nii")
    assert len(taken(apart)) == 2


def test_the_folder_says_whose_a_generic_file_is(tmp_path: Path) -> None:
    found = found_in(tmp_path, *(f"Sub_00{i}/Filtered_4DVolume.nii" for i in range(3)))
    assert [source.subject for source in found.sources] == ["Sub_000", "Sub_001", "Sub_002"]
    assert not any(source.error for source in found.sources)


def test_other_formats_and_spellings_are_listed(tmp_path: Path) -> None:
    others = ("a.NII.GZ", "b.mgz", "c.nii.bz2", "d+tlrc.BRIK", "e.nii.xz")
    found = found_in(tmp_path, "good1.nii.gz", *others, "._good1.nii.gz", "~$good1.nii.gz")
    assert taken(found) == ["good1.nii.gz"]
    listed = {image.name: image.why for image in found.passed_over}
    assert set(listed) == set(others)
    assert "small letters" in listed["a.NII.GZ"]
    assert "convert it" in listed["b.mgz"]
