"""ROI time series: files, labels, splits, crops; what is wrong with them is said in one message."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from neuromamba.common.errors import UserInputError
from neuromamba.common.text import spelling
from neuromamba.data.regions.batches import ScanDataset, ScanLoader, check_lengths, z_scored
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.holdout import splits_of
from neuromamba.data.regions.registry import DATASETS, DatasetDetails, details_of
from neuromamba.data.regions.safe_loading import load_objects
from neuromamba.data.regions.scan import Scan
from neuromamba.data.regions.scan_files import ScanFile
from neuromamba.data.synthetic.regions import Recipe, write_dataset

ROIS = 6
TASK = dataclasses.replace(DATASETS["HCP_TASK"], rois=ROIS)
REST = dataclasses.replace(DATASETS["HCP_REST"], rois=ROIS)
PPMI = dataclasses.replace(DATASETS["PPMI"], rois=ROIS)
PHENO = "Subject,Release,Gender\n1,Q1,F\n2,Q1,M\n3,Q2,F\n4,Q1,M\n"


def series(frames: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROIS, frames)).astype(np.float32)


def sample(
    subject: str, frames: int = 20, turned: bool = False, **pheno: str | None
) -> dict[str, Any]:
    values = series(frames, seed=int(subject) if subject.isdigit() else 0)
    return {
        "roiTimeseries": values.T if turned else values,
        "pheno": {"subjectId": subject, **pheno},
    }


def write(folder: Path, details: DatasetDetails, samples: Any, pheno: str | None = PHENO) -> Path:
    path = folder / details.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.array(samples, dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(samples))
    if pheno is not None and details.pheno_file:
        table = folder / details.pheno_file
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(pheno)
    return path


# ------------------------------------------------------------------------------ files


def test_hcp_task_keeps_q1_and_turns_what_is_time_by_region(tmp_path: Path) -> None:
    samples = [
        sample(s, 30 + 10 * k, turned=k == 1, task=task)
        for s in "123"
        for k, task in enumerate(("MOTOR", "wm"))
    ]
    write(tmp_path, TASK, samples)
    cohort = load_cohort("HCP_TASK", TASK, tmp_path)
    assert [scan.scan for scan in cohort.scans] == ["1_MOTOR", "1_WM", "2_MOTOR", "2_WM"]
    assert [scan.series.shape for scan in cohort.scans] == [(ROIS, 30), (ROIS, 40)] * 2
    names = [cohort.details.classes[scan.label] for scan in cohort.scans]
    assert names == ["MOTOR", "WM"] * 2
    np.testing.assert_array_equal(cohort.scans[1].series, series(40, seed=1))
    assert "kept the 4 of 6 scans of subjects with Release Q1." in cohort.notes


def test_hcp_rest_takes_sex_from_the_table_and_reads_id_to_array(tmp_path: Path) -> None:
    path = tmp_path / REST.file
    write(tmp_path, REST, [])
    path.write_bytes(b"")
    np.save(path, np.array({"1": series(), "2": series(seed=2).T, "9": series()}, dtype=object))
    cohort = load_cohort("HCP_REST", REST, tmp_path)
    assert [(scan.subject, scan.label) for scan in cohort.scans] == [("1", 0), ("2", 1)]
    assert any("not in the table" in note and "9" in note for note in cohort.notes)


def test_several_scans_of_a_subject_have_names_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, REST, [sample("1"), sample("1"), sample("2")])
    cohort = load_cohort("HCP_REST", REST, tmp_path)
    assert [scan.scan for scan in cohort.scans] == ["1_1", "1_2", "2"]
    assert "1 scans are copies of others (1_2)." in cohort.notes


def test_own_data(tmp_path: Path) -> None:
    path = tmp_path / "mine.pickle"
    path.write_bytes(pickle.dumps([sample("a", 20, group="x"), sample("b", 25, group="y")]))
    details = details_of("Own", str(path), "group", 10)
    cohort = load_cohort("Own", details, tmp_path, data_file=path)
    assert cohort.details.classes == ("x", "y") and cohort.rois == ROIS
    with pytest.raises(UserInputError, match=r"^--dataset Own: needs --target, --dynamic_length"):
        details_of("Own", str(path))


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("suffix", [".npy", ".pickle"])
def test_no_code_is_run(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"evil{suffix}"
    if suffix == ".npy":
        np.save(path, np.array([Evil()], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(UserInputError, match=r"wants to call posix.mkdir"):
        load_objects(path, "--data_dir")
    assert not Path("evil").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    wanted = {"a": [series(), np.float64(2.5)], "b": ("text", 3, None, b"x")}
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps(wanted, protocol=protocol))
    found = load_objects(path, "--data_dir")
    np.testing.assert_array_equal(found["a"][0], wanted["a"][0])
    assert found["a"][1] == 2.5 and found["b"] == wanted["b"]


@pytest.mark.parametrize("name", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_pickles_of_either_numpy(tmp_path: Path, name: str) -> None:
    data = pickle.dumps(series(), protocol=0)
    for other in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        data = data.replace(other, name.encode())
    (tmp_path / "x.pickle").write_bytes(data)
    np.testing.assert_array_equal(load_objects(tmp_path / "x.pickle", "--data_dir"), series())


BAD: dict[str, tuple[DatasetDetails, Any, str | None, str]] = {
    "no file": (PPMI, None, None, r"'.*ppmi.*' cannot be read \(No such file"),
    "not a list": (PPMI, 5, None, "holds int, expected a list of scans"),
    "no pheno": (
        PPMI,
        [{"roiTimeseries": series()}],
        None,
        r'as scan 1 .*, expected \{"roiTimeseries"',
    ),
    "empty name": (
        PPMI,
        [sample("", disease="PD")],
        None,
        r'as scan 1 .*, expected \{"roiTimeseries"',
    ),
    "no scan": (PPMI, [], None, "holds no scan"),
    "no label": (PPMI, [sample("1")], None, r"^--target: no scan of .* has 'disease' in .*\(subj"),
    "odd label": (PPMI, [sample("1", disease="flu")], None, "^--target: .* is 'flu', expected one"),
    "regions": (
        PPMI,
        [{"roiTimeseries": np.zeros((5, 9)), "pheno": {"subjectId": "1", "disease": "PD"}}],
        None,
        "holds as scan 1 5 x 9 numbers, expected 6 regions",
    ),
    "not numbers": (
        PPMI,
        [{"roiTimeseries": "x", "pheno": {"subjectId": "1", "disease": "PD"}}],
        None,
        "expected a matrix of numbers",
    ),
    "no table": (REST, [sample("1")], None, r"pheno.csv' does not exist; .* Subject, Gender"),
    "no column": (REST, [sample("1")], "Subject,Sex\n1,F\n", "has no column Gender; .*Sex"),
    "no Release": (TASK, [sample("1", task="WM")], "Subject,Gender\n1,F\n", "no column Release"),
    "other names": (REST, [sample("77")], PHENO, r"has no subject \(77\) of .*pheno.csv' \(1, 2"),
    "twice": (REST, [sample("1")], PHENO + "1,Q1,M\n", "has different rows of 1"),
    "no Q1": (TASK, [sample("3", task="WM")], PHENO, "has no subject with Release Q1"),
    "rows of different lengths": (
        PPMI,
        [{"roiTimeseries": [[1, 2], [3]], "pheno": {"subjectId": "1", "disease": "PD"}}],
        None,
        "expected a matrix of numbers",
    ),
    "a copy": (
        REST,
        [sample("1"), {"roiTimeseries": series(seed=1), "pheno": {"subjectId": "2"}}],
        PHENO,
        "has the same values in scans 1 and 2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    details, samples, pheno, message = BAD[name]
    if samples is not None:
        write(tmp_path, details, samples, pheno)
    with pytest.raises(UserInputError, match=message) as error:
        load_cohort("X", details, tmp_path)
    assert str(error.value).startswith("--")


def test_damaged_file(tmp_path: Path) -> None:
    path = write(tmp_path, PPMI, [sample("1", disease="PD")])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserInputError, match=r"is damaged, or no .pickle file"):
        load_cohort("PPMI", PPMI, tmp_path)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    samples = [sample("1", disease="PD"), sample("2", disease="0"), sample("3", disease="PD")]
    samples[2]["roiTimeseries"][1, 3] = np.nan
    write(tmp_path, PPMI, samples)
    with pytest.raises(UserInputError, match=r"not finite in single precision in 1 scans \(3\)"):
        load_cohort("PPMI", PPMI, tmp_path)
    samples[2]["roiTimeseries"] = series().astype(np.float64) * 1e39  # too large for float32
    write(tmp_path, PPMI, samples)
    with pytest.raises(UserInputError, match=r"not finite in single precision in 1 scans \(3\)"):
        load_cohort("PPMI", PPMI, tmp_path)
    cohort = load_cohort("PPMI", PPMI, tmp_path, drop_bad_scans=True)
    assert [scan.subject for scan in cohort.scans] == ["1", "2"]
    assert any("left out" in note for note in cohort.notes)


def test_constant_regions_are_told_of_and_enter_as_zeros(tmp_path: Path) -> None:
    samples = [sample("1", disease="PD"), sample("2", disease="0")]
    for one in samples:
        one["roiTimeseries"][2] = 1e4 / 3
    samples[0]["roiTimeseries"][4] = 0
    write(tmp_path, PPMI, samples)
    cohort = load_cohort("PPMI", PPMI, tmp_path)
    assert any("2 regions are constant" in note and "[3]" in note for note in cohort.notes)
    z = z_scored(cohort.scans[0].series)
    assert not z[[2, 4]].any()
    others = z[[0, 1, 3, 5]].double()
    torch.testing.assert_close(
        others.mean(1), torch.zeros(4, dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        others.std(1, correction=0), torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0
    )


# ------------------------------------------------------------------------------ splits


def cohort_of(scans: list[Scan], classes: int = 2) -> Cohort:
    names = tuple(f"c{i}" for i in range(classes))
    return Cohort("X", dataclasses.replace(PPMI, classes=names, frames=()), tuple(scans))


def repeated(subjects: int, per_subject: int = 3, family: int = 1) -> Cohort:
    return cohort_of(
        [
            Scan(f"s{i}", f"s{i}_{k}", i // family % 2, series(), f"f{i // family}")
            for i in range(subjects)
            for k in range(per_subject)
        ]
    )


@pytest.mark.parametrize("family", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_no_subject_and_no_family_on_both_sides(family: int, seed: int) -> None:
    cohort = repeated(60, family=family)
    splits = splits_of(cohort, seed, folds=5)
    assert [split.name for split in splits] == [*(f"fold_{i}" for i in range(1, 6)), "holdout"]
    held = set(cohort.groups[splits[-1].test])
    for split in splits:
        train, test = set(cohort.groups[split.train]), set(cohort.groups[split.test])
        assert not train & test
        assert (train | test) & held == (held if split.name == "holdout" else set())
    tested = np.concatenate([split.test for split in splits[:-1]])
    assert sorted(tested) == sorted(splits[-1].train)  # each once
    assert len(splits[-1].test) == 36  # a fifth of the scans
    assert np.mean(cohort.labels[splits[-1].test]) == pytest.approx(0.5, abs=0.05)
    again = splits_of(cohort, seed, folds=5)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(splits, again, strict=True))


def test_families_come_from_the_table(tmp_path: Path) -> None:
    pheno = "Subject,Release,Gender,Family\n1,Q1,F,a\n2,Q1,M,a\n4,Q1,M,b\n"
    write(tmp_path, REST, [sample("1"), sample("2"), sample("4")], pheno)
    cohort = load_cohort("HCP_REST", REST, tmp_path, group_column="Family")
    assert cohort.groups.tolist() == ["Family a", "Family a", "Family b"]
    with pytest.raises(UserInputError, match=r"has no column Mother"):
        load_cohort("HCP_REST", REST, tmp_path, group_column="Mother")


def test_families_come_from_pheno_where_there_is_no_table(tmp_path: Path) -> None:
    """A family that is not known is the subject alone; no two of these are kept together."""
    families = {"1": "x", "2": "x", "3": "n/a", "4": "", "5": "1"}
    scans = [sample(s, disease=str(int(s) % 2), family=f) for s, f in families.items()]
    write(tmp_path, PPMI, scans)
    groups = load_cohort("PPMI", PPMI, tmp_path, group_column="family").groups.tolist()
    assert groups == ["family x", "family x", "3", "4", "family 1"]
    with pytest.raises(UserInputError, match=r"^--group_column: a scan of 1 has no 'Family' in"):
        load_cohort("PPMI", PPMI, tmp_path, group_column="Family")
    write(tmp_path, PPMI, [*scans, sample("1", disease="1", family="y")])
    with pytest.raises(UserInputError, match=r"^--group_column: scans of 1 differ in 'family'"):
        load_cohort("PPMI", PPMI, tmp_path, group_column="family")


def test_own_scans_with_other_regions_are_refused_and_none_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "mine.pickle"
    scans = [sample(str(i), group="xy"[i % 2]) for i in range(4)]
    scans[2]["roiTimeseries"] = scans[2]["roiTimeseries"][1:]
    path.write_bytes(pickle.dumps(scans))
    details = details_of("Own", str(path), "group", 10)
    with pytest.raises(
        UserInputError, match=r"scans of 5, 6 rows; 2 differ. Expected regions x time"
    ):
        load_cohort("Own", details, tmp_path, data_file=path)
    path.write_bytes(pickle.dumps([sample(str(i), 20, True, group="xy"[i % 2]) for i in range(4)]))
    cohort = load_cohort("Own", details, tmp_path, data_file=path)
    assert cohort.notes[-1] == "20 regions and fewer frames: matrices must be regions x time."


def test_scans_without_a_label_are_left_out_and_named(tmp_path: Path) -> None:
    labels = {"1": "PD", "2": "n/a", "3": "0", "4": " ", "5": None, "6": "nan"}
    scans = [*(sample(s, disease=label) for s, label in labels.items()), sample("7")]
    write(tmp_path, PPMI, scans)
    cohort = load_cohort("PPMI", PPMI, tmp_path)
    assert [scan.subject for scan in cohort.scans] == ["1", "3"]
    assert "5 scans without a 'disease' were left out (2, 4, 5, 6, 7)." in cohort.notes


def test_messages_name_the_flag_that_named_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.pickle"
    details = details_of("Own", str(path), "disease", 10)
    for content in (b"no pickle", pickle.dumps(5), pickle.dumps([]), pickle.dumps([{}])):
        path.write_bytes(content)
        with pytest.raises(UserInputError, match=r"^--data_file: '.*mine.pickle' "):
            load_cohort("Own", details, tmp_path, data_file=path)


def test_tables_of_subjects_as_laboratories_have_them(tmp_path: Path) -> None:
    """A byte order mark, semicolons, Windows's line ends, a row given twice."""
    write(tmp_path, REST, [sample("1"), sample("2")])
    table = "\ufeffSubject;Release;Gender\r\n1;Q1;F\r\n2;Q1;M\r\n1;Q1;F\r\n"
    (tmp_path / str(REST.pheno_file)).write_bytes(table.encode())
    cohort = load_cohort("HCP_REST", REST, tmp_path)
    assert [(scan.subject, scan.label) for scan in cohort.scans] == [("1", 0), ("2", 1)]


