"""Public collections of region series: which files are scans, whose, with which labels and TR."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.collections.importing import (
    Imported,
    ImportOptions,
    import_collection,
)
from neuromamba.data.regions.collections.rates import RateFlags
from neuromamba.data.regions.collections.record import record_of, summary_of
from tests.helpers.region_collections import (
    LABELS,
    REGIONS,
    people,
    series,
    write_1d,
    write_abide_npz,
    write_athena,
    write_nilearn_abide,
    write_npz,
)


def imported(source: Path, **flags: Any) -> Imported:
    return import_collection(ImportOptions(source=source, **flags))


def values(found: Imported, key: str) -> list[Any]:
    return [one[key] for one in found.pheno]


def refused(source: Path, match: str, **flags: Any) -> str:
    with pytest.raises(UserInputError, match=match) as error:
        imported(source, **flags)
    assert "\n" not in str(error.value)
    return str(error.value)


def passed_over(found: Imported) -> dict[str, str]:
    return {one.name: one.why for one in found.collection.passed_over}


# ------------------------------------------------------------------------------ PCP, nilearn


@pytest.mark.parametrize("inside", ["", "cpac", "cpac/nofilt_noglobal"])
def test_the_folder_that_nilearn_leaves(tmp_path: Path, inside: str) -> None:
    """From any of its folders: the table is found below, or above."""
    folder = write_nilearn_abide(tmp_path)
    found = imported(folder / inside)
    assert (found.collection.format, found.collection.atlas) == ("pcp", "cc200")
    assert found.labels.cohort.name == "ABIDE"
    assert (len(found.scans), found.regions) == (23, LABELS)
    persons = {one.file: one for one in people()}
    for scan, pheno in zip(found.scans, found.pheno, strict=True):
        person = persons[pheno["scan"]]
        assert scan.series.dtype == np.float32
        assert scan.series.shape[0] == REGIONS
        assert pheno["subjectId"] == pheno["FILE_ID"] == person.file
        assert (pheno["site"], pheno["age"], pheno["motion"]) == (
            person.site,
            person.age,
            person.fd,
        )
        assert pheno["sex"] == {"1": "male", "2": "female"}[person.sex]
        assert pheno["diagnosis"] == {"1": "patient", "2": "control"}[person.dx]
        assert (pheno["SEX"], pheno["DX_GROUP"]) == (person.sex, person.dx)
        assert pheno["FIQ"] in ("", "101")
        assert pheno["tr"] == (1.5 if person.file.startswith("CMU_b") else 2.0)
    # The last person's file is not there, and two rows say that they have none.
    assert set(found.labels.without_scan) == {people()[-1].file, "50924", "50925"}
    assert found.left_out == {}
    assert values(found, "notes").count("moved, a little") == 1


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    folder = write_nilearn_abide(tmp_path)
    write_1d(folder / "cpac/nofilt_noglobal/NYU_0050001_rois_cc200.1D", series(77, 50))
    found = imported(folder)
    (scan,) = [one for one in found.scans if one.found.name == "NYU_0050001"]
    np.testing.assert_allclose(scan.series, series(77, 50).T, rtol=1e-6)


def test_several_atlases_and_several_pipelines(tmp_path: Path) -> None:
    folder = write_nilearn_abide(tmp_path)
    write_1d(folder / "cpac/nofilt_noglobal/NYU_0050001_rois_ho.1D", series(1, 30, 3), "123")
    refused(folder, r"--atlas: .*cc200 \(23 files\), ho \(1 files\)\. Name one of them")
    refused(folder, "--atlas: got 'aal'", atlas="aal")
    assert len(imported(folder, atlas="CC200").scans) == 23
    assert imported(folder, atlas="ho").regions == ("1", "2", "3")
    write_1d(folder / "cpac/filt_global/NYU_0050001_rois_cc200.1D", series(1))
    refused(
        folder,
        "has 1 scans in several folders .cpac/filt_global, cpac/nofilt_noglobal., such as NYU_00",
        atlas="cc200",
    )
    assert len(imported(folder / "cpac/filt_global").scans) == 1


def test_a_scan_without_a_row_is_listed(tmp_path: Path) -> None:
    folder = write_nilearn_abide(tmp_path)
    write_1d(folder / "cpac/nofilt_noglobal/NYU_0059999_rois_cc200.1D", series(99))
    found = imported(folder)
    assert found.left_out == {"NYU_0059999": "no row in the table of labels"}
    assert "NYU_0059999" not in values(found, "scan")


def test_damaged_files_have_one_line_each(tmp_path: Path) -> None:
    folder = write_nilearn_abide(tmp_path)
    place = folder / "cpac/nofilt_noglobal"
    names = sorted(path.name for path in place.iterdir())
    damages: list[tuple[str | bytes, str]] = [
        (b"\xff\xfe\x00binary", "is no text file"),
        ("", "holds no numbers"),
        ("#1 #2\n1 2\n3 x\n", "line 3 has 'x'"),
        ("\n".join(" ".join(["1"] * REGIONS) for _ in range(9)), "no region changes over time"),
        ("\n".join(" ".join(["1", "2"]) for _ in range(9)), "has 2 regions and 9 frames"),
        ("\n".join(" ".join(["1"] * REGIONS) for _ in range(3)), "3 frames of 12 regions"),
        ("\n".join(" ".join([str(i), "1e39"] * 6) for i in range(9)), "values that are not finite"),
    ]
    for name, (content, _) in zip(names, damages, strict=False):
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    os.remove(place / names[10])
    (place / names[10]).symlink_to(tmp_path / "nowhere")  # not fetched
    (place / names[11]).unlink()
    (place / names[11]).mkdir()
    found = imported(folder)
    assert len(found.scans) == 23 - len(damages) - 2
    for name, (_, why) in zip(names, damages, strict=False):
        line = found.left_out[name.removesuffix("_rois_cc200.1D")]
        assert why in line and "\n" not in line
    assert "cannot be read" in found.left_out[names[10].removesuffix("_rois_cc200.1D")]


# ------------------------------------------------------------------------------ ADHD-200


def test_one_version_of_each_scan_of_athena(tmp_path: Path) -> None:
    found = imported(write_athena(tmp_path / "adhd"))
    assert found.collection.format == "athena"
    assert found.labels.cohort.name == "ADHD200"
    assert (len(found.scans), len(set(values(found, "subjectId")))) == (7, 6)
    assert found.pheno[0]["scan"] == "0010001_session_1_rest_1"
    assert values(found, "run")[:2] == ["1", "2"]
    assert found.regions == LABELS
    np.testing.assert_allclose(found.scans[0].series, series(110).T, rtol=1e-6)  # not filtered
    passed = passed_over(found)
    assert len(passed) == 7
    assert all("/sfnwmrda" in name for name in passed)
    assert passed["NYU/0010001/sfnwmrda0010001_session_1_rest_1_cc200_TCs.1D"] == (
        "another version of the scan; snwmrda0010001_session_1_rest_1_cc200_TCs.1D is used"
    )
    assert values(found, "sex") == [
        "female",
        *("female", "male", "female", "male", "female", "male"),
    ]
    assert values(found, "diagnosis")[:3] == ["control", "control", "patient"]
    assert values(found, "tr") == [2.0] * 7
    assert set(values(found, "Full4 IQ")) == {""}


def test_a_mixture_of_versions_is_pointed_out(tmp_path: Path) -> None:
    folder = write_athena(tmp_path / "adhd")
    next(folder.rglob("snwmrda*")).unlink()
    found = imported(folder)
    assert len(found.scans) == 7
    (note,) = [note for note in found.notes if "several versions" in note]
    assert "snwmrda (6), sfnwmrda (1)" in note


# ------------------------------------------------------------------------------ npz


def test_concatenated_scans_with_ids(tmp_path: Path) -> None:
    found = imported(write_abide_npz(tmp_path))
    assert (found.collection.format, found.collection.atlas) == ("npz", "cc200")
    assert values(found, "scan") == [one.file for one in people()]
    assert found.regions == LABELS
    assert set(values(found, "tr")) == {1.5, 2.0}
    assert found.rates.source == "column TR_s"
    assert set(values(found, "FIQ")) == {""}
    other = imported(tmp_path)  # its folder
    assert values(other, "scan") == values(found, "scan")


def test_concatenated_scans_in_the_order_of_the_table(tmp_path: Path) -> None:
    scans = [series(i, 30 + i) for i in range(4)]
    np.savez(
        tmp_path / "cni.npz",
        aal=np.concatenate(scans),
        cc200=np.concatenate([one[:, :7] for one in scans]),
        length=[len(one) for one in scans],
    )
    (tmp_path / "people.csv").write_text(
        "Subj,Sex,Age,DX\ns1,F,8,A\ns2,M,9,C\ns3,F,7,A\ns4,M,8,C\n"
    )
    refused(tmp_path, r"aal \(12 regions\), cc200 \(7 regions\)\. Name one with --atlas")
    found = imported(tmp_path / "cni.npz", atlas="cc200")
    assert (len(found.regions), found.named) == (7, False)
    assert values(found, "subjectId") == ["s1", "s2", "s3", "s4"]
    assert values(found, "sex") == ["female", "male", "female", "male"]
    assert [scan.series.shape[1] for scan in found.scans] == [30, 31, 32, 33]
    assert values(found, "tr") == [None] * 4
    (tmp_path / "people.csv").write_text("Subj,DX\ns1,A\ns2,C\n")
    refused(tmp_path, "has 2 rows, and the scans have no names and are 4", atlas="aal")


def test_sessions_of_one_subject(tmp_path: Path) -> None:
    path = write_npz(
        tmp_path / "stages.npz",
        [series(i) for i in range(4)],
        subject=["sub-03", "sub-03", "sub-04", "sub-05"],
        session=["ses-1", "ses-2", "ses-1", "ses-1"],
    )
    (tmp_path / "labels.csv").write_text("subject,group\n3,drug\n4,placebo\n5,\n")
    found = imported(path, rates=RateFlags(2.0))
    assert values(found, "scan")[:2] == ["sub-03_ses-1", "sub-03_ses-2"]
    assert values(found, "subjectId") == ["sub-03", "sub-03", "sub-04", "sub-05"]
    assert values(found, "group") == ["drug", "drug", "placebo", ""]
    assert values(found, "tr") == [2.0] * 4
    assert values(found, "session") == ["ses-1", "ses-2", "ses-1", "ses-1"]


def test_rows_of_sessions(tmp_path: Path) -> None:
    path = write_npz(
        tmp_path / "a.npz", [series(0), series(1)], subject=["1", "1"], session=["ses-01", "2"]
    )
    (tmp_path / "t.csv").write_text("participant_id,session,score\nsub-01,1,low\nsub-01,2,high\n")
    assert values(imported(path), "score") == ["low", "high"]
    (tmp_path / "t.csv").write_text("participant_id,score\nsub-01,low\nsub-01,high\n")
    refused(path, "has 2 different rows of 1_ses-01. Keep one row per subject")


BAD_NPZ: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no length": (lambda p: np.savez(p, ts=series(0)), "lacks the array 'length'"),
    "a sum": (
        lambda p: np.savez(p, ts=series(0), length=[10, 20]),
        "has 2 scans with 30 frames in 'length', and 'ts' has 40",
    ),
    "negative": (lambda p: np.savez(p, ts=series(0), length=[50, -10]), "a scan of -10 frames"),
    "fractions": (lambda p: np.savez(p, ts=series(0), length=[40.0]), "expected a whole number"),
    "no series": (lambda p: np.savez(p, length=[40], x=np.ones(4)), "has no array of series"),
    "objects": (
        lambda p: np.savez(p, ts=np.array([{}], dtype=object), length=[1]),
        "is damaged, or no .npz file of numpy",
    ),
    "text": (lambda p: p.write_text("hello"), "is damaged, or no .npz file of numpy"),
    "cut": (lambda p: (write_npz(p, [series(0)]), os.truncate(p, 900)), "is damaged"),
    "twice": (
        lambda p: write_npz(p, [series(0), series(1)], subject=["a", "a"]),
        "has several scans called a",
    ),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_bad_npz(tmp_path: Path, name: str) -> None:
    write, message = BAD_NPZ[name]
    write(tmp_path / "a.npz")
    refused(tmp_path / "a.npz", message)


# ------------------------------------------------------------------------------ a file each


def write_tables(folder: Path, names: list[str], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        matrix = series(i, **changes)
        if path.suffix == ".npy":
            np.save(path, matrix.T)
        elif path.suffix == ".parquet":
            import pandas as pd

            pd.DataFrame(matrix, columns=list(LABELS)).to_parquet(path)
        else:
            separator = "," if path.suffix == ".csv" else "\t"
            np.savetxt(path, matrix, delimiter=separator)
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".1D", ".npy", ".parquet"])
def test_a_file_for_each_scan(tmp_path: Path, suffix: str) -> None:
    names = [f"sub-{i:02d}_ses-{s}_task-rest_timeseries{suffix}" for i in (1, 2) for s in "ab"]
    folder = write_tables(tmp_path / "x", names)
    (folder / "participants.tsv").write_text("participant_id\tgroup\tsex\n1\tA\tF\n2\tB\tM\n")
    found = imported(folder)
    assert found.collection.format == "files"
    assert values(found, "subjectId") == ["sub-01", "sub-01", "sub-02", "sub-02"]
    assert values(found, "session") == ["a", "b", "a", "b"]
    assert values(found, "group") == ["A", "A", "B", "B"]
    assert values(found, "sex") == ["female", "female", "male", "male"]
    for i, scan in enumerate(found.scans):
        np.testing.assert_allclose(scan.series, series(i).T, rtol=1e-6)


def test_the_folder_says_whose_a_generic_name_is(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["sub-1/timeseries.csv", "sub-2/timeseries.csv"])
    assert values(imported(folder), "subjectId") == ["sub-1", "sub-2"]


def test_tables_of_xcpd_and_fmriprep(tmp_path: Path) -> None:
    stem = "sub-{}_task-rest_space-MNI152NLin2009cAsym"
    names = [f"{stem.format(i)}_seg-Tian_stat-mean_timeseries.tsv" for i in (1, 2)]
    names += [f"{stem.format(1)}_seg-Tian_stat-coverage_bold.tsv"]
    names += [f"{stem.format(1)}_seg-Tian_stat-pearsoncorrelation_relmat.tsv"]
    names += ["sub-1_task-rest_desc-confounds_timeseries.tsv", "sub-1_task-rest_motion.tsv"]
    names += ["sub-1_task-rest_desc-confounds_regressors.tsv", "sub-1_task-rest_events.tsv"]
    folder = write_tables(tmp_path / "x", names)
    found = imported(folder)
    assert (found.collection.atlas, len(found.scans)) == ("Tian", 2)
    assert len(passed_over(found)) == 6
    write_tables(folder, [f"{stem.format(1)}_seg-Gordon_stat-mean_timeseries.tsv"])
    refused(folder, r"--atlas: .*Gordon \(1 files\), Tian \(2 files\)")
    assert len(imported(folder, atlas="Tian").scans) == 2


def test_versions_of_a_run_are_one_scan(tmp_path: Path) -> None:
    names = [f"sub-1_task-rest_desc-{desc}_timeseries.csv" for desc in ("denoised", "interpolated")]
    found = imported(write_tables(tmp_path / "x", names))
    assert [scan.found.source for scan in found.scans] == [names[0]]
    assert passed_over(found) == {names[1]: f"another version of the scan; {names[0]} is used"}


def test_regions_by_name(tmp_path: Path) -> None:
    """Another order, a region that is left out, one that is n/a, and another atlas."""
    folder = tmp_path / "x"
    folder.mkdir()
    names = [f"R{label}" for label in LABELS]

    def write(name: str, columns: list[str], matrix: Any) -> None:
        lines = [",".join(columns), *(",".join(map(str, row)) for row in matrix)]
        (folder / name).write_text("\n".join(lines) + "\n")

    write("s1.csv", names, series(1))
    write("s2.csv", names[::-1], series(2)[:, ::-1])
    write("s3.csv", names[1:], series(3)[:, 1:])
    absent = series(4).astype(object)
    absent[:, 2] = "n/a"
    write("s4.csv", names, absent)
    write("s5.csv", [f"other{i}" for i in range(REGIONS)], series(5))
    some = series(6).astype(object)
    some[3, 2] = "n/a"
    write("s6.csv", names, some)
    found = imported(folder)
    assert found.regions == tuple(names)
    np.testing.assert_allclose(found.scans[1].series, series(2).T, rtol=1e-6)
    assert [names[i] for i in np.flatnonzero(found.scans[2].constant)] == [names[0]]
    np.testing.assert_allclose(found.scans[2].series[1:], series(3).T[1:], rtol=1e-6)
    assert [names[i] for i in np.flatnonzero(found.scans[3].constant)] == [names[2]]
    assert set(found.left_out) == {"s5", "s6"}
    assert "has 0 of the usual 12 regions" in found.left_out["s5"]
    assert f"not finite in 1 regions ({names[2]})" in found.left_out["s6"]


def test_axes_by_smoothness_and_by_size(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", [f"s{i}.csv" for i in range(4)])
    for path in folder.iterdir():
        np.savetxt(path, np.loadtxt(path, delimiter=",").T, delimiter=",")
    refused(
        folder, "look like regions_by_time .*smooth in time. Give --orientation regions_by_time"
    )
    found = imported(folder, orientation="regions_by_time")
    np.testing.assert_allclose(found.scans[0].series, series(0).T, rtol=1e-6)
    rough = np.random.default_rng(0).standard_normal
    for i, path in enumerate(sorted(folder.iterdir())):
        np.savetxt(path, rough((REGIONS, 30 + i)), delimiter=",")
    refused(folder, "have 12 along the axis that would be time, and 30 to 33 along that of the reg")
    assert len(imported(folder, orientation="regions_by_time").regions) == REGIONS


def test_names_of_frames_do_not_hide_that_a_table_is_turned(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for i in range(4):
        head = ",".join(f"TR_{t}" for t in range(40 + i))
        np.savetxt(
            folder / f"s{i}.csv", series(i, 40 + i).T, delimiter=",", header=head, comments=""
        )
    refused(folder, "look like regions_by_time .*Give --orientation regions_by_time")
    found = imported(folder, orientation="regions_by_time")
    assert (len(found.regions), found.named) == (REGIONS, False)
    np.testing.assert_allclose(found.scans[3].series, series(3, 43).T, rtol=1e-6)


def test_npy_is_regions_by_time(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for i in range(4):
        np.save(folder / f"s{i}.npy", series(i))  # as nilearn's maskers give it
    refused(folder, "look like time_by_regions .*Give --orientation time_by_regions")
    found = imported(folder, orientation="time_by_regions")
    np.testing.assert_allclose(found.scans[0].series, series(0).T, rtol=1e-6)


def test_correlations_are_no_series(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["s1.csv", "s2.csv"])
    np.savetxt(folder / "s2.csv", np.corrcoef(series(0).T), delimiter=",")
    found = imported(folder)
    assert "a symmetric matrix of 12 x 12: correlations" in found.left_out["s2"]


def test_images_are_not_imported(tmp_path: Path) -> None:
    """What fetch_development_fmri leaves: images and tables of confounds."""
    folder = tmp_path / "development_fmri"
    folder.mkdir()
    stem = "sub-pixar001_task-pixar"
    (folder / f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz").write_bytes(b"")
    np.savetxt(folder / f"{stem}_desc-confounds_regressors.tsv", series(0), delimiter="\t")
    (folder / "participants.tsv").write_text("participant_id\tAge\nsub-pixar001\t4\n")
    message = refused(folder, "has 1 images .*neuromamba regions extract --input")
    assert f"--label_csv {folder / 'participants.tsv'}" in message
    refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no series of regions. Expected Preprocessed Connectomes")


# ------------------------------------------------------------------------------ labels


def test_two_spellings_of_a_subject_are_one(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["sub-01_task-a.csv", "sub-1_task-b.csv"])
    assert len(set(values(imported(folder), "subjectId"))) == 1


def test_tables_complete_and_contradict_each_other(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["s1.csv", "s2.csv"])
    one, other = tmp_path / "a.csv", tmp_path / "b.csv"
    one.write_text("subject,dx,age\ns1,A,\ns2,B,9\n")
    other.write_text("id;age;site\ns1;8;X\ns2;9.0;Y\ns9;1;Z\n")
    found = imported(folder, labels=(one, other))
    assert (values(found, "dx"), values(found, "age")) == (["A", "B"], ["8", "9"])
    assert values(found, "site") == ["X", "Y"]
    assert found.labels.without_scan == ("s9",)
    other.write_text("id,age\ns1,8\ns2,10\n")
    refused(folder, "differ in 'age' of one scan: '10' and '9'", labels=(one, other))
    other.write_text("id,age\nx1,8\n")
    refused(folder, "--labels: .*has a row of none of the 2 scans .s1, s2.", labels=(other,))
    refused(folder, "--labels: 'nowhere.csv' does not exist", labels=(Path("nowhere.csv"),))
    assert "notes" not in imported(folder, labels=(one,)).pheno[0]


def test_missing_codes_and_columns(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", [f"s{i}.csv" for i in range(5)])
    table = tmp_path / "t.csv"
    table.write_text(
        "who,IQ,years,scanner\ns0,0,9,A\ns1,100,9,B\ns2,101,10,A\ns3,-999,11,B\ns4,98,7,A\n"
    )
    flags = {"labels": (table,), "subject_column": "who"}
    found = imported(folder, **flags)
    assert any(
        "'IQ' holds -999, probably a code" in line
        for line in summary_of(found, tmp_path / "o.pickle")
    )
    found = imported(
        folder, **flags, missing_codes=("-999", "IQ=0"), columns=("age=years", "site=scanner")
    )
    assert values(found, "IQ") == ["", "100", "101", "", "98"]
    assert (values(found, "age"), values(found, "site")) == (
        ["9", "9", "10", "11", "7"],
        [*"ABABA"],
    )
    assert record_of(found)["missing"] == {"IQ": 2}
    refused(folder, "--columns: got 'x'", **flags, columns=("x",))
    refused(folder, "--columns: unknown name 'height'", **flags, columns=("height=IQ",))
    refused(folder, "--columns: site, column: unknown name 'IR'", **flags, columns=("site=IR",))
    refused(folder, "--missing_codes, column: unknown name 'IR'", **flags, missing_codes=("IR=1",))
    refused(folder, "--subject_column: ", labels=(table,), subject_column="whom")
    refused(folder, "--dataset_name: unknown name 'X'", dataset_name="X")
    found = imported(folder, **flags, columns=("site=",))
    assert "site" not in found.pheno[0]


def test_the_cohort_can_be_named(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["s1.csv", "s2.csv"])
    table = tmp_path / "t.csv"
    table.write_text("EID,Sex\ns1,0\ns2,1\n")
    found = imported(folder, labels=(table,), dataset_name="HBN")
    assert values(found, "sex") == ["male", "female"]  # HBN's codes
    assert values(imported(folder, labels=(table,), subject_column="EID"), "sex") == ["0", "1"]


# ------------------------------------------------------------------------------ TR


def test_repetition_times(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["s1.csv", "s2.csv"])
    (folder / "participants.csv").write_text(
        "id,site,tr_used,RepetitionTime\ns1,A,2,\ns2,B,3,1.5\n"
    )
    assert values(imported(folder), "tr") == [None, 1.5]
    assert values(imported(folder, rates=RateFlags(2.5)), "tr") == [2.5, 2.5]
    assert values(imported(folder, rates=RateFlags(column="tr_used")), "tr") == [2.0, 3.0]
    table = tmp_path / "tr.csv"
    table.write_text("Site,TR\nA,2000\nC,720\n")
    found = imported(folder, rates=RateFlags(table=table))
    assert values(found, "tr") == [2.0, None]
    assert any("taken as milliseconds" in note for note in found.notes)
    assert any("--tr_table has no TR of b (site)" in note for note in found.notes)


@pytest.mark.parametrize(
    ("flags", "table", "message"),
    [
        (RateFlags(0.001), "", "--tr: got 0.001, expected seconds"),
        (RateFlags(2.0, "x"), "", "--tr: contradicts --tr_column"),
        (RateFlags(column="x"), "", "--tr_column: unknown name 'x'"),
        (RateFlags(column="site"), "", "--tr_column: 'site' holds 'A' of s1, 'B' of s2"),
        (RateFlags(column="age"), "", "--tr_column: 'age': got 50, expected seconds"),
        (RateFlags(table=Path("nowhere")), "", "--tr_table: 'nowhere' does not exist"),
        (RateFlags(table=Path("tr.csv")), "a,b\n1,2\n", "expected 'TR' and one that the labels"),
        (RateFlags(table=Path("tr.csv")), "site,TR\nA,x\n", "has 'x' as TR of A"),
        (RateFlags(table=Path("tr.csv")), "site,TR\nA,1\nA,2\n", "has two TRs of A"),
    ],
)
def test_wrong_repetition_times(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: RateFlags,
    table: str,
    message: str,
) -> None:
    folder = write_tables(tmp_path / "x", ["s1.csv", "s2.csv"])
    (folder / "participants.csv").write_text("id,site,age\ns1,A,50\ns2,B,9\n")
    monkeypatch.chdir(tmp_path)
    if table:
        Path("tr.csv").write_text(table)
    refused(folder, message, rates=flags)


# ------------------------------------------------------------------------------ constant, copies


def constant(folder: Path, flat: dict[int, list[int]]) -> Path:
    """Six scans; ``flat``: scan -> regions without signal."""
    folder.mkdir()
    for i in range(6):
        matrix = series(i)
        matrix[:, flat.get(i, [])] = 1000.0
        write_1d(folder / f"NYU_{50001 + i:07d}_rois_cc200.1D", matrix)
    return folder


def test_constant_regions(tmp_path: Path) -> None:
    folder = constant(tmp_path / "x", {0: [3], 1: [3, 5], 2: [3]})
    kept = imported(folder)
    assert len(kept.regions) == REGIONS
    lines = "\n".join(summary_of(kept, tmp_path / "o.pickle"))
    assert f"2 regions in 3 scans, up to 2 of 12; regions (scans): {LABELS[3]} (3), " in lines
    runs = record_of(kept)["runs"]
    assert runs[1]["regions_without_signal"] == [LABELS[3], LABELS[5]]
    dropped = imported(folder, constant_regions="drop", constant_share=0.3)
    assert dropped.regions == tuple(name for name in LABELS if name != LABELS[3])
    assert dropped.dropped_regions == {LABELS[3]: 0.5}
    np.testing.assert_array_equal(dropped.scans[1].series[3], kept.scans[1].series[4])
    assert dropped.scans[1].constant.tolist() == [i == 4 for i in range(REGIONS - 1)]
    assert len(imported(folder, constant_regions="drop", constant_share=0).regions) == REGIONS - 2
    message = refused(folder, "--constant_regions refuse: 2 regions", constant_regions="refuse")
    assert LABELS[3] in message and "NYU_0050001" in message
    refused(folder, "--constant_share: got 1", constant_share=1.0)


def test_copies(tmp_path: Path) -> None:
    folder = constant(tmp_path / "x", {})
    write_1d(folder / "NYU_0050009_rois_cc200.1D", 3 * series(2) - 500)
    table = tmp_path / "t.csv"
    rows = [f"NYU_{50001 + i:07d},{'A' if i < 3 else 'B'},1" for i in (*range(6), 8)]
    table.write_text("\n".join(["FILE_ID,dx,one", *rows]) + "\n")
    message = refused(folder, "NYU_0050003 and NYU_0050009", labels=(table,))
    assert "--drop_duplicates" in message
    found = imported(folder, labels=(table,), drop_duplicates=True)
    assert len(found.scans) == 6
    assert found.left_out == {"NYU_0050009": "a copy of NYU_0050003"}
    (copy,) = record_of(found)["duplicates"]
    assert copy == {
        "kept": "NYU_0050003",
        "copy": "NYU_0050009",
        "dropped": True,
        "exact": False,
        "same_subject": False,
        "columns_that_differ": ["dx"],
    }
    assert any(
        line.startswith("copy: NYU_0050009 has the values of NYU_0050003 and is dropped; ")
        for line in summary_of(found, tmp_path / "o.pickle")
    )


def test_copies_of_one_subject_are_kept_and_named(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["sub-1_run-1.csv", "sub-1_run-2.csv", "sub-2.csv"])
    np.savetxt(folder / "sub-1_run-2.csv", series(0), delimiter=",")
    found = imported(folder)
    assert len(found.scans) == 3
    lines = summary_of(found, tmp_path / "o.pickle")
    assert any("copy: sub-1_2 has the values of sub-1_1 and is kept" in line for line in lines)
    assert len(imported(folder, drop_duplicates=True).scans) == 2


# ------------------------------------------------------------------------------ what is no scan


def test_series_of_one_scan_from_two_atlases(tmp_path: Path) -> None:
    """The last part of a BIDS name says which; neither is taken without a word."""
    folder = write_tables(
        tmp_path / "x", [f"sub-{i}_{a}.csv" for i in (1, 2) for a in ("ho", "ez")]
    )
    refused(folder, r"--atlas: .*differ in a part of their name: (ho|ez) \(2 files\), ")
    found = imported(folder, atlas="ho")
    assert [scan.found.source for scan in found.scans] == ["sub-1_ho.csv", "sub-2_ho.csv"]
    assert set(passed_over(found)) == {"sub-1_ez.csv", "sub-2_ez.csv"}


def test_one_file_name_in_two_folders(tmp_path: Path) -> None:
    """S01 of one site need not be S01 of another."""
    folder = write_tables(tmp_path / "x", ["siteA/S01.csv", "siteB/S01.csv"])
    refused(folder, "has 1 scans in several folders .siteA, siteB., such as S01.csv")


def test_a_table_of_subjects_under_any_name(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["s1.npy", "s2.npy"])
    (folder / "clinic.csv").write_text("subject,dx\ns1,A\ns2,B\n")
    assert values(imported(folder), "dx") == ["A", "B"]
    for name in ("s1.npy", "s2.npy"):
        (folder / name).unlink()
    refused(folder, "has tables of subjects .clinic.csv. and no series of scans")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["s1.npy", "s2.npy"])
    os.mkfifo(folder / "s3.csv")
    assert "s3.csv: is no file" in imported(folder).left_out["s3"]


def test_the_output_is_no_scan(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["s1.npy", "s2.npy"])
    np.save(folder / "out.npy", series(0))
    assert len(imported(folder, output=folder / "out.npy").scans) == 2


def test_two_subjects_who_seem_to_be_one(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["S01.csv", "S1.csv"])
    refused(folder, "SOURCE: .*'S01' and 'S1', who seem to be one subject")


def test_numbers_in_two_spellings_do_not_contradict(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "x", ["s1.csv"])
    for name, age in (("a.csv", "9.25"), ("b.csv", "9.2500")):
        (tmp_path / name).write_text(f"id,age\ns1,{age}\n")
    found = imported(folder, labels=(tmp_path / "a.csv", tmp_path / "b.csv"))
    assert values(found, "age") == ["9.25"]
