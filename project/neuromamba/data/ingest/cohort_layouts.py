"""The folders that HCP, UK Biobank and ABCD deliver: which files are runs, and their names.

Subjects are called as in the cohort's tables, so that ``Cohort.key`` finds their labels.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath

from neuromamba.data.ingest.bids import BidsName, bids_runs, parse, sibling_mask
from neuromamba.data.ingest.sources import (
    SUFFIXES,
    Choice,
    PassedOver,
    Source,
    Tree,
    is_companion,
    stem_of,
)

Runs = tuple[list[Source], list[PassedOver]]

# HCP --------------------------------------------------------------------------------------------

HCP_TR = 0.72  # seconds, of the 3 T scans of young adults, whose runs are called LR and RL
_HCP_FILE = re.compile(r"(?:.*/)?([^/]+)/MNINonLinear/Results/([^/]+)/([^/]+)")
_HCP_RUN = re.compile(r"([rt]fMRI)_(.+)_(LR|RL|AP|PA)")
# What may follow the run's name, best first: ICA-FIX denoised (cleaned again and with temporal
# ICA in releases from 2023 on), then minimally preprocessed.
_CLEANINGS = ("_clean_rclean_tclean", "_clean_tclean", "_clean_rclean", "_clean")
_FILTERS = ("_hp2000", "_hp200", "_hp0")
_HCP_VERSIONS = (
    *(f"{high_pass}{cleaning}" for cleaning in _CLEANINGS for high_pass in _FILTERS),
    "",
    *_FILTERS,
)


def _absolute(tree: Tree, path: PurePosixPath) -> str:
    """Prepend the names above the input folder, which may be that of one subject."""
    return f"{tree.root.resolve().as_posix()}/{path}"


def looks_like_hcp(tree: Tree) -> bool:
    """Whether there is a file of ``<subject>/MNINonLinear/Results/<run>/``."""
    return any(_HCP_FILE.fullmatch(_absolute(tree, path)) for path in tree.volumes)


def hcp_runs(tree: Tree, choice: Choice) -> Runs:
    """One source per folder ``MNINonLinear/Results/<run>``; the best version in it."""
    passed: list[PassedOver] = []
    folders: dict[PurePosixPath, tuple[str, str, dict[str, PurePosixPath]]] = {}
    for path in tree.volumes:
        found = _HCP_FILE.fullmatch(_absolute(tree, path))
        if not found or not _HCP_RUN.fullmatch(found[2]):
            passed.append(PassedOver(path.as_posix(), "no run of MNINonLinear/Results"))
            continue
        subject, run = found[1], found[2]
        versions = folders.setdefault(path.parent, (subject, run, {}))[2]
        stem = stem_of(path)
        if stem.startswith(run) and stem[len(run) :] in _HCP_VERSIONS:
            versions[stem[len(run) :]] = path
        else:
            passed.append(PassedOver(path.as_posix(), "mask, reference or part of the pipeline"))
    best = {
        folder: min(versions, key=_HCP_VERSIONS.index) if versions else None
        for folder, (_, _, versions) in folders.items()
    }
    usual = {
        kind: Counter(
            best[folder] for folder, (_, run, _) in folders.items() if run.startswith(kind)
        ).most_common(1)
        for kind in ("rfMRI", "tfMRI")
    }
    sources = []
    for folder, (subject, run, versions) in folders.items():
        parts = _HCP_RUN.fullmatch(run)
        assert parts is not None
        version = best[folder]
        notes = []
        if version is not None and version != usual[parts[1]][0][0]:
            notes.append(f"this version is '{version}', most others are '{usual[parts[1]][0][0]}'")
        for other, path in versions.items():
            if other != version:
                why = f"another version of the run; {run}{version} is used"
                passed.append(PassedOver(path.as_posix(), why))
        path = folder if version is None else versions[version]
        expected = f"{run}_hp2000_clean.nii.gz or {run}.nii.gz"
        sources.append(
            Source(
                path=tree.root / path,
                name=path.as_posix(),
                subject=subject,
                task=parts[2].replace("_", "-"),
                run=parts[3],
                error=""
                if version is not None
                else f"{tree.root / folder}: no {expected} in it. Download the run again.",
                mask=tree.first(
                    folder, [f"brainmask_fs.{mm}.nii.gz" for mm in ("2", "1.60", "1.6")]
                ),
                sidecar=tree.first(folder, [f"{stem_of(path)}.json", f"{run}.json"]),
                space="MNI152NLin6Asym",
                # Ageing and Development (0.8 s) and 7 T (1 s) have AP and PA.
                layout_tr=HCP_TR if parts[3] in ("LR", "RL") else None,
                notes=tuple(notes),
            )
        )
    return sources, passed


# UK Biobank ---------------------------------------------------------------------------------------

UKB_TR = 0.735  # seconds
_UKB_FILE = re.compile(r"(?:.*/)?((\d+)_20227_(\d+)_(\d+))/(.+)")
_UKB_NATIVE = "fMRI/rfMRI.ica/filtered_func_data_clean"
_UKB_WARPED = re.compile(r"filtered_func_data_clean_MNI152\w*")


def looks_like_ukb(tree: Tree) -> bool:
    """Whether there is a file of ``<eid>_20227_<instance>_<array>/``."""
    return any(_UKB_FILE.fullmatch(_absolute(tree, path)) for path in tree.volumes)


def ukb_runs(tree: Tree, choice: Choice) -> Runs:
    """One source per folder ``<eid>_20227_<instance>_<array>``: the warped run, if it is there."""
    native: dict[str, PurePosixPath] = {}
    warped: dict[str, PurePosixPath] = {}
    parts: dict[str, re.Match[str]] = {}
    passed = []
    for path in tree.volumes:
        found = _UKB_FILE.fullmatch(_absolute(tree, path))
        stem = stem_of(path)
        if found and found[5] in (f"{_UKB_NATIVE}{suffix}" for suffix in SUFFIXES):
            native[found[1]] = path
            parts[found[1]] = found
        elif found and _UKB_WARPED.fullmatch(stem) and found[1] not in warped:
            warped[found[1]] = path
            parts[found[1]] = found
        else:
            passed.append(PassedOver(path.as_posix(), "not the cleaned resting-state run"))
    sources = []
    for bulk, found in parts.items():
        is_native = bulk not in warped or (choice.space == "native" and bulk in native)
        path = native[bulk] if is_native else warped[bulk]
        if bulk in native and bulk in warped:
            other = warped[bulk] if is_native else native[bulk]
            why = f"another version of the run; {path.name} is used"
            passed.append(PassedOver(other.as_posix(), why))
        masks = ["mask.nii.gz"] if is_native else ["mask_MNI152.nii.gz"]
        sources.append(
            Source(
                path=tree.root / path,
                name=path.as_posix(),
                subject=found[2],
                session=found[3],
                task="rest",
                run="" if found[4] == "0" else found[4],
                mask=tree.first(path.parent, masks),
                space="native" if is_native else "MNI152NLin6Asym",
                remedy=_warp_command(tree.root / path) if is_native else "",
                layout_tr=UKB_TR,
            )
        )
    return sources, passed


def _warp_command(path: Path) -> str:
    folder = path.parent
    return (
        f"Warp it with FSL: applywarp --ref=$FSLDIR/data/standard/MNI152_T1_2mm --in={path} "
        f"--warp={folder}/reg/example_func2standard_warp.nii.gz "
        f"--out={folder}/filtered_func_data_clean_MNI152.nii.gz ; or give --space native for a "
        f"store of native images only."
    )


# ABCD ---------------------------------------------------------------------------------------------

_NDAR = re.compile(r"(NDAR_?INV[A-Za-z0-9]+)(?:_(.+))?")
_EVENT = re.compile(
    r"(baseline_?year_?1_?arm_?1|\d+_?(?:year|month)_?follow_?up_?y?_?arm_?1)_?", re.IGNORECASE
)


def looks_like_abcd(tree: Tree) -> bool:
    """Whether all names are ABCD's: ``sub-NDARINV...``, or ``NDAR_INV...`` without BIDS."""
    runs = [path for path in tree.volumes if not is_companion(path)]
    return bool(runs) and all(_NDAR.fullmatch(stem_of(path).removeprefix("sub-")) for path in runs)


