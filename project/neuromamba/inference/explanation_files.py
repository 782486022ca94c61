"""What ``neuromamba explain`` writes: maps of scans in their own space, and maps of groups.

``scans/<scan>.npz`` holds a scan's map on the grid of the model, from which the group's is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.files import safe_name
from neuromamba.inference.batch import Batch
from neuromamba.inference.explain import Explanation
from neuromamba.inference.group_maps import GroupMap, group_map
from neuromamba.inference.output_folder import SCANS, OutputFolder
from neuromamba.inference.score_map import ScoreMap, rank_correlation
from neuromamba.inference.source_space import grid_image, save_image, to_source_image
from neuromamba.inference.sources import ScanFile

ATTRIBUTION, RANDOM, MEAN = "_attribution.nii.gz", "_attribution_random.nii.gz", "_mean.nii.gz"
PREDICTED = "predicted"  # the group of all subjects, each with the class predicted for it
VALUE = "value"  # the group of a regression
_SAME_GRID = 1e-3  # of affines, mm


def group_name(name: str) -> str:
    """A class, or a group of scans, as a part of a file name."""
    return safe_name(name, "_", runs=True).strip("_") or "_"


def keep_explanation(folder: OutputFolder, scan: ScanFile, found: Explanation) -> dict[str, Any]:
    """Write the maps of a scan; returns what its record says of them."""
    name = scan.name
    save_image(found.image, folder.path / f"{name}{ATTRIBUTION}")
    save_image(found.randomised, folder.path / f"{name}{RANDOM}")
    mean = to_source_image(found.mean, found.vox, found.header)
    save_image(mean, folder.path / SCANS / f"{name}{MEAN}")
    keep_values(
        folder,
        name,
        found,
        vox=found.vox,
        grid=np.array(found.header.grid),
        affine=np.array(found.header.affine),
        space=np.array(found.header.space),
    )
    return found.record() | {"attribution": f"{name}{ATTRIBUTION}", "random": f"{name}{RANDOM}"}


def keep_values(folder: OutputFolder, name: str, found: ScoreMap, **more: np.ndarray) -> None:
    """Write ``scans/<scan>.npz``, from which the maps of groups are made.

    Args:
        folder: of the call.
        name: of the scan.
        found: its map.
        more: "vox", sorted numbers of the values, by which those of subjects correspond, and what
            else belongs to them.
    """
    with (
        atomic_path(folder.path / SCANS / f"{name}.npz") as temporary,
        open(temporary, "wb") as stream,
    ):
        arrays: dict[str, Any] = {
            "values": found.values.astype(np.float32),
            "random": found.randomised_values.astype(np.float32),
        }
        np.savez_compressed(stream, **arrays | more)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The map of a group that was written.

    Attributes:
        name: the class that is explained, or ``PREDICTED``, or ``VALUE``.
        found: mean and test.
        random_mean: [M], of random weights.
        files: "mean", "random" and, if there was a test, "t" and "p" -> file in the folder; of
            regions "table", and "mean" and "random" if there is an atlas.
        parts: what the map has values for.
    """

    name: str
    found: GroupMap
    random_mean: np.ndarray
    files: Mapping[str, str]
    parts: str = "voxels"

    def record(self) -> dict[str, Any]:
        """The numbers in plain containers; null where not defined."""
        one, alike = self.found, rank_correlation(self.found.mean, self.random_mean)
        return {
            "group": self.name,
            "subjects": one.subjects,
            self.parts: len(one.vox),
            "permutations": one.permutations,
            "all_permutations": one.exact,
            "smallest_p": None if one.p is None else float(one.p.min()),
            f"{self.parts}_below_0.05": None if one.p is None else int((one.p <= 0.05).sum()),
            "rank_correlation_with_random_weights": alike if np.isfinite(alike) else None,
            "files": dict(self.files),
        }


@dataclass(frozen=True, kw_only=True)
class ExplainedCall:
    """A call of ``neuromamba explain`` whose maps are written, for its page.

    Attributes:
        batch: finished.
        groups: maps of groups.
        no_groups: why there are none; "" if there are.
        options: of the maps: ``ExplainOptions`` or ``RegionExplainOptions``.
        model_name: as the user gave it.
        command: as it was typed.
    """

    batch: Batch
    groups: Sequence[Group]
    no_groups: str
    options: Any
    model_name: str
    command: str

    @property
    def answered(self) -> list[dict[str, Any]]:
        """Records of the scans that have a map."""
        return [record for record in self.batch.in_order if record["result"]]

    @property
    def refused(self) -> list[dict[str, Any]]:
        """Records of the others."""
        return [record for record in self.batch.in_order if not record["result"]]


