"""Versions of one scan by the letters that SPM and ADHD-200 (Athena) put in front of a name.

``swrafunc01`` is ``func01`` after slice timing (a), realignment (r), normalisation (w) and
smoothing (s). Such files lie side by side in a folder, and each would be a run, or a person, of its
own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from neuromamba.data.ingest.sources import PassedOver, stem_of

_STEPS = re.compile(r"[acdfmnrsuw]{1,8}")
_ATHENA = re.compile(r"([a-z]+)(da\d+_session_\d+_rest_\d+)")


def without_versions(
    paths: Sequence[PurePosixPath],
) -> tuple[dict[PurePosixPath, str], list[PassedOver]]:
    """Take one version of each scan.

    The normalised one that is not smoothed is taken (smoothing blurs what a model of voxels is to
    see), else the one with the fewest steps.

    Args:
        paths: images, relative to the input folder.

    Returns:
        Path -> name of the scan without the letters, for those taken; and the others.
    """
    folders: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    taken: dict[PurePosixPath, str] = {}
    passed: list[PassedOver] = []
    for files in folders.values():
        stems = {stem_of(path) for path in files}
        groups: dict[str, list[tuple[str, PurePosixPath]]] = {}
        for path in files:
            steps, base = _split(stem_of(path), stems)
            groups.setdefault(base, []).append((steps, path))
        for base, versions in groups.items():
            _, chosen = min(versions, key=lambda one: (*rank_of_steps(one[0]), one[1].name))
            alone = len(versions) == 1
            taken[chosen] = stem_of(chosen) if alone else base
            why = f"another version of the scan; {chosen.name} is used"
            passed += [PassedOver(p.as_posix(), why) for _, p in versions if p != chosen]
    return taken, passed


def _split(stem: str, stems: set[str]) -> tuple[str, str]:
    """Letters of the steps, and the name without them; no letters where none can be told."""
    if athena := _ATHENA.fullmatch(stem):
        return athena[1], athena[2]
    # Only where the name without the letters is there too.
    bases = [other for other in stems if stem.endswith(other) and other != stem]
    fitting = [other for other in bases if _STEPS.fullmatch(stem[: len(stem) - len(other)])]
    base = min(fitting, key=len, default=stem)
    return stem[: len(stem) - len(base)], base


def rank_of_steps(steps: str) -> tuple[bool, bool, int]:
    """Order of the versions of a scan by the letters of their steps; the smallest is taken."""
    return "w" not in steps, "s" in steps, len(steps)