def test_too_few_subjects_to_split() -> None:
    """The message tells the holdout, which has no flag, from the folds."""
    with pytest.raises(UserInputError, match=r"^--folds: \w+ has scans of 3 subjects .* only; the"):
        splits_of(repeated(6), 0, 5)
    with pytest.raises(UserInputError, match=r"outside the holdout, fewer than the 9 folds\. Take"):
        splits_of(repeated(20), 0, 9)


def test_a_number_is_one_class_however_it_is_written() -> None:
    assert {spelling(value) for value in (1, 1.0, "1", "1.0", np.float64(1), np.int64(1))} == {"1"}


# ------------------------------------------------------------------------------ crops


def test_crops() -> None:
    """T equal to the crop and shorter than it are taken whole; longer ones anywhere, by seed."""
    scans = [Scan(str(t), str(t), 0, series(t), str(t)) for t in (10, 16, 40)]
    data = ScanDataset(scans, crop=16, seed=3)
    assert [data[i]["series"].shape[1] for i in range(3)] == [10, 16, 16]
    places = set()
    whole = z_scored(scans[2].series)
    for epoch in range(200):
        data.epoch = epoch
        crop = data[2]["series"]
        place = next(i for i in range(25) if torch.equal(whole[:, i : i + 16], crop))
        places.add(place)
    assert places == set(range(25))  # both ends included
    data.epoch = 7
    assert torch.equal(data[2]["series"], data[2]["series"])
    assert ScanDataset(scans)[2]["series"].shape[1] == 40


