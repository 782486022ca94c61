"""``neuromamba regions paint`` as a user types it: series -> images -> a store, and back."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuromamba.commands import preprocess, regions_extract, regions_import, regions_paint
from neuromamba.data.store.reader import RunFile, list_runs
from tests.helpers.region_collections import LABELS, people, write_abide_npz

Run = Callable[..., tuple[int, str, str]]
GRID = (9, 12, 8)
# LAS, in steps of 20 mm, so that the small grid covers an MNI brain.
AFFINE = np.array([[-20.0, 0, 0, 80], [0, 20, 0, -126], [0, 0, 20, -72], [0, 0, 0, 1]])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in a folder with scans and their atlas: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abide").mkdir()
    write_abide_npz(tmp_path / "abide", people(6))
    assert regions_import.main(["abide", "-o", "abide.pickle"]) == 0
    # Twelve slabs of regions in another order than the series', with background around them.
    labels = np.zeros(GRID, np.int16)
    for i, label in enumerate(sorted(map(int, LABELS), key=lambda one: one % 7)):
        labels[1 + i % 6, 1:11, 1 + 3 * (i // 6) : 4 + 3 * (i // 6)] = label
    nib.save(nib.Nifti1Image(labels, AFFINE), "atlas.nii.gz")
    capsys.readouterr()

    def call(words: str) -> tuple[int, str, str]:
        status = regions_paint.main(words.split())
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def scans(path: str = "abide.pickle") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pickle.loads(Path(path).read_bytes())
    return found


def bold(subject: str) -> Any:
    (path,) = Path("painted").glob(f"sub-{subject.replace('_', '')}/func/*_bold.nii.gz")
    return nib.load(path)


def test_each_voxel_has_its_regions_series(run: Run) -> None:
    status, out, err = run("--data_file abide.pickle --atlas atlas.nii.gz -o painted")
    assert (status, err) == (0, "") and "6 scans" in out and "12 regions of atlas" in out
    atlas = np.asarray(nib.load("atlas.nii.gz").dataobj)
    for scan in scans():
        image = bold(scan["pheno"]["subjectId"])
        np.testing.assert_array_equal(image.affine, AFFINE)
        assert image.header.get_zooms()[3] == pytest.approx(scan["pheno"]["tr"])
        assert image.header["sform_code"] == image.header["qform_code"] == 4
        data = image.get_fdata(dtype=np.float32)
        assert data.shape == (*GRID, scan["roiTimeseries"].shape[1])
        for label, series in zip(LABELS, scan["roiTimeseries"], strict=True):
            own = data[atlas == int(label)]
            np.testing.assert_array_equal(own, np.broadcast_to(series, own.shape))
        assert not data[atlas == 0].any()


def test_extraction_gives_the_series_back(run: Run) -> None:
    assert run("--data_file abide.pickle --atlas atlas.nii.gz -o painted")[0] == 0
    words = "--input painted --atlas atlas.nii.gz --output again.pickle --min_dof 1"
    assert regions_extract.main([*words.split(), "--label_csv", "painted/participants.tsv"]) == 0
    order = np.argsort(list(map(int, LABELS)))  # extraction sorts by label
    found = {one["pheno"]["source_subject"]: one for one in scans("again.pickle")}
    assert len(found) == 6
    for scan in scans():
        again = found[scan["pheno"]["subjectId"]]
        np.testing.assert_allclose(
            again["roiTimeseries"], scan["roiTimeseries"][order], rtol=1e-5, atol=1e-3
        )
        for column in ("diagnosis", "sex", "site"):
            assert again["pheno"][column] == scan["pheno"][column]


def test_converter_reads_them(run: Run) -> None:
    """TR, mask and values of a store, at the atlas's own resolution."""
    entries = scans()
    entries[0]["roiTimeseries"][2] = 7.0  # no signal: it is not in the mask
    Path("abide.pickle").write_bytes(pickle.dumps(entries))
    assert run("--data_file abide.pickle --atlas atlas.nii.gz -o painted")[0] == 0
    words = "--input painted --output store --dataset_name Own --img_size 9 12 8 --num_workers 1"
    assert preprocess.main(words.split()) == 0
    atlas = np.asarray(nib.load("atlas.nii.gz").dataobj)
    paths = list_runs(Path("store"))
    assert len(paths) == 6
    of_subject = {f"sub-{s['pheno']['subjectId'].replace('_', '')}": s for s in entries}
    for path in paths:
        stored = RunFile(path)
        scan = of_subject[stored.header.subject]
        assert stored.header.tr == scan["pheno"]["tr"]
        label = atlas.ravel()[stored.vox]
        missing = {int(LABELS[2])} if scan is entries[0] else set()
        assert {*label} == {*map(int, LABELS)} - missing
        rows = [LABELS.index(str(one)) for one in label]
        frames = stored.read(np.arange(3)) * stored.header.scale + stored.header.offset
        expected = scan["roiTimeseries"][rows, :3].T
        np.testing.assert_allclose(frames, expected, atol=0.51 * stored.header.scale)
        stored.close()
    table = pd.read_csv("store/metadata/participants.tsv", sep="\t")
    assert set(table["participant_id"]) == set(of_subject)
    record = json.loads(Path("painted/painted.json").read_text())
    assert [len(one["regions_without_signal"]) for one in record["scans"]] == [1, 0, 0, 0, 0, 0]


