"""``neuromamba regions import`` as a user types it, and what ``regions train`` makes of its file.

``CASES`` has an entry for every flag: each changes what is written or said.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neuromamba.commands import regions_import
from neuromamba.commands.regions_train import main as train
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.registry import details_of
from tests.helpers.region_collections import (
    LABELS,
    people,
    series,
    write_1d,
    write_abide_npz,
    write_nilearn_abide,
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in a folder of its own: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(words: str) -> tuple[int, str, str]:
        status = regions_import.main(words.split())
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def read(path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pickle.loads(Path(path).read_bytes())
    return found


def test_two_commands_from_nilearns_folder_to_a_page(run: Run, tmp_path: Path) -> None:
    write_nilearn_abide(tmp_path, people(61))
    status, out, err = run("ABIDE_pcp -o abide.pickle")
    assert (status, err) == (0, "")
    for line in (
        "60 scans of 60 subjects, 12 regions of cc200, 36 to 44 frames",
        "3 sites (SITE_ID): CMU 20, NYU 20, UM_1 20",
        "TR (published by the sites of ABIDE): 1.5 s in CMU 20; 2 s in NYU 20, UM_1 20",
        "site is SITE_ID, age is AGE_AT_SCAN, sex is SEX, motion is func_mean_fd; targets: sex,",
        "FIQ 15",
        "rows without a scan: 3: NYU_0050061, 50961, 50962",
        "60 of 60 scans in abide.pickle",
    ):
        assert line in out, line
    flags = "--dataset Own --data_file abide.pickle --target diagnosis --confounds age sex "
    flags += "motion --dynamic_length 30 --epochs 2 --embed_dim 32 --depth 1 --folds 2 --device cpu"
    assert train([*flags.split(), "--baselines", "FC"]) == 0
    place = Path("Results/Own/NeuroSSM")
    assert (place / "report.html").is_file()
    assert len(pd.read_csv(place / "results.csv")) == 3
    (holdout,) = json.loads((place / "evaluation.json").read_text())["holdouts"].values()
    assert set(holdout["confounds"]["of_target"]) == {"age", "sex", "motion"}
    details = details_of("Own", "abide.pickle", "sex", 30)
    cohort = load_cohort("Own", details, tmp_path, data_file=Path("abide.pickle"))
    assert cohort.details.classes == ("female", "male")
    assert set(cohort.column("site", "--x")) == {"NYU", "UM_1", "CMU"}
    assert set(cohort.tr) == {1.5, 2.0}


def test_a_model_of_imported_scans_knows_its_regions(run: Run, tmp_path: Path) -> None:
    """A file of other regions is refused; one with the labels in its header is taken."""
    import neuromamba

    write_nilearn_abide(tmp_path, people(41))
    assert run("ABIDE_pcp -o abide.pickle")[0] == 0
    flags = (
        "--dataset Own --data_file abide.pickle --target diagnosis --dynamic_length 30 --epochs "
    )
    flags += "1 --embed_dim 32 --depth 1 --skip_cross_validation --device cpu --baselines"
    assert train(flags.split()) == 0
    model = neuromamba.load("Results/Own/NeuroSSM/seed_0/holdout")
    assert model.metadata["regions"] == list(LABELS)
    assert model.metadata["tr"] == [1.5, 2.0]
    assert model.metadata["extraction"] is None
    place = Path("ABIDE_pcp/cpac/nofilt_noglobal")
    model.predict(model.prepare(next(iter(sorted(place.iterdir()))), tr=2.0))
    write_1d(Path("other.1D"), series(0), [f"9{label}" for label in LABELS])
    with pytest.raises(ValueError, match="other regions than the training's"):
        model.prepare("other.1D", tr=2.0)


def test_copies_are_refused_without_the_flag(run: Run, tmp_path: Path) -> None:
    folder = write_nilearn_abide(tmp_path)
    first = folder / "cpac/nofilt_noglobal/NYU_0050001_rois_cc200.1D"
    first.with_name("NYU_0050004_rois_cc200.1D").write_bytes(first.read_bytes())
    status, out, err = run("ABIDE_pcp -o abide.pickle")
    assert (status, out) == (2, "")
    assert err.startswith("error: SOURCE: a scan of one subject has the same values as one of an")
    assert "NYU_0050001 and NYU_0050004" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("abide*"))
    status, out, err = run("ABIDE_pcp -o abide.pickle --drop_duplicates")
    assert (status, err) == (0, "")
    assert "copy: NYU_0050004 has the values of NYU_0050001 and is dropped" in out
    assert "NYU_0050004" not in {one["pheno"]["scan"] for one in read("abide.pickle")}
    record = json.loads(Path("abide.json").read_text())
    assert record["left_out"] == {"NYU_0050004": "a copy of NYU_0050001"}


def test_a_file_of_regions_train_can_be_cleaned(run: Run, tmp_path: Path) -> None:
    """Its own message names the command that drops the copy."""
    scans = [
        {"roiTimeseries": series(i % 5).T, "pheno": {"subjectId": f"p{i}", "dx": "ab"[i % 2]}}
        for i in range(6)
    ]
    Path("mine.pickle").write_bytes(pickle.dumps(scans))
    flags = "--dataset Own --data_file mine.pickle --target dx --dynamic_length 20 --device cpu"
    assert train(flags.split()) == 2
    assert run("mine.pickle -o clean.pickle --drop_duplicates")[0] == 0
    found = read("clean.pickle")
    assert [one["pheno"]["subjectId"] for one in found] == [f"p{i}" for i in range(5)]
    assert [one["pheno"]["dx"] for one in found] == [*"ababa"]
    record = json.loads(Path("clean.json").read_text())
    Path("clean.json").write_text(json.dumps(record | {"regions": list(LABELS)}))
    status, out, _ = run("clean.pickle -o again.pickle")
    assert (status, "without a value" in out) == (0, False)
    assert json.loads(Path("again.json").read_text())["regions"] == list(LABELS)
    for one, other in zip(found, read("again.pickle"), strict=True):
        np.testing.assert_array_equal(one["roiTimeseries"], other["roiTimeseries"])
        assert one["pheno"] == other["pheno"]


def test_unusable_scans_give_exit_status_1(run: Run, tmp_path: Path) -> None:
    folder = write_nilearn_abide(tmp_path)
    (folder / "cpac/nofilt_noglobal/NYU_0050001_rois_cc200.1D").write_text("1 2\n")
    write_1d(folder / "cpac/nofilt_noglobal/NYU_0059999_rois_cc200.1D", series(99))
    status, out, err = run("ABIDE_pcp -o abide.pickle")
    assert status == 1
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("left out: NYU_0050001: ")
    assert lines[1] == "left out: NYU_0059999: no row in the table of labels"
    assert "22 of 24 scans in abide.pickle" in out


def test_many_unusable_scans_do_not_flood_the_screen(run: Run, tmp_path: Path) -> None:
    folder = write_nilearn_abide(tmp_path)
    for i in range(60):
        (folder / f"cpac/nofilt_noglobal/X_{i:07d}_rois_cc200.1D").write_text("")
    status, _, err = run("ABIDE_pcp -o abide.pickle")
    assert status == 1
    assert len(err.splitlines()) == 51
    assert err.endswith("left out: 10 more, see abide.json\n")
    assert len(json.loads(Path("abide.json").read_text())["left_out"]) == 60


def test_files_of_others_are_never_replaced(run: Run, tmp_path: Path) -> None:
    write_abide_npz(tmp_path)
    Path("mine.json").write_text("{}")
    status, _, err = run("abide_cc200_dev.npz -o mine.pickle")
    assert status == 2 and "'mine.json' exists and was not written by this command" in err
    assert run("abide_cc200_dev.npz -o out.pickle")[0] == 0
    before = Path("out.pickle").read_bytes()
    assert run("abide_cc200_dev.npz -o out.pickle")[0] == 0  # its own file
    assert Path("out.pickle").read_bytes() == before
    assert "expected a name in .pickle or .npy" in run("abide_cc200_dev.npz -o out.csv")[2]
    assert run("abide_cc200_dev.npz -o new/out.npy")[0] == 0
    assert len(np.load("new/out.npy", allow_pickle=True)) == 24
    status, out, _ = run("abide_cc200_dev.npz -o folder")
    assert (status, len(read("folder/scans.pickle"))) == (0, 24)
    words = "regions train --dataset Own --data_file folder/scans.pickle --target diagnosis"
    assert out.endswith(f"next: neuromamba {words} --dynamic_length 40\n")


def test_one_table_of_all_scans(run: Run, tmp_path: Path) -> None:
    frames = [
        ",".join([f"p{i}", *(f"{value:.5f}" for value in row), "ab"[i % 2]])
        for i in range(4)
        for row in series(i)
    ]
    head = ",".join(["subject", *(f"r{label}" for label in LABELS), "dx"])
    Path("all.csv").write_text("\n".join([head, *frames]) + "\n")
    Path("more.tsv").write_text("id\tsite\tage\np0\tA\t9\np1\tB\t8\np2\tA\t7\np3\tB\t6\n")
    assert run("all.csv -o out.pickle --label_csv more.tsv --tr 2")[0] == 0
    found = read("out.pickle")
    assert [one["pheno"]["dx"] for one in found] == [*"abab"]
    assert [one["pheno"]["site"] for one in found] == [*"ABAB"]
    np.testing.assert_allclose(found[3]["roiTimeseries"], series(3).T, rtol=1e-5)


# ------------------------------------------------------------------------------ flags

CASES: dict[str, tuple[str, str]] = {
    "output": ("", "-o other.pickle"),
    "format": ("", "--format athena"),
    "atlas": ("", "--atlas ho"),
    "orientation": ("", "--orientation regions_by_time"),
    "constant_regions": ("", "--constant_regions drop"),
    "constant_share": ("--constant_regions drop", "--constant_share 0.5"),
    "drop_duplicates": ("--atlas ho", "--drop_duplicates"),
    "labels": ("", "--labels other.csv"),
    "subject_column": ("--labels other.csv", "--subject_column nobody"),
    "dataset_name": ("", "--dataset_name Own"),
    "columns": ("", "--columns site=notes"),
    "missing_codes": ("", "--missing_codes FIQ=101"),
    "tr": ("", "--tr 2.5"),
    "tr_column": ("--labels other.csv", "--tr_column seconds"),
    "tr_table": ("", "--tr_table rates.csv"),
}
DEFAULTS: dict[str, Any] = {
    "source": None,
    "output": None,
    "format": "auto",
    "atlas": None,
    "orientation": "auto",
    "constant_regions": "keep",
    "constant_share": 0.05,
    "drop_duplicates": False,
    "labels": [],
    "subject_column": None,
    "dataset_name": None,
    "columns": [],
    "missing_codes": [],
    "tr": None,
    "tr_column": None,
    "tr_table": None,
}


def test_every_flag_has_a_case_and_its_default() -> None:
    actions = [a for a in regions_import.build_parser()._actions if a.dest != "help"]
    assert {a.dest: a.default for a in actions} == DEFAULTS
    assert {*CASES, "source"} == set(DEFAULTS)


@pytest.mark.parametrize("flag", CASES)
def test_a_flag_changes_what_is_written(run: Run, tmp_path: Path, flag: str) -> None:
    folder = write_nilearn_abide(tmp_path) / "cpac" / "nofilt_noglobal"
    flat = series(0, 40)
    flat[:, 4] = 7.0
    for name in ("NYU_0050001", "UM_1_0050002"):
        write_1d(folder / f"{name}_rois_cc200.1D", flat + series(int(name[-1]), 40) * (flat != 7))
        write_1d(folder / f"{name}_rois_ho.1D", flat)  # a copy
    rows = [f"{one.file},{one.file},{i},1.25" for i, one in enumerate(people())]
    Path("other.csv").write_text("\n".join(["FILE_ID,nobody,score,seconds", *rows]) + "\n")
    text = Path("other.csv").read_text().replace(",NYU_0050001,", ",nobody,")
    Path("other.csv").write_text(text)
    Path("rates.csv").write_text("site,TR\nNYU,2.2\n")

    def observed(flags: str) -> Any:
        for path in [*Path().glob("*.pickle"), *Path().glob("a.json"), *Path().glob("other.json")]:
            path.unlink()
        answer = run(f"ABIDE_pcp -o a.pickle {flags}")
        return answer, {path.name: path.read_bytes() for path in Path().glob("*.pickle")}

    base, changed = CASES[flag]
    base = base if "--atlas" in base or flag == "atlas" else f"--atlas cc200 {base}"
    before = observed(base)
    assert observed(base) == before
    assert observed(f"{base} {changed}") != before


# ------------------------------------------------------------------------------ shared data


@pytest.mark.real_data
def test_abide(run: Run, shared_data: Path) -> None:
    """777 subjects of 20 sites, 200 regions, and the pair of copies; seconds."""
    folder = shared_data / "abide_roi"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent")
    status, _, err = run(f"{folder}/abide_cc200_dev.npz -o a.pickle")
    assert status == 2 and "UM_1_0050279 and UM_1_0050286" in err
    begin = time.process_time()
    status, out, err = run(f"{folder}/abide_cc200_dev.npz -o a.pickle --drop_duplicates")
    assert time.process_time() - begin < 10
    assert (status, err) == (0, "")
    assert "776 scans of 776 subjects, 200 regions of cc200, 78 to 316 frames" in out
    assert "20 sites (SITE_ID)" in out
    assert "constant regions kept (zeros in training): 114 regions in 37 scans, up to 80" in out
    found = read("a.pickle")
    table = pd.read_csv(folder / "abide_phenotypic_dev.csv", dtype=str).set_index("FILE_ID")
    assert {one["pheno"]["scan"] for one in found} == set(table.index) - {"UM_1_0050286"}
    for one in found:
        row = table.loc[one["pheno"]["FILE_ID"]]
        assert one["roiTimeseries"].shape == (200, int(row["T"]))
        assert one["pheno"]["tr"] == float(row["TR_s"])
        assert one["pheno"]["site"] == row["SITE_ID"]
        assert one["pheno"]["diagnosis"] == {"1": "patient", "2": "control"}[row["DX_GROUP"]]
    runs = json.loads(Path("a.json").read_text())["runs"]
    constant = [len(one["regions_without_signal"]) for one in runs]
    assert constant == [int(table.loc[one["pheno"]["scan"], "n_const_cc200"]) for one in found]


@pytest.mark.real_data
def test_published_rates_are_those_of_the_shared_table(shared_data: Path) -> None:
    """TR_s of the table was checked against the band edge of the filtered release."""
    from neuromamba.data.regions.collections.rates import SITE_TR

    path = shared_data / "abide_roi" / "abide_phenotypic_dev.csv"
    if not path.is_file():
        pytest.skip(f"no real data: {path} is absent")
    table = pd.read_csv(path)
    for file, site, tr in zip(table["FILE_ID"], table["SITE_ID"], table["TR_s"], strict=True):
        known = SITE_TR["ABIDE"]
        prefix = str(file).rpartition("_")[0].lower()
        assert known.get(prefix, known.get(str(site).lower())) == tr, file


@pytest.mark.real_data
def test_cni_and_stages(run: Run, shared_data: Path) -> None:
    for name in ("cni_roi", "stages_schaefer419"):
        if not (shared_data / name).is_dir():
            pytest.skip(f"no real data: {shared_data / name} is absent")
    status, out, _ = run(f"{shared_data}/cni_roi -o c.pickle --atlas aal --tr 2.5")
    assert (status, "240 scans of 240 subjects, 116 regions of aal" in out) == (0, True)
    found = read("c.pickle")
    assert {one["pheno"]["sex"] for one in found} == {"female", "male"}
    table = pd.read_csv(shared_data / "cni_roi" / "cni_phenotypic_240.csv", dtype=str)
    assert [one["pheno"]["subjectId"] for one in found] == list(table["Subj"])
    assert [one["pheno"]["DX"] for one in found] == list(table["DX"])
    status, out, _ = run(f"{shared_data}/stages_schaefer419 -o s.pickle --tr 2")
    assert (status, "70 scans of 42 subjects, 419 regions, 234 frames" in out) == (0, True)
    groups = [one["pheno"]["group"] for one in read("s.pickle")]
    assert groups.count("") == 5