def test_batches_cover_every_scan_once_in_an_order_of_the_epoch() -> None:
    scans = [Scan(str(i), str(i), i % 2, series(8 + i), str(i)) for i in range(7)]
    loader = ScanLoader(ScanDataset(scans, seed=1), 3, shuffle=True)
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)  # as Lightning does
        batches = list(loader)
        assert [len(batch["label"]) for batch in batches] == [3, 3, 1] and len(loader) == 3
        assert all(len(b["frames"]) == sum(b["lengths"]) for b in batches)
        orders.append([name for batch in batches for name in batch["subject"]])
    assert sorted(orders[0]) == sorted(scan.scan for scan in scans)
    assert orders[0] == orders[2] != orders[1]


def test_scans_that_are_short() -> None:
    cohort = cohort_of([Scan("a", "a", 0, series(12), "a"), Scan("b", "b", 1, series(40), "b")])
    assert check_lengths(cohort, 12, 8, refuse=True) == 0
    assert check_lengths(cohort, 20, 8, refuse=False) == 1
    with pytest.raises(UserInputError, match=r"^--short_scans refuse: 1 scans have fewer than"):
        check_lengths(cohort, 20, 8, refuse=True)
    with pytest.raises(
        UserInputError, match=r"^--data_dir: scan a has 12 frames; the model needs 16"
    ):
        check_lengths(cohort, 20, 16, refuse=False)
    with pytest.raises(UserInputError, match=r"^--dynamic_length: got 4, expected 8"):
        check_lengths(cohort, 4, 8, refuse=False)


