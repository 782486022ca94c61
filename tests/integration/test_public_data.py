"""The folders that nilearn's fetchers leave, in miniature: converted, labelled, trained."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from nilearn.datasets import func

from neuromamba.commands import preprocess as preprocessing
from neuromamba.commands.train import run
from neuromamba.data.cohorts.labels import read_labels
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.store.reader import list_runs, read_header
from tests.helpers.scans import SHAPE, save, scan

N = 12


def development(root: Path) -> Path:
    """As ``fetch_development_fmri`` names its files; some columns of its table."""
    folder = root / "development_fmri" / "development_fmri"
    rows = ["participant_id\tAge\tAgeGroup\tChild_Adult\tGender\tHandedness"]
    for i in range(N):
        name = f"sub-pixar{i + 1:03d}"
        group = ("child", "4yo") if i % 2 else ("adult", "Adult")
        rows.append(f"{name}\t{4.5 + i}\t{group[1]}\t{group[0]}\t{'FM'[i // 2 % 2]}\tR")
        stem = f"{name}_task-pixar_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
        save(folder / stem, scan(i))
        (folder / f"{name}_task-pixar_desc-confounds_regressors.tsv").write_text("trans_x\n0\n")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root / "development_fmri"


def adhd(root: Path) -> Path:
    """As ``fetch_adhd`` names its files; the table drops the zeros of the subjects."""
    folder = root / "adhd" / "data"
    rows = ["Subject,RestScan,site,age,sex,full_4_iq,tdc,adhd"]
    for i in range(N):
        number = 10042 + 7 * i
        rows.append(f"{number},rest_1,NYU,{8.5 + i},{'FM'[i % 2]},{100 + i},{1 - i % 2},{i % 2}")
        name = f"{number:07d}"
        save(folder / name / f"{name}_rest_tshift_RPI_voreg_mni.nii.gz", scan(i))
        (folder / name / f"{name}_regressors.csv").write_text("csf\n0\n")
    table = "ADHD200_40subs_motion_parameters_and_phenotypics.csv"
    (folder.parent / table).write_text("\n".join(rows) + "\n")
    return root / "adhd"


def convert(source: Path, store: Path, dataset: str) -> None:
    size = " ".join(map(str, SHAPE))
    flags = f"--input {source} --output {store} --img_size {size} --dataset_name {dataset} --tr 2"
    assert preprocessing.main(flags.split()) == 0


def labels(store: Path, dataset: str, task: str) -> list[int | float]:
    subjects = [read_header(path).subject for path in list_runs(store)]
    assert len(set(subjects)) == N
    return list(read_labels(DATASETS[dataset], store, task, subjects).values())


def test_development_fmri(tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert(development(tmp_path), store, "DevelopmentFMRI")
    assert labels(store, "DevelopmentFMRI", "age_group") == [1, 0] * (N // 2)
    assert labels(store, "DevelopmentFMRI", "age") == [4.5 + i for i in range(N)]
    assert labels(store, "DevelopmentFMRI", "sex") == [0, 0, 1, 1] * (N // 4)
    size = " ".join(map(str, SHAPE))
    flags = (
        f"--dataset_name DevelopmentFMRI --image_path {store} --downstream_task age_group "
        f"--img_size {size} 4 --patch_size 2 2 2 2 --embed_dim 16 --depth 1 --max_steps 1 "
        f"--train_split 0.5 --val_split 0.25 --stratify_by Child_Adult --accelerator cpu "
        f"--output_dir {tmp_path / 'run'}"
    )
    assert 0 <= run(flags.split())["test/accuracy"] <= 1


def test_adhd(tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert(adhd(tmp_path), store, "ADHD200")
    assert labels(store, "ADHD200", "diagnosis") == [0, 1] * (N // 2)
    assert labels(store, "ADHD200", "sex") == [0, 1] * (N // 2)
    assert labels(store, "ADHD200", "intelligence") == [100.0 + i for i in range(N)]


def test_a_table_of_ones_own_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, store = development(tmp_path), tmp_path / "store"
    (store / "metadata").mkdir(parents=True)
    (store / "metadata" / "participants.tsv").write_text("participant_id\tAge\nmine\t1\n")
    convert(source, store, "DevelopmentFMRI")
    assert "participants.tsv differs from" in capsys.readouterr().out
    assert "mine" in (store / "metadata" / "participants.tsv").read_text()
    (source / "other").mkdir()
    (source / "other" / "participants.tsv").write_text("participant_id\n")
    (store / "metadata" / "participants.tsv").unlink()
    convert(source, store, "DevelopmentFMRI")
    assert "2 different participants.tsv" in capsys.readouterr().out
    assert not (store / "metadata" / "participants.tsv").exists()


def test_the_names_are_those_of_nilearn() -> None:
    """The miniatures are only worth something as long as the fetchers use these names."""
    source = inspect.getsource(func)
    for name in (
        "{0}_task-pixar_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz",
        "data/{i}/{i}_rest_tshift_RPI_voreg_mni.nii.gz",
        "ADHD200_40subs_motion_parameters_and_phenotypics.csv",
        '"Child_Adult"',
    ):
        assert name in source
