"""Which files of a folder are runs, by their names alone: the files here are empty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.ingest.layouts import Found, find_runs
from neuromamba.data.ingest.sources import Choice, Source, refuse_shared_names

MNI = "space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz"


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def taken(found: Found) -> dict[str, str]:
    """Output -> file."""
    return {source.output: source.name for source in found.sources}


def why(found: Found, name: str) -> str:
    return next(image.why for image in found.passed_over if image.name.endswith(name))


# fMRIPrep -------------------------------------------------------------------------------------


@pytest.fixture
def fmriprep(shared_data: Path, tmp_path: Path) -> Path:
    """The real listing of two subjects with three runs each."""
    listing = (shared_data / "layouts" / "fmriprep_ds000001_listing.txt").read_text().split()
    return tree(tmp_path, *listing) / "ds000001-fmriprep"


def test_fmriprep(fmriprep: Path) -> None:
    found = find_runs(fmriprep)
    task = "task-balloonanalogrisktask"
    assert found.layout == "bids"
    assert [source.output for source in found.sources] == [
        f"sub-{subject}_{task}_run-{run}.h5" for subject in (10, 11) for run in (1, 2, 3)
    ]
    for source in found.sources:
        assert source.name.endswith(MNI)
        assert source.error == ""
        assert source.space == "MNI152NLin2009cAsym"
        assert source.mask is not None
        assert source.mask.name == source.path.name.replace("preproc_bold", "brain_mask")
        assert source.sidecar == source.path.with_name(source.path.name[:-7] + ".json")
    assert DATASETS["Dummy"].key(found.sources[0].subject) == "10"
    # Everything else is named with a reason; nothing is there twice.
    volumes = {p.relative_to(fmriprep).as_posix() for p in fmriprep.rglob("*.nii.gz")}
    surfaces = {p.relative_to(fmriprep).as_posix() for p in fmriprep.rglob("*.gii")}
    passed = [image.name for image in found.passed_over]
    assert len(passed) == len(set(passed))
    assert set(passed) | {s.name for s in found.sources} == volumes | surfaces
    assert "preproc_bold.nii.gz is used" in why(
        found, "run-1_space-MNI152NLin6Asym_desc-smoothAROMAnonaggr_bold.nii.gz"
    )
    assert why(found, "fsaverage5_hemi-L_bold.func.gii") == "surface or CIFTI"
    assert why(found, "boldref.nii.gz") == "mask, reference or anatomy"


def test_another_space_of_fmriprep(fmriprep: Path) -> None:
    found = find_runs(fmriprep, choice=Choice("MNI152NLin6Asym"))
    assert len(found.sources) == 6
    assert all("smoothAROMAnonaggr" in source.name for source in found.sources)
    assert {source.mask for source in found.sources} == {None}
    assert found.sources[0].notes == ("desc-smoothAROMAnonaggr: the best output there is",)


def test_versions_of_a_run(tmp_path: Path) -> None:
    """Native, several templates and resolutions: one output for one run."""
    stem = "sub-01/func/sub-01_task-rest"
    tree(
        tmp_path,
        f"{stem}_desc-preproc_bold.nii.gz",
        f"{stem}_space-T1w_desc-preproc_bold.nii.gz",
        f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz",
        f"{stem}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        f"{stem}_space-MNI152NLin6Asym_res-1_desc-preproc_bold.nii.gz",
        f"{stem}_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz",
        f"{stem}_space-MNIPediatricAsym_cohort-2_res-2_desc-preproc_bold.nii.gz",
        f"{stem}_space-fsLR_den-91k_bold.dtseries.nii",
    )

    def chosen(wanted: str = "") -> str:
        (source,) = find_runs(tmp_path, choice=Choice(wanted)).sources
        return source.name.removeprefix(stem + "_").removesuffix("_bold.nii.gz")

    assert chosen() == "space-MNI152NLin6Asym_res-2_desc-preproc"
    assert chosen("MNI152NLin2009cAsym") == "space-MNI152NLin2009cAsym_desc-preproc"
    assert chosen("mni152nlin2009casym") == "space-MNI152NLin2009cAsym_desc-preproc"
    assert chosen("T1w") == "space-T1w_desc-preproc"
    assert chosen("native") in ("space-T1w_desc-preproc", "desc-preproc")
    assert chosen("MNIPediatricAsym:cohort-2").startswith("space-MNIPediatricAsym_cohort-2")


def test_the_commonest_template_is_taken_for_all(tmp_path: Path) -> None:
    func = [f"sub-0{i}/func/sub-0{i}_task-x_space-{{}}_desc-preproc_bold.nii.gz" for i in (1, 2, 3)]
    names = [name.format("MNI152NLin2009cAsym") for name in func]
    tree(tmp_path, *names, func[0].format("MNI152NLin6Asym"))
    assert {s.space for s in find_runs(tmp_path).sources} == {"MNI152NLin2009cAsym"}


def test_entities_that_tell_runs_apart(tmp_path: Path) -> None:
    end = "space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    start = "sub-01/ses-b/func/sub-01_ses-b_task-rest"
    tree(
        tmp_path,
        f"{start}_acq-mb4_dir-AP_run-1_{end}",
        f"{start}_acq-mb4_dir-PA_run-1_{end}",
        f"{start}_acq-mb8_dir-PA_run-1_{end}",
        f"{start}_rec-norm_run-2_{end}",
        f"{start}_echo-1_run-3_{end}",
        f"{start}_echo-2_run-3_{end}",
        f"{start}_run-4_{end}",
        f"{start}_echo-1_run-4_{end}",
        f"{start}_part-phase_run-4_{end}",
    )
    found = find_runs(tmp_path)
    prefix = "sub-01_ses-b_task-rest_run"
    assert set(taken(found)) == {
        f"{prefix}-1-acq-mb4-dir-AP.h5",
        f"{prefix}-1-acq-mb4-dir-PA.h5",
        f"{prefix}-1-acq-mb8-dir-PA.h5",
        f"{prefix}-2-rec-norm.h5",
        f"{prefix}-3-echo-2.h5",
        f"{prefix}-4.h5",
    }
    assert all(source.error == "" for source in found.sources)
    assert why(found, f"echo-1_run-4_{end}") == "an echo; the combined run is used"
    assert why(found, f"echo-1_run-3_{end}") == "no combined run; echo-2, the middle one, is used"
    assert why(found, f"part-phase_run-4_{end}") == "phase image"


def test_raw_data_beside_derivatives(tmp_path: Path) -> None:
    name = "sub-01/func/sub-01_task-rest"
    tree(
        tmp_path,
        f"{name}_bold.nii.gz",
        "task-rest_bold.json",
        f"derivatives/fmriprep/{name}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
    )
    (source,) = find_runs(tmp_path).sources
    assert source.space == "MNI152NLin6Asym"


def test_sidecars_are_inherited(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-01/func/sub-01_task-nback_bold.nii.gz",
        "task-rest_bold.json",
        "task-other_bold.json",
        "sub-01/sub-01_task-nback_bold.json",
        "sub-01/func/sub-01_task-nback_events.json",
    )
    found = {s.task: s.sidecar for s in find_runs(tmp_path).sources}
    assert found["rest"] == tmp_path / "task-rest_bold.json"
    assert found["nback"] == tmp_path / "sub-01" / "sub-01_task-nback_bold.json"


def test_old_names_of_fmriprep(tmp_path: Path) -> None:
    stem = "sub-01_task-rest_bold_space-MNI152NLin2009cAsym"
    tree(tmp_path, f"{stem}_preproc.nii.gz", f"{stem}_brainmask.nii.gz")
    (source,) = find_runs(tmp_path, "bids").sources
    assert source.output == "sub-01_task-rest.h5"
    assert source.space == "MNI152NLin2009cAsym"
    assert source.mask == tmp_path / f"{stem}_brainmask.nii.gz"


def test_one_name_in_two_folders_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, "a/sub-01_bold.nii.gz", "b/sub-01_bold.nii.gz")
    errors = [source.error for source in find_runs(tmp_path).sources]
    assert len(errors) == 2
    assert "by its name the run sub-01, and so is b/sub-01_bold.nii.gz" in errors[0]


# HCP ------------------------------------------------------------------------------------------


def hcp_run(subject: str, run: str, *files: str) -> list[str]:
    return [f"{subject}/MNINonLinear/Results/{run}/{file}" for file in files]


def test_hcp(tmp_path: Path) -> None:
    rest, task = "rfMRI_REST1_LR", "tfMRI_WM_RL"
    tree(
        tmp_path,
        *hcp_run(
            "100206",
            rest,
            f"{rest}_hp2000_clean.nii.gz",
            f"{rest}.nii.gz",
            f"{rest}_SBRef.nii.gz",
            f"{rest}_Atlas_MSMAll_hp2000_clean.dtseries.nii",
            "brainmask_fs.2.nii.gz",
            "PhaseOne_gdc_dc.nii.gz",
            "RibbonVolumeToSurfaceMapping/goodvoxels.nii.gz",
        ),
        *hcp_run("100206", "rfMRI_REST2_RL", "rfMRI_REST2_RL_hp2000_clean.nii.gz"),
        *hcp_run("100206", task, f"{task}.nii.gz", f"{task}_hp200_s2_level1.feat/mask.nii.gz"),
        *hcp_run("100307", rest, f"{rest}.nii.gz"),
        *hcp_run("100307", "tfMRI_MOVIE1_7T_AP", "tfMRI_MOVIE1_7T_AP.nii.gz"),
        *hcp_run("100307", "rfMRI_REST2_LR", "rfMRI_REST2_LR_SBRef.nii.gz"),
        "100206/MNINonLinear/T1w_restore.2.nii.gz",
        "100206/unprocessed/3T/rfMRI_REST1_LR/100206_3T_rfMRI_REST1_LR.nii.gz",
    )
    found = find_runs(tmp_path)
    assert found.layout == "hcp"
    by_output = {source.output: source for source in found.sources}
    assert set(by_output) == {
        "100206_task-REST1_run-LR.h5",
        "100206_task-REST2_run-RL.h5",
        "100206_task-WM_run-RL.h5",
        "100307_task-REST1_run-LR.h5",
        "100307_task-MOVIE1-7T_run-AP.h5",
        "100307_task-REST2_run-LR.h5",
    }
    first = by_output["100206_task-REST1_run-LR.h5"]
    assert first.name.endswith("REST1_LR_hp2000_clean.nii.gz")
    assert first.mask == first.path.with_name("brainmask_fs.2.nii.gz")
    assert (first.space, first.layout_tr) == ("MNI152NLin6Asym", 0.72)
    assert DATASETS["S1200"].key(first.subject) == "100206"
    assert by_output["100206_task-WM_run-RL.h5"].mask is None
    assert by_output["100307_task-MOVIE1-7T_run-AP.h5"].layout_tr is None
    (note,) = by_output["100307_task-REST1_run-LR.h5"].notes
    assert note == "this version is '', most others are '_hp2000_clean'"
    error = by_output["100307_task-REST2_run-LR.h5"].error
    assert "no rfMRI_REST2_LR_hp2000_clean.nii.gz or rfMRI_REST2_LR.nii.gz in it" in error
    assert "_hp2000_clean is used" in why(found, "/rfMRI_REST1_LR/rfMRI_REST1_LR.nii.gz")
    assert "no run" in why(found, "100206_3T_rfMRI_REST1_LR.nii.gz")


def test_one_subject_of_hcp(tmp_path: Path) -> None:
    tree(tmp_path / "all", *hcp_run("100206", "tfMRI_WM_RL", "tfMRI_WM_RL.nii.gz"))
    for folder in ("all", "all/100206", "all/100206/MNINonLinear"):
        (source,) = find_runs(tmp_path / folder).sources
        assert source.output == "100206_task-WM_run-RL.h5"


# UK Biobank -----------------------------------------------------------------------------------


def test_ukb(tmp_path: Path) -> None:
    ica = "fMRI/rfMRI.ica"
    tree(
        tmp_path,
        f"1000011_20227_2_0/{ica}/filtered_func_data_clean.nii.gz",
        f"1000011_20227_2_0/{ica}/mask.nii.gz",
        f"1000011_20227_2_0/{ica}/reg/example_func2standard_warp.nii.gz",
        f"1000011_20227_3_0/{ica}/filtered_func_data_clean.nii.gz",
        f"1000011_20227_3_0/{ica}/filtered_func_data_clean_MNI152.nii.gz",
        f"1000011_20227_3_0/{ica}/mask_MNI152.nii.gz",
        "1000011_20227_2_0/fMRI/rfMRI_SBREF.nii.gz",
    )
    found = find_runs(tmp_path)
    assert found.layout == "ukb"
    native, warped = found.sources
    assert (native.output, warped.output) == (
        "1000011_ses-2_task-rest.h5",
        "1000011_ses-3_task-rest.h5",
    )
    key = DATASETS["UKB"].key
    assert key(native.subject) == key("1000011_20227_2_0") == key("1000011")
    assert (native.space, warped.space) == ("native", "MNI152NLin6Asym")
    folder = tmp_path / "1000011_20227_2_0" / ica
    assert (
        f"applywarp --ref=$FSLDIR/data/standard/MNI152_T1_2mm "
        f"--in={folder}/filtered_func_data_clean.nii.gz "
        f"--warp={folder}/reg/example_func2standard_warp.nii.gz "
        f"--out={folder}/filtered_func_data_clean_MNI152.nii.gz"
    ) in native.remedy
    assert warped.mask == warped.path.with_name("mask_MNI152.nii.gz")
    assert {source.layout_tr for source in found.sources} == {0.735}
    again = find_runs(tmp_path, choice=Choice("native")).sources
    assert {source.path.name for source in again} == {"filtered_func_data_clean.nii.gz"}
    assert again[0].mask == folder / "mask.nii.gz"


# ABCD -----------------------------------------------------------------------------------------


def test_abcd(tmp_path: Path) -> None:
    name = "sub-NDARINV003RTV85_ses-baselineYear1Arm1_task-rest_run-01"
    tree(
        tmp_path,
        f"sub-NDARINV003RTV85/ses-baselineYear1Arm1/func/{name}_space-MNI_bold.nii.gz",
        f"sub-NDARINV003RTV85/ses-baselineYear1Arm1/func/{name}_bold.dtseries.nii",
        "NDAR_INV005V6D2C_baseline_year_1_arm_1_rest_1.nii.gz",
        "NDAR_INV005V6D2C_2_year_follow_up_y_arm_1_rest_1.nii.gz",
        "NDARINV007W6H7B_rest.nii.gz",
    )
    found = find_runs(tmp_path)
    assert found.layout == "abcd"
    assert set(taken(found)) == {
        "sub-NDARINV003RTV85_ses-baselineYear1Arm1_task-rest_run-01.h5",
        "NDAR_INV005V6D2C_ses-baselineYear1Arm1_run-rest-1.h5",
        "NDAR_INV005V6D2C_ses-2YearFollowUpYArm1_run-rest-1.h5",
        "NDARINV007W6H7B_run-rest.h5",
    }
    keys = {DATASETS["ABCD"].key(source.subject) for source in found.sources}
    assert keys == {"NDARINV003RTV85", "NDARINV005V6D2C", "NDARINV007W6H7B"}


# Any folder, and mistakes -----------------------------------------------------------------------


def test_plain_names_of_one_subject(tmp_path: Path) -> None:
    tree(tmp_path, "sub-1_rest_a.nii", "sub-1_rest_b.nii", "sub-2_rest_a.nii", "x_mask.nii")
    found = find_runs(tmp_path)
    assert found.layout == "plain"
    assert set(taken(found)) == {"sub-1_run-rest-a.h5", "sub-1_run-rest-b.h5", "sub-2.h5"}
    assert [image.name for image in found.passed_over] == ["x_mask.nii"]


def test_hidden_files_and_links(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "a.nii", ".git/annex/b.nii.gz", "._a.nii", "deep/c.nii")
    tree(tmp_path / "elsewhere", "d.nii")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "deep" / "circle").symlink_to(root)
    assert [s.name for s in find_runs(root).sources] == ["a.nii", "deep/c.nii", "link/d.nii"]


@pytest.mark.parametrize(
    ("names", "layout", "message"),
    [
        (["a.txt"], "auto", r"no \*.nii or \*.nii.gz"),
        (["1_20227_2_0.zip"], "auto", "Unpack the 1 archive"),
        (["a_mask.nii"], "auto", "only masks"),
        (["sub-1_bold.nii"], "hcp", r"--layout hcp: no run .* \(it looks like --layout bids\)"),
        (["100206_rest.nii"], "ukb", r"--layout ukb: no run .* --layout plain"),
        (["a.nii"], "hpc", "Did you mean 'hcp'"),
    ],
)
def test_mistakes(tmp_path: Path, names: list[str], layout: str, message: str) -> None:
    tree(tmp_path, *names)
    with pytest.raises(UserInputError, match=message):
        find_runs(tmp_path, layout)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "good/a.nii", "shut/b.nii")
    original = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    good, shut = find_runs(tmp_path).sources
    assert good.error == ""
    assert "shut: the folder cannot be read (Permission denied)" in shut.error


@pytest.mark.parametrize("name", ["sub-a\nb", "sub-a\x1b[2Jb", "sub-" + "x" * 210, "sub-a\x7f"])
def test_names_that_a_store_cannot_hold(name: str, tmp_path: Path) -> None:
    """They are refused one by one, and the others are converted."""
    names = [name, "sub-01"]
    sources = refuse_shared_names(
        [
            Source(path=tmp_path / f"{i}.nii", name=f"{i}.nii", subject=n)
            for i, n in enumerate(names)
        ]
    )
    assert "cannot be in names of a store. Rename" in sources[0].error
    assert sources[1].error == ""