def test_cni_columns(tmp_path: Path) -> None:
    """The example of one's own data: all frames in one array."""
    details = dataclasses.replace(DATASETS["CNI_SEX"], rois=ROIS, frames=())
    first, second = series(9, 1), series(14, 2)
    np.savez(tmp_path / details.file, aal=np.concatenate([first.T, second.T]), length=[9, 14])
    rows = pd.DataFrame({"Subj": ["sub-1", "sub-2"], "Sex": ["F", "M"]})
    rows.to_csv(tmp_path / str(details.pheno_file), index=False)
    cohort = load_cohort("CNI_SEX", details, tmp_path)
    np.testing.assert_array_equal(cohort.scans[1].series, second)
    np.savez(tmp_path / details.file, aal=np.concatenate([first.T, second.T]), length=[9, 13])
    with pytest.raises(UserInputError, match=r"has 2 scans with 22 frames .* has 23"):
        load_cohort("CNI_SEX", details, tmp_path)


# ------------------------------------------------------------------------------ confounds, families


def test_confounds_come_from_the_table_or_from_pheno(tmp_path: Path) -> None:
    table = "Subject,Release,Gender,Age\n1,Q1,F,22\n2,Q1,M,n/a\n3,Q2,F,\n"
    write(tmp_path, REST, [sample("1"), sample("2")], table)
    cohort = load_cohort("HCP_REST", REST, tmp_path, confounds=["Age", "Release"])
    assert cohort.confounds == {"Age": {"1": "22"}, "Release": {"1": "Q1", "2": "Q1"}}
    motion = [(f"{i // 2}", 0.25 * i) for i in range(4)]
    scans = [sample(s, 20 + i, disease="PD" if i < 2 else "Control", fd=fd, site="x")
             for i, (s, fd) in enumerate(motion)]  # fmt: skip
    write(tmp_path, PPMI, scans)
    found = load_cohort("PPMI", PPMI, tmp_path, confounds=["fd", "site"]).confounds
    assert found == {"fd": {"0": "0.125", "1": "0.625"}, "site": {"0": "x", "1": "x"}}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("shoe", r"^--confounds: the scans' pheno has no 'shoe' \(disease, site, subjectId\)"),
        ("disease", r"^--confounds: 'disease' is the target itself"),
        ("site", r"^--confounds: scans of 0 differ in 'site' \(x, y\)"),
    ],
)
def test_confounds_that_cannot_be_used(tmp_path: Path, column: str, message: str) -> None:
    scans = [sample(f"{i // 2}", 20 + i, disease="PD" if i < 2 else "Control", site="xyxx"[i])
             for i in range(4)]  # fmt: skip
    write(tmp_path, PPMI, scans)
    with pytest.raises(UserInputError, match=message):
        load_cohort("PPMI", PPMI, tmp_path, confounds=[column])