def test_regions_without_names_keep_their_order(run: Run) -> None:
    Path("abide.json").unlink()
    assert run("--data_file abide.pickle --atlas atlas.nii.gz -o painted")[0] == 0
    atlas = np.asarray(nib.load("atlas.nii.gz").dataobj)
    scan = scans()[0]
    data = bold(scan["pheno"]["subjectId"]).get_fdata()
    first = sorted(map(int, LABELS))[0]
    np.testing.assert_allclose(data[atlas == first][0], scan["roiTimeseries"][0])


def test_subjects_are_drawn_in_proportion(run: Run) -> None:
    words = "--data_file abide.pickle --atlas atlas.nii.gz --subjects 3 --stratify_by site"
    painted = []
    for seed in ("0", "0", "1", "2", "3"):
        assert run(f"{words} --seed {seed} -o painted")[0] == 0
        table = pd.read_csv("painted/participants.tsv", sep="\t")
        assert Counter(table["site"]) == {"NYU": 1, "UM_1": 1, "CMU": 1}
        painted.append(set(table["participant_id"]))
        shutil.rmtree("painted")
    assert painted[0] == painted[1] and len(set(map(frozenset, painted))) > 1


def test_scans_of_one_subject_are_runs_and_sessions(run: Run) -> None:
    entries = scans()
    for scan, session in zip(entries[:4], ("1", "2", "", ""), strict=True):
        scan["pheno"] |= {"subjectId": "A" if session else "B", "session": session}
    Path("abide.pickle").write_bytes(pickle.dumps(entries[:4]))
    assert run("--data_file abide.pickle --atlas atlas.nii.gz -o painted")[0] == 0
    names = sorted(
        path.name.partition("_space")[0] for path in Path("painted").rglob("*_bold.nii.gz")
    )
    assert names == [
        "sub-A_ses-1_task-rest",
        "sub-A_ses-2_task-rest",
        "sub-B_task-rest_run-1",
        "sub-B_task-rest_run-2",
    ]
    table = pd.read_csv("painted/participants.tsv", sep="\t", keep_default_na=False)
    assert list(table["participant_id"]) == ["sub-A", "sub-B"]
    assert list(table["age"]) == ["", ""]  # two people's here, so their rows contradict each other


def rename(entries: list[dict[str, Any]]) -> None:
    entries[0]["pheno"]["subjectId"], entries[1]["pheno"]["subjectId"] = "a_1", "a-1"


def forget_tr(entries: list[dict[str, Any]]) -> None:
    entries[0]["pheno"]["tr"] = None


def lose_a_value(entries: list[dict[str, Any]]) -> None:
    entries[0]["roiTimeseries"][0, 0] = np.nan


def lose_a_region(entries: list[dict[str, Any]]) -> None:
    entries[1]["roiTimeseries"] = entries[1]["roiTimeseries"][1:]


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (None, "--data_file none.pickle", "--data_file: 'none.pickle' cannot be read"),
        (None, "--atlas other.nii.gz", "has no region 2001"),
        (None, "--atlas fewer.nii.gz", "has no region"),
        (None, "--subjects 7", "--subjects: got 7, expected 1 to 6"),
        (None, "--stratify_by site", "--stratify_by: says how --subjects are drawn"),
        (None, "--subjects 3 --stratify_by town", "has no column 'town'"),
        (None, "--tr 0", "--tr: got 0"),
        (None, "-o abide", "--output: 'abide' is there and not empty"),
        (rename, "", "a_1, a-1 would all be called 'sub-a1'"),
        (forget_tr, "", "--tr: the repetition time of"),
        (lose_a_value, "", "not all finite"),
        (lose_a_region, "", "are of 11 regions, those of other scans of 12"),
    ],
)
def test_a_mistake_is_one_line(
    run: Run, spoil: Callable[[list[dict[str, Any]]], None] | None, words: str, message: str
) -> None:
    atlas = nib.load("atlas.nii.gz")
    labels = np.asarray(atlas.dataobj)
    nib.save(nib.Nifti1Image(np.where(labels == 2001, 9, labels), AFFINE), "other.nii.gz")
    nib.save(nib.Nifti1Image(np.where(labels == 2001, 0, labels), AFFINE), "fewer.nii.gz")
    if spoil is not None:
        entries = scans()
        spoil(entries)
        Path("abide.pickle").write_bytes(pickle.dumps(entries))
    usual = "--data_file abide.pickle --atlas atlas.nii.gz -o painted"
    status, _, err = run(f"{usual} {words}")
    assert status == 2 and message in err and err.count("\n") == 1, err


def test_a_tr_that_is_given_is_that_of_scans_without_one(run: Run) -> None:
    entries = scans()
    forget_tr(entries)
    Path("abide.pickle").write_bytes(pickle.dumps(entries))
    assert run("--data_file abide.pickle --atlas atlas.nii.gz -o painted --tr 2.5")[0] == 0
    rates = [bold(one["pheno"]["subjectId"]).header.get_zooms()[3] for one in entries]
    assert rates[0] == 2.5 and rates[1:] == [one["pheno"]["tr"] for one in entries[1:]]
