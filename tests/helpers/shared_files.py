"""Some of the shared real data by name: what else lies in their folder has no say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

GIFT = tuple(f"sub-{number}_lowres.nii" for number in ("007", "018", "067", "107"))
EDGE_CASES = tuple(f"{name}.nii.gz" for name in ("echo1", "example4d", "fmri1", "functional"))


def linked(source: Path, names: Sequence[str], target: Path) -> Path:
    """A folder of links to the named files; the test is skipped where one of them is absent.

    Args:
        source: folder of the shared data.
        names: files in it.
        target: the folder to make.
    """
    absent = [name for name in names if not (source / name).is_file()]
    if absent:
        pytest.skip(f"no real data: {source / absent[0]} is absent")
    target.mkdir(parents=True)
    for name in names:
        (target / name).symlink_to(source / name)
    return target