def abcd_runs(tree: Tree, choice: Choice) -> Runs:
    """Derivatives with BIDS names, and files ``NDAR_INV..._<event>_<run>``."""
    names: list[BidsName] = []
    sources, passed = [], []
    for path in tree.volumes:
        name = parse(path)
        found = _NDAR.fullmatch(stem_of(path))
        if name:
            names.append(name)
        elif found is None:
            passed.append(PassedOver(path.as_posix(), "its name does not start with NDAR_INV"))
        elif is_companion(path):
            passed.append(PassedOver(path.as_posix(), "mask, reference or anatomy"))
        else:
            rest = found[2] or ""
            event = _EVENT.match(rest)
            session = re.sub(r"_(\w)", lambda m: m[1].upper(), event[1]) if event else ""
            rest = rest[event.end() :] if event else rest
            sources.append(
                Source(
                    path=tree.root / path,
                    name=path.as_posix(),
                    subject=found[1],
                    session=session,
                    run=rest.replace("_", "-"),
                    mask=sibling_mask(tree, path),
                    sidecar=tree.first(path.parent, [f"{stem_of(path)}.json"]),
                )
            )
    of_bids, passed_of_bids = bids_runs(tree, names, choice, strict=True)
    return sources + of_bids, passed + passed_of_bids
