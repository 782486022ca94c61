"""What a page about attribution claims, and how it names regions."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from neuromamba.data.regions.atlases import Atlas
from neuromamba.neurossm.attribution_files import ScanMap
from neuromamba.neurossm.attribution_report import _learned, region_names


def scan(label: int, probability: float) -> ScanMap:
    """A scan whose true class has this probability."""
    probs = np.array([1 - probability, probability])[:: 1 if label else -1]
    none = np.zeros(0)
    return ScanMap(
        "s", "s", label, int(probs.argmax()), 0, probs, none, none, none, none, none, none, none,
        "", none, "", "", none,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("probabilities", "explained"), [([0.5] * 40, 20), ([0.9, 0.05] * 10, 20), ([0.5, 0.4], 1)]
)
def test_a_model_at_chance_has_learned_nothing(probabilities: list[float], explained: int) -> None:
    maps = [scan(i // 2 % 2, p) for i, p in enumerate(probabilities)]
    said = _learned(maps, explained, 0.02)
    assert "is not better than chance" in said and "shows what was learned" not in said


@pytest.mark.parametrize(("explained", "words"), [(1, "With one scan"), (9, "With 9 scans")])
def test_few_scans_show_nothing(explained: int, words: str) -> None:
    said = _learned([scan(i % 2, 0.9) for i in range(20)], explained, 0.02)
    assert words in said and "shows what was learned" not in said


def test_a_map_of_many_scans_of_a_good_model() -> None:
    said = _learned([scan(i % 2, 0.9) for i in range(20)], 10, 0.02)
    assert "rank correlation of 0.02" in said and "shows what was learned" in said


def atlas(*names: str) -> Atlas:
    volume = np.zeros((9, 9, 9), np.int16)
    volume[0, 4, 4], volume[8, 4, 4], volume[4, 4, 8] = 1, 2, 3
    affine = np.diag([5.0, 5, 5, 1])
    affine[:3, 3] = -20
    ids = tuple(range(1, len(names) + 1))
    return Atlas("six", nib.Nifti1Image(volume, affine), ids, names)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("Hippocampus_L", "Putamen_R"), ("Hippocampus_L", "Putamen_R")),
        (
            ("1", "2", "3"),
            (
                "region 1, left (-20, 0, 0)",
                "region 2, right (20, 0, 0)",
                "region 3, midline (0, 0, 20)",
            ),
        ),
        (("1", "2", "3", "4"), None),
    ],
)
def test_regions_have_names(names: tuple[str, ...], shown: tuple[str, ...] | None) -> None:
    found = region_names(atlas(*names), range(1, len(names) + 1))
    assert found == shown if shown else found[-1] == "region 4, not in the image"


def test_without_an_atlas_regions_are_numbered() -> None:
    assert region_names(None, [4, 7]) == ("region 4", "region 7")
