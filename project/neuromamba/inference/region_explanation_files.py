"""What ``neuromamba explain`` writes of a model of regions: tables, and images where it can.

``<scan>_attribution.csv`` has one row per region. ``scans/<scan>.npz`` holds what the tables of
groups are made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import nibabel
import numpy as np

from neuromamba.data.regions.atlases import Atlas
from neuromamba.inference.explanation_files import (
    ATTRIBUTION,
    RANDOM,
    Group,
    group_name,
    group_of,
    keep_values,
    members,
    read_values,
)
from neuromamba.inference.output_folder import OutputFolder
from neuromamba.inference.region_explain import RegionExplanation
from neuromamba.inference.source_space import region_image, save_image
from neuromamba.inference.sources import ScanFile

TABLE = "_attribution.csv"


def keep_region_explanation(
    folder: OutputFolder, scan: ScanFile, found: RegionExplanation
) -> dict[str, Any]:
    """Write table and images of a scan; returns what its record says of them."""
    name = scan.name
    folder.write_table(f"{name}{TABLE}", found.columns, list(found.rows()))
    keep_values(folder, name, found, vox=np.arange(len(found.regions)))
    files = {"table": f"{name}{TABLE}"}
    if found.atlas is not None:
        files |= {"attribution": f"{name}{ATTRIBUTION}", "random": f"{name}{RANDOM}"}
        save_image(found.image, folder.path / files["attribution"])
        save_image(found.randomised, folder.path / files["random"])
    return found.record() | files


def write_region_groups(
    folder: OutputFolder,
    records: Sequence[Mapping[str, Any]],
    regions: Sequence[str],
    atlas: Atlas | None,
    *,
    wanted: str,
    permutations: int,
    seed: int,
) -> tuple[list[Group], str]:
    """Write ``group_<name>.csv`` of each group of subjects, and images where there is an atlas.

    The table has the columns ``region``, ``mean``, ``random`` and, where they are defined, ``t``
    and ``p``; the images are ``group_<name>_mean.nii.gz`` and ``_random``, on the atlas's grid.

    Args:
        folder: of the call; all scans are finished.
        records: of the scans.
        regions: N names.
        atlas: of the regions; None if none is given.
        wanted: class of ``--target``, or "".
        permutations, seed: of the test.

    Returns:
        The groups, and why there are none; "" if there are.
    """
    found = members((record for record in records if record["result"]), wanted)
    if not found:
        return [], "a group takes two subjects or more"
    groups = []
    for name, group in found.items():
        subjects = [[read_values(folder, scan) for scan in scans] for scans in group.values()]
        mean, random_mean = group_of(subjects, permutations, seed)
        stem = f"group_{group_name(name)}"
        columns = {"mean": mean.mean, "random": random_mean}
        if mean.t is not None and mean.p is not None:
            columns |= {"t": mean.t, "p": mean.p}
        rows = zip(regions, *(values.tolist() for values in columns.values()), strict=True)
        files = {"table": f"{stem}.csv"}
        folder.write_table(files["table"], ("region", *columns), rows)
        if atlas is not None:
            for kind in ("mean", "random"):
                files[kind] = f"{stem}_{kind}.nii.gz"
                image: nibabel.Nifti1Image = region_image(columns[kind], atlas, None)
                save_image(image, folder.path / files[kind])
        groups.append(
            Group(name=name, found=mean, random_mean=random_mean, files=files, parts="regions")
        )
    return groups, ""