def read_values(folder: OutputFolder, name: str) -> dict[str, np.ndarray]:
    """What ``keep_values`` has written of a scan."""
    with np.load(folder.path / SCANS / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def members(records: Iterable[Mapping[str, Any]], wanted: str) -> dict[str, dict[str, list[str]]]:
    """The groups of a call: name -> subject -> scans.

    Args:
        records: of scans with a result.
        wanted: class of ``--target``, or "".
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for record in records:
        target = record["result"]["target"]
        names = [VALUE] if target is None else [target] if wanted else [PREDICTED, target]
        for name in names:
            subject = record["subject"] or record["scan"]
            groups.setdefault(name, {}).setdefault(subject, []).append(record["scan"])
    if len(groups) == 2:  # one class only: all subjects are in it
        groups.pop(PREDICTED, None)
    return {name: found for name, found in groups.items() if len(found) > 1}


def write_groups(
    folder: OutputFolder,
    records: Sequence[Mapping[str, Any]],
    *,
    wanted: str,
    native: bool,
    permutations: int,
    seed: int,
) -> tuple[list[Group], str]:
    """Write ``group_<name>_mean``, ``_random``, ``_t`` and ``_p`` of each group of subjects.

    The maps are on the grid of the model. t and p are written where they are defined; p is 1
    outside the mask.

    Args:
        folder: of the call; all scans are finished.
        records: of the scans.
        wanted: class of ``--target``, or "".
        native: whether the model is of native space, where voxels of subjects do not correspond.
        permutations, seed: of the test.

    Returns:
        The groups, and why there are none; "" if there are.
    """
    found = members((record for record in records if record["result"]), wanted)
    if not found:
        return [], "a group takes two subjects or more"
    if native:
        return [], "the model is of native space, where voxels of subjects do not correspond"
    names = {scan for group in found.values() for scans in group.values() for scan in scans}
    arrays = {name: read_values(folder, name) for name in sorted(names)}
    first = next(iter(arrays.values()))
    for one in arrays.values():
        if not np.allclose(one["affine"], first["affine"], atol=_SAME_GRID):
            return [], "the scans lie on different grids, so their voxels do not correspond"
    groups = []
    for name, group in found.items():
        subjects = [[arrays[scan] for scan in scans] for scans in group.values()]
        groups.append(_write_group(folder, name, subjects, (permutations, seed)))
    return groups, ""


def group_of(
    subjects: Sequence[Sequence[Mapping[str, np.ndarray]]], permutations: int, seed: int
) -> tuple[GroupMap, np.ndarray]:
    """The map of a group, and its mean with random weights [M].

    Args:
        subjects: of each, the values of its scans (``read_values``), which are averaged first.
        permutations, seed: of the test.
    """
    maps: list[np.ndarray] = []
    randoms: list[np.ndarray] = []
    voxels: list[np.ndarray] = []
    for scans in subjects:
        vox = scans[0]["vox"]
        for scan in scans[1:]:
            vox = np.intersect1d(vox, scan["vox"], assume_unique=True)
        at = [np.searchsorted(scan["vox"], vox) for scan in scans]
        for key, rows in (("values", maps), ("random", randoms)):
            both = zip(scans, at, strict=True)
            values = np.stack([scan[key][i] for scan, i in both])
            rows.append(values.mean(axis=0, dtype=np.float64))
        voxels.append(vox)
    found = group_map(maps, voxels, permutations=permutations, seed=seed)
    random_mean = np.mean(
        [one[np.searchsorted(vox, found.vox)] for one, vox in zip(randoms, voxels, strict=True)],
        axis=0,
    )
    return found, random_mean


def _write_group(
    folder: OutputFolder,
    name: str,
    subjects: Sequence[Sequence[Mapping[str, np.ndarray]]],
    test: tuple[int, int],
) -> Group:
    found, random_mean = group_of(subjects, *test)
    images = {"mean": found.mean, "random": random_mean}
    if found.t is not None and found.p is not None:
        images |= {"t": found.t, "p": found.p}
    files, first = {}, subjects[0][0]
    grid = first["grid"]
    for kind, values in images.items():
        files[kind] = f"group_{group_name(name)}_{kind}.nii.gz"
        image = grid_image(
            values,
            found.vox,
            (int(grid[0]), int(grid[1]), int(grid[2])),
            first["affine"],
            space=str(first["space"]),
            outside=1.0 if kind == "p" else 0.0,
        )
        save_image(image, folder.path / files[kind])
    return Group(name=name, found=found, random_mean=random_mean, files=files)
