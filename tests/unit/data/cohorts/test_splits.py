"""Splits: sizes, independence of order, files, and the refusal of anything that could leak."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.cohorts.split_files import load_or_draw_split, read_split_txt, write_split_txt
from neuromamba.data.cohorts.splits import PARTS, Grouping, Split, draw_split

NAMES = [f"sub-{i:03d}" for i in range(50)]


def sizes(split: Split) -> tuple[int, int, int]:
    return len(split.train), len(split.val), len(split.test)


@pytest.mark.parametrize(
    ("n", "train", "val", "expected"),
    [
        (50, 0.8, 0.1, (40, 5, 5)),
        (10, 0.8, 0.1, (8, 1, 1)),
        (3, 0.8, 0.1, (1, 1, 1)),
        (4, 0.8, 0.1, (2, 1, 1)),
        (4, 0.75, 0.25, (3, 1, 0)),
        (5, 0.8, 0.0, (4, 0, 1)),
        (7, 1.0, 0.0, (7, 0, 0)),
        (1113, 0.8, 0.1, (891, 111, 111)),
    ],
)
def test_sizes(n, train, val, expected):
    split = draw_split([str(i) for i in range(n)], 1, train, val)
    assert sizes(split) == expected
    assert set(split.subjects) == {str(i) for i in range(n)}


def test_too_few_subjects():
    with pytest.raises(UserInputError, match=r"2 subject\(s\) cannot fill the 3 parts"):
        draw_split(["a", "b"], 1, 0.8, 0.1)


@pytest.mark.parametrize(("train", "val"), [(0.0, 0.1), (0.9, 0.2), (0.5, -0.1)])
def test_bad_fractions(train, val):
    with pytest.raises(UserInputError, match="--train_split/--val_split"):
        draw_split(NAMES, 1, train, val)


def test_depends_on_the_number_not_on_order_or_repetition():
    split = draw_split(NAMES, 1, 0.8, 0.1)
    assert draw_split(NAMES[::-1] + NAMES[:7], 1, 0.8, 0.1) == split
    other = draw_split(NAMES, 2, 0.8, 0.1)
    assert other.test != split.test
    assert other.hash != split.hash


def test_hash_ignores_order_within_a_part_only():
    assert Split(("a", "b"), ("c",), ()).hash == Split(("b", "a"), ("c",), ()).hash
    assert Split(("a", "b"), ("c",), ()).hash != Split(("a",), ("b", "c"), ()).hash
    assert len(Split(("a",), (), ()).hash) == 16


def test_overlap_is_refused():
    with pytest.raises(UserInputError, match=r"more than once.*: b"):
        Split(("a", "b"), ("c",), ("b",))


def test_restricted_to_moves_nobody():
    split = draw_split(NAMES, 1, 0.8, 0.1)
    kept = split.restricted_to(set(NAMES) - {split.train[0], split.test[0]})
    assert kept == Split(split.train[1:], split.val, split.test[1:])


def test_text_file(tmp_path):
    split = draw_split(NAMES, 3, 0.8, 0.1)
    path = tmp_path / "split.txt"
    write_split_txt(path, split)
    lines = path.read_text().splitlines()
    assert lines[0] == "train_subjects"
    assert lines[41] == "val_subjects"
    assert lines[47] == "test_subjects"
    assert read_split_txt(path) == split
    assert [p.name for p in tmp_path.iterdir()] == ["split.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\ntrain_subjects\nb\n", "line 1: found 'a'"),
        ("val_subjects\na\n", "no training subjects"),
        ("", "no training subjects"),
        ("train_subjects\na\nb\nval_subjects\nb\n", "more than once.*: b"),
    ],
)
def test_malformed_text_file(tmp_path, text, message):
    path = tmp_path / "split_fixed_1.txt"
    path.write_text(text)
    with pytest.raises(UserInputError, match=message) as caught:
        read_split_txt(path)
    assert str(path) in str(caught.value)


def test_drawn_once_then_read(tmp_path):
    first = load_or_draw_split(tmp_path, "Dummy", NAMES, 4, 0.8, 0.1)
    record = json.loads((tmp_path / "splits" / "split_fixed_4.json").read_text())
    assert record["hash"] == first.hash
    assert (record["train_fraction"], record["val_fraction"]) == (0.8, 0.1)
    assert sorted(p.name for p in (tmp_path / "splits").iterdir()) == [
        "split_fixed_4.json",
        "split_fixed_4.txt",
    ]
    # The file rules, not the seed: move one subject by hand (the JSON objects).
    moved = Split(first.train[1:], first.val, (*first.test, first.train[0]))
    write_split_txt(tmp_path / "splits" / "split_fixed_4.txt", moved)
    with pytest.raises(UserInputError, match="edited"):
        load_or_draw_split(tmp_path, "Dummy", NAMES, 4, 0.8, 0.1)
    (tmp_path / "splits" / "split_fixed_4.json").unlink()
    assert load_or_draw_split(tmp_path, "Dummy", NAMES, 4, 0.8, 0.1) == moved


def test_other_fractions_are_refused(tmp_path):
    load_or_draw_split(tmp_path, "Dummy", NAMES, 1, 0.8, 0.1)
    with pytest.raises(
        UserInputError,
        match=r"^--train_split: .* with --train_split 0.8, but .* 0.7\.",
    ):
        load_or_draw_split(tmp_path, "Dummy", NAMES, 1, 0.7, 0.1)
    load_or_draw_split(tmp_path, "Dummy", NAMES, 2, 0.7, 0.1)


def test_all_that_differs_is_told_at_once(tmp_path):
    load_or_draw_split(tmp_path, "Dummy", NAMES, 1, 0.8, 0.1)
    other = Grouping(family_column="Family_ID", stratify_by=("SITE", "SEX"))
    with pytest.raises(UserInputError) as found:
        load_or_draw_split(tmp_path, "Dummy", NAMES, 1, 0.7, 0.2, grouping=other)
    message = str(found.value)
    assert message.startswith("--train_split/--val_split/--family_column/--stratify_by: ")
    drawn = "--train_split 0.8, --val_split 0.1, no --family_column, no --stratify_by"
    asked = "--train_split 0.7, --val_split 0.2, --family_column Family_ID, --stratify_by SITE SEX"
    assert f"drawn with {drawn}, but asked for was {asked}." in message


def test_new_subjects_in_the_store_are_listed(tmp_path):
    load_or_draw_split(tmp_path, "Dummy", NAMES, 1, 0.8, 0.1)
    added = [f"new{i:02d}" for i in range(12)]
    with pytest.raises(UserInputError, match=r"12 subject\(s\).*new00.*new09 and 2 more"):
        load_or_draw_split(tmp_path, "Dummy", NAMES + added, 1, 0.8, 0.1)


def test_reference_file_with_absent_subjects_and_without_prefix(tmp_path, caplog):
    folder = tmp_path / "splits"
    folder.mkdir()
    split = Split(("001", "002", "900"), ("003",), ("004",))
    write_split_txt(folder / "split_fixed_1.txt", split)
    store = ["sub-001", "sub-002", "sub-003", "sub-004"]
    with caplog.at_level(logging.INFO):
        found = load_or_draw_split(tmp_path, "S1200", store, 1, 0.8, 0.1)
    assert found == Split(("sub-001", "sub-002"), ("sub-003",), ("sub-004",))
    assert "1 subject(s) not in the store: 900" in caplog.text


def test_dry_run_writes_nothing(tmp_path):
    split = load_or_draw_split(tmp_path, "Dummy", NAMES, 1, 0.8, 0.1, write=False)
    assert split == draw_split(NAMES, 1, 0.8, 0.1)
    assert not list(tmp_path.iterdir())


def test_store_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "splits").write_text("a file where the folder should go")
    split = load_or_draw_split(tmp_path, "Dummy", NAMES, 1, 0.8, 0.1)
    assert split == draw_split(NAMES, 1, 0.8, 0.1)
    assert "not kept" in caplog.text


# ------------------------------------------------------------------------- families and strata


def family_of(names: list[str], size: int) -> dict[str, str]:
    return {name: f"f{i // size}" for i, name in enumerate(names)}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_families_stay_together(size: int) -> None:
    names = [f"s{i:03d}" for i in range(200)]
    family = family_of(names, size)
    grouping = Grouping(family_column="Family_ID", family=family)
    split = draw_split(names, 1, 0.8, 0.1, grouping)
    assert sorted(split.subjects) == names
    parts = [{family[name] for name in getattr(split, part)} for part in PARTS]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert [len(getattr(split, part)) for part in PARTS] == pytest.approx([160, 20, 20], abs=size)
    assert draw_split(reversed(names), 1, 0.8, 0.1, grouping) == split
    assert draw_split(names, 2, 0.8, 0.1, grouping) != split


def test_a_subject_without_family_stands_alone() -> None:
    names = [f"s{i}" for i in range(30)]
    # A family may be called as a subject is.
    grouping = Grouping(family={"s1": "s2", "s3": "s2"})
    split = draw_split(names, 5, 0.5, 0.2, grouping)
    assert sorted(split.subjects) == sorted(names)
    assert sum({"s1", "s3"} <= set(getattr(split, part)) for part in PARTS) == 1


def test_strata_are_spread_evenly() -> None:
    sites = {"a": 100, "b": 40, "c": 13, "d": 4, "e": 1}
    names = [f"{site}{i:03d}" for site, n in sites.items() for i in range(n)]
    grouping = Grouping(stratify_by=("SITE_ID",), stratum={name: name[0] for name in names})
    for number in range(5):
        split = draw_split(names, number, 0.8, 0.1, grouping)
        for part, share in zip(PARTS, (0.8, 0.1, 0.1), strict=True):
            for site, n in sites.items():
                found = sum(name[0] == site for name in getattr(split, part))
                assert abs(found - share * n) < 1.3, (part, site)
        assert [len(getattr(split, part)) for part in PARTS] == pytest.approx([126, 16, 16], abs=1)


def test_files_remember_what_was_grouped(tmp_path: Path) -> None:
    names = [f"s{i:02d}" for i in range(20)]
    family = Grouping(family_column="Family_ID", family=family_of(names, 2))

    def load(grouping: Grouping) -> Split:
        return load_or_draw_split(tmp_path, "Own", names, 1, 0.8, 0.1, grouping=grouping)

    drawn = load(family)
    assert load(family) == drawn
    with pytest.raises(UserInputError, match=r"drawn with --family_column Family_ID, but .* no --"):
        load(Grouping())
    with pytest.raises(UserInputError, match=r"no --stratify_by, but .* --stratify_by SITE\."):
        load(dataclasses.replace(family, stratify_by=("SITE",)))
    load(Grouping(split_unit="run"))
    assert (tmp_path / "splits" / "split_fixed_1_by_run.txt").exists()
    # A file of the reference, without JSON, may divide a family.
    (tmp_path / "splits" / "split_fixed_1.json").unlink()
    mixed = Split(tuple(names[0:16]), tuple(names[16:17]), tuple(names[17:]))
    write_split_txt(tmp_path / "splits" / "split_fixed_1.txt", mixed)
    with pytest.raises(UserInputError, match="members of 1 families into different parts: f8"):
        load(family)


def test_too_few_families() -> None:
    names = [f"s{i}" for i in range(8)]
    with pytest.raises(UserInputError, match="8 subjects in 2 families cannot fill"):
        draw_split(names, 1, 0.8, 0.1, Grouping(family=family_of(names, 4)))
