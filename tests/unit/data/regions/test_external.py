"""An external cohort: read as the data set is, and checked for leaks against it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.dataset import load_cohort
from neuromamba.data.regions.external import load_external
from neuromamba.data.regions.registry import details_of

ROIS, FRAMES = 5, 40


def write(path: Path, prefix: str, seed: int, *, rois: int = ROIS, groups: str = "ab") -> list[Any]:
    rng = np.random.default_rng(seed)
    scans = [
        {
            "roiTimeseries": rng.normal(size=(rois, FRAMES)).cumsum(1).astype(np.float32),
            "pheno": {"subjectId": f"{prefix}{i}", "group": groups[i % len(groups)]},
        }
        for i in range(8)
    ]
    path.write_bytes(pickle.dumps(scans))
    return scans


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    write(tmp_path / "own.pickle", "s", 0)
    details = details_of("Own", "own.pickle", "group", 20)
    return load_cohort("Own", details, tmp_path, data_file=tmp_path / "own.pickle")


def read(cohort: Cohort, folder: Path, **options: Any) -> Cohort:
    return load_external(cohort, folder / "other.pickle", folder / "own.pickle", **options)


def test_it_has_the_classes_of_the_data_set(cohort: Cohort, tmp_path: Path) -> None:
    write(tmp_path / "other.pickle", "x", 1, groups="b")
    found = read(cohort, tmp_path)
    assert found.labels.tolist() == [1] * 8 and found.details.classes == ("a", "b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prefix": "s"}, r"^--test_data: '.*other.pickle' has scans of 8 subjects that are in"),
        ({"prefix": "sub-S0"}, r"^--test_data: .* has scans of 's0' and 'sub-S00', who seem to"),
        ({"groups": "abc"}, r"^--test_data: .* has the classes c of 'group', expected .*: a, b"),
        ({"rois": 6}, r"^--test_data: .*6 x 40 numbers, expected 5 regions x time"),
    ],
)
def test_what_is_refused(
    cohort: Cohort, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    write(tmp_path / "other.pickle", **{"prefix": "x", "seed": 1, **given})
    with pytest.raises(UserInputError, match=message):
        read(cohort, tmp_path)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_copy_under_another_name_is_refused(cohort: Cohort, tmp_path: Path, scale: float) -> None:
    scans = write(tmp_path / "other.pickle", "x", 1)
    scans[3]["roiTimeseries"] = cohort.scans[2].series * np.float32(scale)
    (tmp_path / "other.pickle").write_bytes(pickle.dumps(scans))
    with pytest.raises(UserInputError, match=r"^--test_data: .*same values.* in scans s2 and x3"):
        read(cohort, tmp_path)


def test_names_of_regions_must_agree(cohort: Cohort, tmp_path: Path) -> None:
    write(tmp_path / "other.pickle", "x", 1)
    names = [f"r{i}" for i in range(ROIS)]
    (tmp_path / "own.json").write_text(json.dumps({"regions": names}))
    (tmp_path / "other.json").write_text(json.dumps({"regions": names}))
    assert len(read(cohort, tmp_path).scans) == 8
    (tmp_path / "other.json").write_text(json.dumps({"regions": [*names[:3], "r4", "r3"]}))
    with pytest.raises(UserInputError, match=r"has 'r4' as region 4, expected 'r3' \(by"):
        read(cohort, tmp_path)
    (tmp_path / "other.json").write_text("[]")  # no record: nothing is known of the regions
    assert len(read(cohort, tmp_path).scans) == 8
