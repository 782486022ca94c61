"""Compare CPA maps of each class with reference maps of Neurosynth, data set by data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from neuromamba.common.atomic_files import make_folder, write_text_atomically
from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.serialise import read_yaml
from neuromamba.data.regions.atlases import Atlas, find_atlas, spare_collections
from neuromamba.neurossm.attribution_files import (
    RANDOMISED,
    ScanMap,
    map_name,
    read_arrays,
    read_scan_map,
)
from neuromamba.neurossm.attribution_report import GroupMap, group_map, similarity
from neuromamba.neurossm.neurosynth import Database, database, require_nimare
from neuromamba.neurossm.reference_report import write_reference_page
from neuromamba.neurossm.reference_scores import Scores, partial_scores

TERMS = Path(__file__).with_name("terms.yaml")
TOP = 0.25


class RandomMaps(NamedTuple):
    """The random maps that a correlation is compared with.

    Attributes:
        null: how they are drawn, of ``RANDOM_MAPS``.
        draws: their number.
        seed: of the draws.
    """

    null: str = "moran"
    draws: int = 1000
    seed: int = 0


class ClassMaps(NamedTuple):
    """CPA and reference map of a class.

    Attributes:
        name: of the class.
        group: its CPA map.
        chance: [N] the same with random weights; None if tester.py did not write it.
        terms: used.
        reference: [N] mean z of the terms' association maps.
    """

    name: str
    group: GroupMap
    chance: np.ndarray | None
    terms: tuple[str, ...]
    reference: np.ndarray

    @property
    def similarity_to_random_weights(self) -> float | None:
        """Rank correlation with the map of random weights."""
        return None if self.chance is None else similarity(self.group.cpa, self.chance)


def compare_with_references(
    root: Path,
    out: Path,
    *,
    datasets: Sequence[str] | None = None,
    data_dir: Path,
    terms_file: Path = TERMS,
    atlas: str | None = None,
    random_maps: RandomMaps,
) -> None:
    """Write maps, scores and a page for every data set, and print where they are.

    Args:
        root: folder of the maps that ``neuromamba regions train --analysis`` wrote.
        out: everything is written below it.
        datasets: which; None takes all below ``root`` that have terms.
        data_dir: holds neurosynth/, downloaded where it is missing, and atlases/.
        terms_file: YAML file, data set -> class -> terms.
        atlas: image of labels in MNI space; None takes the one that the maps name.
        random_maps: what the correlations are compared with.

    Raises:
        UserInputError: a mistake that the user can correct.
    """
    require_nimare()
    terms = read_yaml(terms_file, "--terms")
    names = _datasets(root, terms, datasets)
    maps = {name: _read_maps(root / name) for name in names}
    atlases = {name: _atlas(found, data_dir, atlas) for name, found in maps.items()}
    make_folder(out, "--out")
    spare_collections()
    base = database(data_dir)
    for name in names:
        classes = _classes(root / name, name, maps[name], terms[name], base, atlases[name])
        page = _analyse(name, classes, maps[name], atlases[name], base, random_maps, out)
        print(f"{name}: maps in {out / 'maps' / name}, report {page}", flush=True)


def _datasets(root: Path, terms: dict[str, Any], wanted: Sequence[str] | None) -> list[str]:
    present = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if not present:
        raise UserInputError(
            f"--root: '{root}' has no maps. Write them with tester.py --dataset NAME --analysis."
        )
    for name in wanted or ():
        look_up(name, present, "--datasets")
        if name not in terms:
            raise UserInputError(f"--datasets: the file of --terms has no {name}.")
    found = [name for name in wanted or present if name in terms]
    for name in present:
        if wanted is None and name not in terms:
            print(f"note: {name} has no terms and is left out.", flush=True)
    if not found:
        raise UserInputError(f"--terms: it has none of {', '.join(present)}.")
    return found


def _read_maps(folder: Path) -> list[ScanMap]:
    """Read the maps of all seeds, which must fit together."""
    maps = [read_scan_map(path) for path in sorted(folder.glob("seed_*/subj_*.npz"))]
    if not maps:
        raise UserInputError(
            f"--root: '{folder}' has no seed_*/subj_*.npz. Write them with tester.py --analysis."
        )
    first = maps[0]
    for one in maps:
        for field in ("roi_ids", "pathways", "classes", "atlas", "ablation", "gradient"):
            if not np.array_equal(getattr(one, field), getattr(first, field)):
                raise UserInputError(
                    f"--root: scans {first.scan_id} and {one.scan_id} in '{folder}' differ in "
                    f"{field}. Write all of them again with the same flags."
                )
    return maps


def _atlas(maps: Sequence[ScanMap], data_dir: Path, given: str | None) -> Atlas:
    first = maps[0]
    path = Path(given) if given else None
    atlas = find_atlas(first.atlas or None, len(first.cpa), data_dir, path)
    if not np.array_equal(first.roi_ids, atlas.ids):
        raise UserInputError(
            f"--atlas: regions of '{atlas.name}' are numbered otherwise than those of the maps. "
            f"Write the maps with the same atlas (tester.py --atlas)."
        )
    return atlas


def _classes(
    folder: Path,
    name: str,
    maps: Sequence[ScanMap],
    terms: dict[str, list[str]],
    base: Database,
    atlas: Atlas,
) -> list[ClassMaps]:
    known = [str(one) for one in maps[0].classes]
    for one in terms:
        look_up(one, known, f"--terms, {name}")
    chance = _chance(folder, maps)
    found = []
    for label, one in enumerate(known):
        group = group_map(maps, label)
        if one not in terms or group is None:
            reason = "no terms" if one not in terms else "no scan that was classified correctly"
            print(f"note: {name}, {one}: {reason}; left out.", flush=True)
            continue
        used = base.known([str(term) for term in terms[one]], f"{name}, {one}")
        z = np.mean([region_means(base.z_map(term), atlas) for term in used], axis=0)
        own = [i for i, scan in enumerate(maps) if scan.label == label and scan.correct]
        random = None if chance is None else chance[own].mean(0)
        found.append(ClassMaps(one, group, random, tuple(used), z))
    if not found:
        raise UserInputError(f"--root: no class of {name} has both terms and a CPA map.")
    return found


def _chance(folder: Path, maps: Sequence[ScanMap]) -> np.ndarray | None:
    """[scans, N] CPA with random weights in the order of the maps."""
    rows: list[np.ndarray] = []
    for seed in sorted(folder.glob("seed_*")):
        path = seed / RANDOMISED
        if not path.is_file():
            return None
        arrays = read_arrays(path, "--root", ("scan_id", "cpa"))
        by_scan = dict(zip(arrays["scan_id"].tolist(), arrays["cpa"], strict=True))
        scans = [read_scan_map(p).scan_id for p in sorted(seed.glob("subj_*.npz"))]
        if set(scans) - set(by_scan):
            return None
        rows += [by_scan[scan] for scan in scans]
    return np.stack(rows)


def region_means(image: nib.Nifti1Image, atlas: Atlas) -> np.ndarray:
    """[N] mean of a map over each region; 0 for a region without voxels."""
    from nilearn.maskers import NiftiLabelsMasker

    masker = NiftiLabelsMasker(
        atlas.image, resampling_target="labels", standardize=None, background_label=0
    )
    signals = np.ravel(masker.fit_transform(image))
    by_id = {int(label): column for column, label in masker.region_ids_.items() if label}
    return np.array([signals[by_id[i]] if i in by_id else 0.0 for i in atlas.ids])


def _analyse(
    name: str,
    classes: Sequence[ClassMaps],
    maps: Sequence[ScanMap],
    atlas: Atlas,
    base: Database,
    random_maps: RandomMaps,
    out: Path,
) -> Path:
    sizes = atlas.sizes()
    kept = sizes > 0
    scores = partial_scores(
        np.stack([one.group.cpa for one in classes])[:, kept],
        np.stack([one.reference for one in classes])[:, kept],
        sizes[kept],
        atlas.centres()[kept],
        random_maps.null,
        random_maps.draws,
        random_maps.seed,
    )
    for one in classes:
        write_maps(out / "maps" / name / map_name(one.name), one, atlas)
    record = _record(name, classes, scores, atlas, base, random_maps) | {
        "ablation": maps[0].ablation,
        "gradient": maps[0].gradient,
        "regions_without_voxels": [i for i, k in zip(atlas.ids, kept, strict=True) if not k],
    }
    folder = out / "reports" / name
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, allow_nan=False)
    write_text_atomically(folder / "scores.json", text + "\n")
    return write_reference_page(folder, name, classes, scores, atlas, record)


def top_mask(values: np.ndarray, share: float = TOP) -> np.ndarray:
    """bool [N], the regions in the highest quarter; none of a constant map."""
    if np.ptp(values) == 0:
        return np.zeros(len(values), dtype=bool)
    return values >= np.quantile(values, 1 - share)


def write_maps(folder: Path, one: ClassMaps, atlas: Atlas) -> None:
    """The five images of a class."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {
        "neurosynth_reference_score": (one.reference, np.float32),
        "neurosynth_reference_top25_mask": (top_mask(one.reference), np.uint8),
        "cpa_score": (one.group.cpa, np.float32),
        "cpa_score_top25_mask": (top_mask(one.group.cpa), np.uint8),
        "cpa_dominant_pathway": (one.group.dominant, np.uint8),
    }
    for name, (values, dtype) in images.items():
        nib.save(atlas.image_of(values, dtype), folder / f"{name}.nii.gz")


def _record(
    name: str,
    classes: Sequence[ClassMaps],
    scores: Scores,
    atlas: Atlas,
    base: Database,
    random_maps: RandomMaps,
) -> dict[str, Any]:
    return {
        "dataset": name,
        "classes": {
            one.name: {
                "scans": one.group.scans,
                "terms": list(one.terms),
                "score": _number(scores.correlation[i, i]),
                "p": _number(scores.p[i, i]),
                # The name of version 0.1.0, which other programs read.
                "likeness_to_random_weights": _number(one.similarity_to_random_weights),
            }
            for i, one in enumerate(classes)
        },
        "matrix": {
            "rows": "CPA",
            "columns": "reference",
            "correlation": [[_number(v) for v in row] for row in scores.correlation],
            "p": [[_number(v) for v in row] for row in scores.p],
        },
        "null": random_maps.null,
        "draws": random_maps.draws,
        "seed": random_maps.seed,
        "atlas": atlas.name,
        "atlas_hash": atlas.hash,
        "neurosynth_hash": base.hash,
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 6)
