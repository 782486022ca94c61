"""Checks that no scan can be trained on under one name and tested under another.

Groups (subjects, or families) are what splits keep together; a leak is between two of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neuromamba.common.errors import see
from neuromamba.common.text import plain_subject, some_of
from neuromamba.data.regions.scan import Scan
from neuromamba.data.regions.scan_files import ScanFile

_REGIONS = 32  # compared of each scan; two scans do not agree in them by chance
_SAME = 0.999  # correlation over regions and frames; scans of one subject have far less
_FEWEST = 64  # values of a scan; fewer may agree by chance, and only equal ones are copies
# Columns that name families, in the tables of HCP and ABCD and by their own name.
FAMILY_COLUMNS = ("Family_ID", "Mother_ID", "rel_family_id", "family_id", "family", "Family")


class Copy(NamedTuple):
    """Two scans with the same values.

    Attributes:
        first, second: their places among the scans, in this order.
        exact: whether the values are equal; else offset and unit of regions differ.
    """

    first: int
    second: int
    exact: bool


def find_copies(series: Sequence[np.ndarray]) -> list[Copy]:
    """Compare the values of all scans, whatever their names, offsets and units.

    Args:
        series: [N, T] of each scan.

    Returns:
        For every scan that is a copy of an earlier one, the first of these; in the scans' order.
    """
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, one in enumerate(series):
        if np.ptp(one):  # nothing but one value is reported as constant
            by_shape[one.shape].append(place)
    copies = []
    for (regions, _), alike in by_shape.items():
        chosen = np.unique(np.linspace(0, regions - 1, _REGIONS).astype(int))
        prints = np.stack([_fingerprint(series[place][chosen]) for place in alike])
        for i in range(1, len(alike)):
            for j in np.flatnonzero(prints[:i] @ prints[i] > _SAME):
                one, other = series[alike[j]], series[alike[i]]
                exact = np.array_equal(one, other)
                if exact or prints.shape[1] >= _FEWEST:
                    copies.append(Copy(alike[j], alike[i], exact))
                    break
    return sorted(copies, key=lambda copy: copy.second)


def check_copies(scans: Sequence[Scan], file: ScanFile) -> list[str]:
    """Refuse copies in two groups, by ``find_copies``.

    Returns:
        Notes about copies within a group, which stay together.

    Raises:
        UserInputError: scans of two groups are copies.
    """
    copies = find_copies([scan.series for scan in scans])
    for copy in copies:
        _same(scans[copy.first], scans[copy.second], file, copy.exact)
    names = [scans[copy.second].scan for copy in copies]
    return [f"{len(names)} scans are copies of others ({some_of(names)})."] if names else []


def _fingerprint(series: np.ndarray) -> np.ndarray:
    """Each region standardised over time, as one vector of length 1; zeros if all are constant."""
    wide = series.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(wide, axis=1, keepdims=True)
    wide = np.divide(
        wide, scale, out=np.zeros_like(wide), where=scale > 1e-6 * np.abs(series).max()
    )
    return (wide / max(float(np.linalg.norm(wide)), 1e-12)).ravel().astype(np.float32)


def _same(one: Scan, other: Scan, file: ScanFile, exact: bool) -> None:
    if one.group == other.group:
        return
    but = "" if exact else " but for their offset and unit"
    raise file.error(
        f"has the same values{but} in scans {one.scan} and {other.scan}. One of them would be "
        f"trained on and the other tested; remove one (neuromamba regions import "
        f"--drop_duplicates does). {see('copies')}"
    )


def check_spellings(scans: Sequence[Scan], file: ScanFile) -> None:
    """Refuse subjects whose names differ only by ``sub-``, zeros, case or as 1 and 1.0.

    Raises:
        UserInputError: two groups have such subjects.
    """
    first: dict[str, Scan] = {}
    for scan in scans:
        plain = re.sub(r"^sub-?", "", plain_subject(scan.subject).lower())
        other = first.setdefault(re.sub(r"\d+", lambda m: str(int(m[0])), plain), scan)
        if other.subject != scan.subject and other.group != scan.group:
            raise file.error(
                f"has scans of '{other.subject}' and '{scan.subject}', who seem to be one subject: "
                f"one would be trained on and the other tested. Write the name in one way, or let "
                f"names of two subjects differ by more than 'sub-', zeros and case. "
                f"{see('one-subject')}"
            )
