"""What the page of a class says of scans that have no attribution."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.registry import DatasetDetails
from neuromamba.data.regions.scan import Scan
from neuromamba.neurossm.attribution import Attribution
from neuromamba.neurossm.attribution_files import ScanMap
from neuromamba.neurossm.attribution_report import write_pages

SCANS, REGIONS = 4, 5
DETAILS = DatasetDetails("folder/people.pickle", None, None, (), "kind", {}, ("a", "b"), 10)


def page(folder: Path, without: int) -> str:
    """Of scans of class a, the first ones of which have weights of 0."""
    rng = np.random.default_rng(0)
    series = np.zeros((REGIONS, 20), np.float32)
    scans = tuple(Scan(f"s{i}", f"s{i}", 0, series, f"s{i}") for i in range(SCANS))
    maps = []
    for i in range(SCANS):
        weights = np.zeros(2) if i < without else np.array([0.25, 0.75])
        path_maps = rng.random((2, REGIONS))
        path_maps /= path_maps.sum(axis=1, keepdims=True)
        cpa = weights @ path_maps
        maps.append(
            ScanMap(
                *(f"s{i}", f"s{i}", 0, 0, 0, np.array([0.9, 0.1]), np.zeros(2)),
                *(np.array(["raw_2", "second_order"]), path_maps, weights - 0.1, weights, cpa),
                *(np.ones(REGIONS, int), "", np.arange(1, REGIONS + 1), "mean", "integrated"),
                np.array(["a", "b"]),
            )
        )
    cpa = rng.random((SCANS, REGIONS))
    chance = Attribution(*(np.zeros(0),) * 5, cpa, np.zeros(0))
    write_pages(folder, Cohort("Own", DETAILS, scans), maps, chance, None)
    return re.sub(r"\s+", " ", (folder / "a.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("without", "said", "unsaid"),
    [
        (0, f"CPA adds up to 1 over the {REGIONS} regions; 0.2000 is even.", "lowers the logit"),
        (3, f"over the {REGIONS} regions; in this mean, 0.0500 is even.", "0.2000 is even"),
        (4, "lowers the logit: CPA is 0 everywhere.", "is even"),
    ],
)
def test_scans_without_attribution_are_counted(
    tmp_path: Path, without: int, said: str, unsaid: str
) -> None:
    html = page(tmp_path, without)
    assert said in html and unsaid not in html
    assert (f"In {without} of the 4 scans no pathway" in html.replace("&#39;", "'")) == (
        without > 0
    )
    assert "CPA: a (people.pickle)" in html
