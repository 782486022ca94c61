"""roi.py: the series of regions, where they belong, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuromamba.commands.regions_extract import main as roi
from neuromamba.commands.regions_extract import run
from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.extraction import Extraction, residual_dof
from neuromamba.data.regions.registry import details_of

FRAMES, SIDE, REGIONS, TR = 176, 12, 4, 2.0
AFFINE = np.diag([16.0, 16.0, 16.0, 1.0])
AFFINE[:3, 3] = (-88, -106, -70)


def labels() -> np.ndarray:
    """[X, Y, Z] four slabs along x, not symmetric: 1 on the subject's left."""
    volume = np.zeros((SIDE,) * 3, dtype=np.int16)
    for region, (first, last) in enumerate(((0, 2), (2, 5), (5, 9), (9, 12)), start=1):
        volume[first:last, 2:10, 2:10] = region
    return volume


def signals(subject: int) -> np.ndarray:
    """[N, T] what each region does."""
    rng = np.random.default_rng(subject)
    return rng.standard_normal((REGIONS, FRAMES)).cumsum(1) + 1000


def write_run(path: Path, values: np.ndarray, order: str = "RAS", **kwargs: object) -> None:
    """A run whose voxels have their region's signal, with its axes in any order."""
    volume = np.zeros((SIDE,) * 3 + (values.shape[1],), dtype=np.float32)
    for region in range(1, REGIONS + 1):
        volume[labels() == region] = values[region - 1]
    image = nib.Nifti1Image(volume, AFFINE)
    image.header.set_zooms((16.0, 16.0, 16.0, TR))
    image.header.set_xyzt_units("mm", "sec")
    axes = nib.orientations.axcodes2ornt(order)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(axes), path)


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """With a region that has no voxel."""
    path = tmp_path / "slabs.nii.gz"
    nib.save(nib.Nifti1Image(labels(), AFFINE), path)
    rows = ["index,name", *(f"{i},slab-{i}" for i in (1, 2, 7, 3, 4))]
    path.with_name("slabs.csv").write_text("\n".join(rows) + "\n")
    return path


def fmriprep_run(folder: Path, subject: str, values: np.ndarray, order: str = "RAS") -> Path:
    name = f"sub-{subject}_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    path = folder / f"sub-{subject}" / "func" / name
    write_run(path, values, order)
    return path


@pytest.mark.parametrize("suffix", [".pickle", ".npy"])
def test_regions_stay_where_they_are(tmp_path: Path, atlas: Path, suffix: str) -> None:
    """Runs in RAS and LAS voxel order give the same; the empty region keeps its column."""
    for subject, order in (("1", "RAS"), ("2", "LAS"), ("3", "PIR")):
        fmriprep_run(tmp_path / "in", subject, signals(int(subject)), order)
    table = tmp_path / "t.tsv"
    table.write_text("participant_id\tgroup\nsub-1\ta\nsub-2\tb\nsub-3\ta\n")
    output = tmp_path / f"out{suffix}"
    flags = f"--input {tmp_path / 'in'} --atlas {atlas} --output {output} --label_csv {table}"
    assert roi([*flags.split()]) == 0
    details = details_of("Own", str(output), "group", 50)
    cohort = load_cohort("Own", details, tmp_path, data_file=output)
    assert cohort.details.classes == ("a", "b") and cohort.rois == 5
    assert [scan.label for scan in cohort.scans] == [0, 1, 0]
    for scan, subject in zip(cohort.scans, (1, 2, 3), strict=True):
        np.testing.assert_allclose(scan.series[[0, 1, 3, 4]], signals(subject), rtol=1e-5)
        assert not scan.series[2].any()
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["region_ids"] == [1, 2, 7, 3, 4]
    assert record["runs"][0]["regions_without_signal"] == [7]
    assert record["runs"][0]["tr"] == TR and record["runs"][0]["residual_dof"] == FRAMES - 1
    assert "ROI time series" in (tmp_path / "out.html").read_text()


