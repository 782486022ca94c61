"""New splits have every class in every part where there are subjects enough; old ones stay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neuromamba.config.data import DataConfig
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.cohorts.cohort_store import Store
from neuromamba.data.cohorts.open_store import open_store
from neuromamba.data.cohorts.split_files import read_split_txt
from neuromamba.data.cohorts.splits import Grouping, absent_classes, draw_split
from tests.helpers.store_files import write_store_file

GRID = (2, 2, 2)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Twenty subjects, of whom four are male: most draws of two test subjects lack a class."""
    rng = np.random.default_rng(0)
    (tmp_path / "hdf5").mkdir()
    rows = ["subject,sex,age"]
    for number in range(20):
        name = f"sub-{number:02d}"
        rows.append(f"{name},{'M' if number % 5 == 0 else 'F'},{20 + number}")
        write_store_file(
            tmp_path / "hdf5" / f"{name}_task-rest.h5",
            rng.normal(100, 5, (3, 8)).astype(np.float32),
            np.arange(8),
            grid=GRID,
            affine=np.diag([-2.0, 2.0, 2.0, 1.0]),
            tr=2.0,
            subject=name,
        )
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "subjects.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def opened(store: Path, task: str | None = "sex", number: int = 1, write: bool = True) -> Store:
    config = DataConfig(
        dataset_name=("Dummy",), image_path=(str(store),), grid=GRID, dataset_split_num=number
    )
    wanted = None if task is None else DownstreamConfig(task=task)
    return open_store("Dummy", str(store), config=config, task=wanted, write_split=write)


@pytest.mark.parametrize("number", range(1, 7))
def test_every_part_of_a_new_split_has_every_class(
    store: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    found = opened(store, number=number)
    assert not absent_classes(found.split, found.labels)
    plain = draw_split(found.split.subjects, number, 0.8, 0.1)
    record = json.loads((store / "splits" / f"split_fixed_{number}.json").read_text())
    if absent_classes(plain, found.labels):
        assert record["stratified_by_target"] == "sex" and record["stratify_by"] == []
        assert "has no subject of male; the split is drawn stratified by sex" in caplog.text
    else:  # as before
        assert found.split == plain and "stratified_by_target" not in record
    # Drawn again, it is used as it is, and it is the same where nothing could be written.
    assert opened(store, number=number).split == found.split
    for file in (store / "splits").iterdir():
        file.unlink()
    assert opened(store, number=number, write=False).split == found.split


def test_some_of_these_draws_would_lack_a_class() -> None:
    """The test above has both cases."""
    classes = {f"sub-{number:02d}": int(number % 5 == 0) for number in range(20)}
    lacking = [bool(absent_classes(draw_split(classes, n, 0.8, 0.1), classes)) for n in range(1, 7)]
    assert any(lacking)


@pytest.mark.parametrize("task", [None, "age"])
def test_other_tasks_are_drawn_as_before(store: Path, task: str | None) -> None:
    found = opened(store, task)
    assert found.split == draw_split(found.split.subjects, 1, 0.8, 0.1)


def test_a_split_that_exists_stays(store: Path) -> None:
    before = next(
        found.split
        for number in range(1, 20)
        if absent_classes((found := opened(store, None, number)).split, classes_of(found))
    )
    number = next(
        n
        for n in range(1, 20)
        if (path := store / "splits" / f"split_fixed_{n}.txt").exists()
        and read_split_txt(path) == before
    )
    assert opened(store, "sex", number).split == before


def classes_of(store: Store) -> dict[str, int]:
    return {name: int(int(name[-2:]) % 5 == 0) for name in store.split.subjects}


@pytest.mark.parametrize("rare", [3, 4, 7])
def test_a_rare_class_is_in_every_part(rare: int) -> None:
    classes = {f"s{i:03d}": int(i < rare) for i in range(60)}
    for number in range(5):
        grouping = Grouping(target="sex", classes=classes)
        split = draw_split(classes, number, 0.8, 0.1, grouping)
        assert not absent_classes(split, classes)
        assert set(split.subjects) == set(classes) and abs(len(split.train) - 48) <= 2
        assert split == draw_split(classes, number, 0.8, 0.1, grouping)


def test_families_stay_whole() -> None:
    classes = {f"s{i:03d}": int(i < 8) for i in range(40)}
    family = {name: str(i // 2) for i, name in enumerate(classes)}
    split = draw_split(classes, 3, 0.8, 0.1, Grouping(family=family, target="sex", classes=classes))
    assert not absent_classes(split, classes)
    for part in (split.train, split.val, split.test):
        assert not {family[n] for n in part} & {family[n] for n in set(split.subjects) - set(part)}


def test_a_class_too_rare_for_every_part_is_drawn_as_before() -> None:
    classes = {f"s{i:03d}": int(i < 2) for i in range(30)}
    split = draw_split(classes, 1, 0.8, 0.1, Grouping(target="sex", classes=classes))
    assert split == draw_split(classes, 1, 0.8, 0.1) and absent_classes(split, classes)


@pytest.mark.parametrize("subjects", [6, 7, 9])
def test_few_subjects_fill_every_part(subjects: int) -> None:
    """A stratified draw of six may leave a part empty; then another one is found."""
    classes = {f"s{i}": i % 2 for i in range(subjects)}
    for number in range(8):
        split = draw_split(classes, number, 0.5, 0.25, Grouping(target="sex", classes=classes))
        assert split.train and split.val and split.test
        if subjects > 8:
            assert not absent_classes(split, classes)