def test_a_column_of_families_that_is_not_used_is_pointed_out(tmp_path: Path) -> None:
    table = "Subject,Release,Gender,Family_ID\n1,Q1,F,a\n2,Q1,M,a\n"
    write(tmp_path, REST, [sample("1"), sample("2")], table)
    notes = load_cohort("HCP_REST", REST, tmp_path).notes
    assert any("--group_column Family_ID keeps them together" in note for note in notes)
    notes = load_cohort("HCP_REST", REST, tmp_path, group_column="Family_ID").notes
    assert not any("Family_ID" in note for note in notes)


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_scans_raise_no_doubt_about_their_frames(tmp_path: Path, synthetic: bool) -> None:
    """They have as many as were asked for; the same scans without their record are doubted."""
    recipe = Recipe(166, 90, ("slow", "fast"))
    path = write_dataset("PPMI", tmp_path, 8, recipe, atlas=False)
    if not synthetic:
        ScanFile(path).truth.unlink()
    notes = load_cohort("PPMI", DATASETS["PPMI"], tmp_path).notes
    assert any("do not have the usual 210 frames" in note for note in notes) == (not synthetic)


# ------------------------------------------------------------------------------ columns


def test_columns_and_repetition_times_of_the_scans(tmp_path: Path) -> None:
    own = details_of("Own", "x.pickle", "dx", 10)
    samples = [sample(str(i), dx=str(i % 2), site="A" if i < 3 else None) for i in range(1, 5)]
    samples[0]["pheno"]["tr"] = 2.5
    samples[1]["pheno"]["tr"] = None
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(samples))
    cohort = load_cohort("Own", own, tmp_path)
    assert cohort.column("site", "--leave_out").tolist() == ["A", "A", "", ""]
    np.testing.assert_array_equal(cohort.tr, [2.5, np.nan, np.nan, np.nan])
    with pytest.raises(UserInputError, match="--leave_out: there is no column 'scanner'"):
        cohort.column("scanner", "--leave_out")


def test_columns_of_the_table_and_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, TASK, [sample("1", task="MOTOR"), sample("2", task="WM")])
    cohort = load_cohort("HCP_TASK", TASK, tmp_path)
    assert cohort.column("Gender", "--x").tolist() == ["F", "M"]
    assert cohort.column("task", "--x").tolist() == ["MOTOR", "WM"]