def write_confounds(run: Path, values: np.ndarray) -> None:
    """fMRIPrep's table: six motion columns (the first is given), tissue, a cosine."""
    rng = np.random.default_rng(9)
    names = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "csf", "white_matter"]
    table = pd.DataFrame({name: rng.standard_normal(FRAMES) for name in names})
    table["trans_x"] = values
    table["cosine00"] = np.cos(np.pi * (np.arange(FRAMES) + 0.5) / FRAMES)
    for name in list(table):
        if name.startswith("cosine"):
            continue
        derivative = table[name].diff()
        table[f"{name}_derivative1"] = derivative
        table[f"{name}_power2"] = table[name] ** 2
        table[f"{name}_derivative1_power2"] = derivative**2
    name = run.name.split("_space")[0] + "_desc-confounds_timeseries"
    table.to_csv(run.with_name(name + ".tsv"), sep="\t", index=False, na_rep="n/a")
    run.with_name(name + ".json").write_text("{}")


def test_confounds_are_taken_out(tmp_path: Path, atlas: Path) -> None:
    rng = np.random.default_rng(1)
    motion, own = rng.standard_normal(FRAMES), rng.standard_normal((REGIONS, FRAMES))
    run = fmriprep_run(tmp_path / "in", "1", own + 20 * motion + 1000)
    write_confounds(run, motion)
    flags = f"--input {tmp_path / 'in'} --atlas {atlas} --output {tmp_path / 'o.pickle'}"
    assert roi([*flags.split(), "--confounds", "basic"]) == 0
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["runs"][0]["confounds"] == 9
    assert record["runs"][0]["residual_dof"] == FRAMES - 9 - 1
    series = np.load(tmp_path / "o.pickle", allow_pickle=True)[0]["roiTimeseries"][[0, 1, 3, 4]]
    for one, other in zip(series, own, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.95
        assert abs(np.corrcoef(one, motion)[0, 1]) < 1e-3


def test_degrees_of_freedom() -> None:
    """SOURCES: 29 regressors, 0.01 to 0.1 Hz, T = 176 leave nothing."""
    band = Extraction(low_pass=0.1, high_pass=0.01)
    assert residual_dof(176, 29, 2.0, Extraction()) == 146
    assert residual_dof(176, 29, 2.0, band) == pytest.approx(176 * 0.09 / 0.25 - 30)
    assert residual_dof(176, 29, 0.72, band) < 0
    assert residual_dof(176, 0, 2.0, Extraction(low_pass=9.0)) == 175


BAD = [
    ("--output x.txt", "--output: got 'x.txt', expected a name in .pickle or .npy"),
    ("--atlas nothing.nii.gz", "--atlas: 'nothing.nii.gz' does not exist"),
    ("--atlas Schaefer", "--atlas: 'Schaefer' is no file and none of Schaefer400"),
    ("--low_pass 0", "--low_pass: got 0.0, expected a number above 0"),
    ("--low_pass 0.1 --high_pass 0.2", "--high_pass: got 0.2, expected less than"),
    ("--label_csv nothing.csv", "--label_csv: 'nothing.csv' does not exist"),
    ("--input nowhere", "--input"),
    ("--min_dof nan", "--min_dof: got nan, expected a number from 1 on"),
    ("--min_dof -5", "--min_dof: got -5, expected a number from 1 on"),
    ("--tr 2000", "--tr: got 2000, expected seconds from 0.05 to 30"),
    ("--output in.pickle", "--output: 'in.pickle' is a folder"),
    ("--output theirs.pickle", "--output: 'theirs.json' exists and was not written by this"),
    ("--label_csv twice.csv", "--label_csv: 'twice.csv' has the rows sub-1, 01, which are one"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_mistakes(
    tmp_path: Path, atlas: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.pickle").mkdir()
    (tmp_path / "theirs.json").write_text('{"mine": 1}')
    (tmp_path / "twice.csv").write_text("subject,sex\nsub-1,F\n01,M\n")
    fmriprep_run(tmp_path / "in", "1", signals(1))
    given = f"--input in --atlas {atlas} --output o.pickle"
    assert roi([*given.split(), *flags.split()]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "o.pickle").exists()
    assert (tmp_path / "theirs.json").read_text() == '{"mine": 1}'


LEFT_OUT = {
    "narrow band": ("--low_pass 0.02 --high_pass 0.01", "--min_dof: .* keeps 6 of 176"),
    "no confounds": ("--confounds basic", "--confounds basic: no usable table of confounds"),
    "above Nyquist": ("--low_pass 0.25", "--low_pass: got 0.25 Hz; a TR of 2 s .* below 0.25 Hz"),
    "TR typed wrongly": ("--high_pass 0.1 --tr 20", "--high_pass: got 0.1 Hz; a TR of 20 s"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_runs_that_are_left_out(
    tmp_path: Path, atlas: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fmriprep_run(tmp_path / "in", "1", signals(1))
    flags, message = LEFT_OUT[name]
    given = f"--input {tmp_path / 'in'} --atlas {atlas} --output {tmp_path / 'o.pickle'} {flags}"
    assert roi([*given.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "none of 1 runs can be used" in error


def test_a_damaged_run_is_left_out_and_the_others_stay(
    tmp_path: Path, atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fmriprep_run(tmp_path / "in", "1", signals(1))
    bad = fmriprep_run(tmp_path / "in", "2", signals(2))
    bad.write_bytes(bad.read_bytes()[:2000])
    outside = fmriprep_run(tmp_path / "in", "3", signals(3))
    moved = nib.load(outside)
    shifted = moved.affine.copy()
    shifted[0, 3] += 500
    nib.save(nib.Nifti1Image(np.asanyarray(moved.dataobj), shifted, moved.header), outside)
    given = f"--input {tmp_path / 'in'} --atlas {atlas} --output {tmp_path / 'o.pickle'}"
    assert roi([*given.split()]) == 1
    error = capsys.readouterr().err
    assert "truncated or corrupt" in error and "holds only 0% of the MNI brain" in error
    record = json.loads((tmp_path / "o.json").read_text())
    assert len(record["runs"]) == 1 and len(record["left_out"]) == 2


def test_a_subject_without_a_label(tmp_path: Path, atlas: Path) -> None:
    fmriprep_run(tmp_path / "in", "1", signals(1))
    (tmp_path / "t.csv").write_text("subject,group\n2,a\n")
    given = f"--input {tmp_path / 'in'} --atlas {atlas} --output {tmp_path / 'o.pickle'}"
    with pytest.raises(UserInputError, match=r"^--label_csv: .*t.csv. has no row of sub-1"):
        run([*given.split(), "--label_csv", str(tmp_path / "t.csv")])


def changed(run: Path, what: str) -> None:
    """Damage a run in one way."""
    image = nib.load(run)
    values = np.asanyarray(image.dataobj).copy()
    header, affine = image.header.copy(), image.affine.copy()
    if what in ("NaN", "inf"):
        values[5, 5, 5, 3] = float(what)
    elif what == "NaN frame":
        values[..., 3] = np.nan
    elif what == "half outside":
        affine[1, 3] += 100
    elif what == "tilted":
        turn, angle = np.eye(4), np.radians(10)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        affine = turn @ affine
    found = nib.Nifti1Image(values, affine, header)
    found.set_sform(affine, 0 if what == "no affine" else 2)
    mirrored = affine @ np.diag([-1.0, 1, 1, 1])
    if what == "mirrored":
        found.set_qform(mirrored, 2)
    else:
        found.header["qform_code"] = 0
    nib.save(found, run)


REFUSED = {
    "NaN": "NaN or infinite values",
    "inf": "NaN or infinite values",
    "NaN frame": "NaN or infinite values in 1 of 176 frames",
    "half outside": "the affine is wrong",
    "no affine": "neither qform nor sform is set",
    "mirrored": "one mirrors the other",
}


@pytest.mark.parametrize("what", REFUSED)
def test_runs_that_the_converter_would_refuse(
    tmp_path: Path, atlas: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(fmriprep_run(tmp_path / "in", "1", signals(1)), what)
    given = f"--input {tmp_path / 'in'} --atlas {atlas} --output {tmp_path / 'o.pickle'}"
    assert roi([*given.split()]) == 2
    assert REFUSED[what] in capsys.readouterr().err
    assert not (tmp_path / "o.pickle").exists()


def test_spaces(tmp_path: Path, atlas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in native space is refused by its name, and taken with --space native."""
    path = tmp_path / "in" / "sub-1_task-rest_space-T1w_desc-preproc_bold.nii.gz"
    write_run(path, signals(1))
    given = f"--input {tmp_path / 'in'} --atlas {atlas} --output {tmp_path / 'o.pickle'}"
    assert roi([*given.split()]) == 2
    assert "in native space, expected MNI" in capsys.readouterr().err
    assert roi([*given.split(), "--space", "native"]) == 0


def test_a_tilted_run_is_taken_and_told_of(tmp_path: Path, atlas: Path) -> None:
    """Regions are found through the affine: a run and an atlas tilted alike give the same."""
    changed(fmriprep_run(tmp_path / "in", "1", signals(1)), "tilted")
    slabs = nib.load(atlas)
    nib.save(nib.Nifti1Image(slabs.dataobj, nib.load(next(tmp_path.rglob("sub-1*.gz"))).affine),
             atlas)  # fmt: skip
    given = f"--input {tmp_path / 'in'} --atlas {atlas} --output {tmp_path / 'o.pickle'}"
    assert roi([*given.split()]) == 0
    series = np.load(tmp_path / "o.pickle", allow_pickle=True)[0]["roiTimeseries"]
    np.testing.assert_allclose(series[[0, 1, 3, 4]], signals(1), rtol=1e-5)
    assert "oblique by 10.0 degrees" in (tmp_path / "o.html").read_text()


def test_a_gap_in_the_confounds_costs_one_run(
    tmp_path: Path, atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    for subject in ("1", "2"):
        run = fmriprep_run(tmp_path / "in", subject, signals(int(subject)))
        write_confounds(run, rng.standard_normal(FRAMES))
    table = next((tmp_path / "in").rglob("sub-2*.tsv"))
    lines = table.read_text().splitlines()
    lines[60] = "n/a" + lines[60][lines[60].index("\t") :]
    table.write_text("\n".join(lines))
    flags = f"--input {tmp_path / 'in'} --atlas {atlas} --output {tmp_path / 'o.pickle'}"
    assert roi([*flags.split(), "--confounds", "basic"]) == 1
    assert "lacks values in trans_x after the first frame" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "o.json").read_text())["runs"]) == 1


def test_tables_of_subjects(
    tmp_path: Path, atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Leading zeros do not count, and the run's own name says what its task is."""
    fmriprep_run(tmp_path / "in", "007", signals(1))
    (tmp_path / "t.csv").write_text("subject,task,session,sex\n7,nback,2,F\n")
    given = f"--input {tmp_path / 'in'} --atlas {atlas} --output {tmp_path / 'o.npy'}"
    words = [*given.split(), "--label_csv", str(tmp_path / "t.csv")]
    assert roi(words) == 0
    assert "note: --label_csv: session, task is as the run's name says" in capsys.readouterr().err
    pheno = np.load(tmp_path / "o.npy", allow_pickle=True)[0]["pheno"]
    assert pheno == {"subjectId": "sub-007", "session": "", "task": "rest", "sex": "F"}
    assert roi(words) == 0  # its own files may be written again


def test_a_doubtful_tr_is_told_of(
    tmp_path: Path, atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fmriprep_run(tmp_path / "in", "1", signals(1))
    run.with_name(run.name.replace(".nii.gz", ".json")).write_text('{"RepetitionTime": 0.8}')
    given = f"--input {tmp_path / 'in'} --atlas {atlas} --output {tmp_path / 'o.pickle'}"
    assert roi([*given.split()]) == 0
    assert "note: TR of the header is 2 s, of the sidecar 0.8 s" in capsys.readouterr().err
