"""Splits for many sites: stratified by columns, and each site left out in turn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.holdout import splits_of
from neuromamba.data.regions.registry import DatasetDetails
from neuromamba.data.regions.scan import Scan

DETAILS = DatasetDetails("x.pickle", None, None, (), "kind", {}, ("a", "b"), 10)
SITES = {"NYU": 60, "UM_1": 30, "Leuven 2": 20, "SBL": 10}


def cohort_of(scans_each: int = 1, **columns: list[Any]) -> Cohort:
    """Subjects of sites with different shares of the classes."""
    rng = np.random.default_rng(0)
    scans, rows = [], []
    number = 0
    for place, (site, size) in enumerate(SITES.items()):
        for i in range(size):
            label = int(i % (place + 2) == 0)
            name = f"s{number:03d}"
            for k in range(scans_each):
                series = np.zeros((2, 4), np.float32)
                scans.append(Scan(name, f"{name}_{k}", label, series, name))
                own = {key: values[number] for key, values in columns.items()}
                rows.append({"site": site, "age": 20 + rng.random() * 40, **own})
            number += 1
    return Cohort("Own", DETAILS, tuple(scans), rows=tuple(rows))


def shares(cohort: Cohort, test: np.ndarray) -> Counter[tuple[str, int]]:
    return Counter((cohort.rows[i]["site"], cohort.scans[i].label) for i in test)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scans_each", [1, 2])
def test_parts_have_the_shares_of_site_and_class(seed: int, scans_each: int) -> None:
    cohort = cohort_of(scans_each)
    whole = shares(cohort, np.arange(len(cohort.scans)))
    splits = splits_of(cohort, seed, 4, stratify_by=["site"])
    for split in splits:
        found = shares(cohort, split.test)
        share = len(split.test) / len(cohort.scans)
        for key, count in whole.items():
            if count >= 20 * scans_each:
                assert abs(found[key] - share * count) <= 1.5 * scans_each, (split.name, key)
    plain = splits_of(cohort, seed, 4)
    assert not all(np.array_equal(a.test, b.test) for a, b in zip(splits, plain, strict=True))


def test_numbers_count_by_quarters() -> None:
    cohort = cohort_of()
    ages = np.array([row["age"] for row in cohort.rows])
    edges = np.quantile(ages, (0.25, 0.5, 0.75))
    spread = []
    for columns in ((), ("age",)):
        split = splits_of(cohort, 0, 4, False, stratify_by=columns)[-1]
        counts = np.bincount(np.searchsorted(edges, ages[split.test]), minlength=4)
        spread.append(int(np.ptp(counts)))
    assert spread[1] <= 2 < spread[0]


def test_rare_values_and_empty_cells_do_not_stop_the_split() -> None:
    values = ["" if i % 9 == 0 else f"v{i}" if i % 10 == 1 else "usual" for i in range(120)]
    splits = splits_of(cohort_of(scanner=values), 0, 5, stratify_by=["scanner", "site"])
    assert len(splits) == 6


def test_each_site_is_tested_by_a_model_of_the_others() -> None:
    cohort = cohort_of(2)
    splits = splits_of(cohort, 0, 5, leave_out="site")
    names = [split.name for split in splits]
    assert names == ["without_Leuven-2", "without_NYU", "without_SBL", "without_UM_1", "holdout"]
    for split, site in zip(splits, ("Leuven 2", "NYU", "SBL", "UM_1"), strict=False):
        assert {cohort.rows[i]["site"] for i in split.test} == {site}
        assert len(split.train) + len(split.test) == len(cohort.scans)
        assert site not in {cohort.rows[i]["site"] for i in split.train}
    plain = splits_of(cohort, 0, 5, False)[-1]
    assert np.array_equal(splits[-1].test, plain.test)


def test_a_site_of_one_class_cannot_be_tested_and_stays_in_training() -> None:
    cohort = cohort_of()
    one = cohort.scans[-1]
    scans = (*cohort.scans[:-10], *(s._replace(label=one.label) for s in cohort.scans[-10:]))
    cohort = Cohort("Own", DETAILS, scans, rows=cohort.rows)
    names = [split.name for split in splits_of(cohort, 0, 5, leave_out="site")]
    assert names == ["without_Leuven-2", "without_NYU", "without_UM_1", "holdout"]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("nowhere", None, r"^--leave_out: there is no column 'nowhere' in"),
        ("cut", ["" if i < 3 else "xy"[i % 2] for i in range(120)], r"3 of 120 scans have no"),
        ("same", ["x"] * 120, r"1 values have scans of every class"),
        ("alike", [f"{'a b' if i % 2 else 'a-b'}" for i in range(120)], r"differ in letters"),
    ],
)
def test_columns_that_cannot_be_left_out(column: str, values: Any, message: str) -> None:
    cohort = cohort_of(**({} if values is None else {column: values}))
    with pytest.raises(UserInputError, match=message):
        splits_of(cohort, 0, 5, leave_out=column)


def test_a_subject_of_two_sites_cannot_be_left_out() -> None:
    cohort = cohort_of(2)
    rows = ({**cohort.rows[0], "site": "SBL"}, *cohort.rows[1:])
    with pytest.raises(UserInputError, match=r"'s000' has scans of 'SBL' and of 'NYU'"):
        splits_of(Cohort("Own", DETAILS, cohort.scans, rows=rows), 0, 5, leave_out="site")
