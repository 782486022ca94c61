"""Which files of a folder are runs, for the folders that fMRIPrep and the large cohorts deliver.

``LAYOUTS`` holds one entry per layout: how to recognise it and how to find its runs. To add one,
write a function ``(tree, wanted space) -> (sources, images passed over)`` and an entry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.text import some_of
from neuromamba.data.ingest.bids import BidsName, bids_runs, parse, sibling_mask
from neuromamba.data.ingest.cohort_layouts import (
    abcd_runs,
    hcp_runs,
    looks_like_abcd,
    looks_like_hcp,
    looks_like_ukb,
    ukb_runs,
)
from neuromamba.data.ingest.filenames import is_generic, name_run
from neuromamba.data.ingest.sources import (
    BEST,
    SUFFIXES,
    Choice,
    PassedOver,
    Source,
    Tree,
    is_companion,
    refuse_shared_names,
    scan,
    stem_of,
)
from neuromamba.data.ingest.versions import without_versions

Runs = tuple[list[Source], list[PassedOver]]


@dataclass(frozen=True)
class Layout:
    """A way to arrange runs in folders.

    Attributes:
        description: one line for messages.
        recognise: whether a folder looks like it.
        find: its runs and the images passed over.
    """

    description: str
    recognise: Callable[[Tree], bool]
    find: Callable[[Tree, Choice], Runs]


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        layout: key of ``LAYOUTS``.
        sources: the runs, sorted by path; some may have an ``error``.
        passed_over: all other images.
    """

    layout: str
    sources: list[Source]
    passed_over: list[PassedOver]


def _split_names(tree: Tree) -> tuple[list[BidsName], list[PurePosixPath]]:
    """Images with BIDS names, and the others."""
    parsed = [(path, parse(path)) for path in tree.volumes]
    return [name for _, name in parsed if name], [path for path, name in parsed if not name]


def _looks_like_bids(tree: Tree) -> bool:
    names, others = _split_names(tree)
    return not others and any(name.suffix == "bold" for name in names)


def _bids_runs(tree: Tree, choice: Choice) -> Runs:
    names, others = _split_names(tree)
    sources, passed = bids_runs(tree, names, choice, strict=True)
    passed += [PassedOver(path.as_posix(), "its name does not start with sub-") for path in others]
    return sources, passed


def _plain_runs(tree: Tree, choice: Choice) -> Runs:
    """Any folder; ``run_names.name_run`` says what a name means that is not BIDS."""
    names, others = _split_names(tree)
    sources, passed = bids_runs(tree, names, choice, strict=False)
    runs = [path for path in others if not is_companion(path)]
    passed += [
        PassedOver(path.as_posix(), "mask, reference or anatomy")
        for path in others
        if is_companion(path)
    ]
    taken, versions = without_versions(runs)
    passed += versions
    for path, scan_name in taken.items():
        stem, name = stem_of(path), path.as_posix()
        # Filtered_4DVolume.nii in a folder for each subject: the folder says whose it is.
        whose = path.parent.name if is_generic(stem) and path.parent.name else scan_name
        sources.append(
            Source(
                path=tree.root / path,
                name=name,
                **name_run(whose)._asdict(),
                mask=sibling_mask(tree, path),
                sidecar=tree.first(path.parent, [f"{stem}.json"]),
            )
        )
    return sources, passed


_BIDS = Layout(
    "BIDS names, as fMRIPrep's derivatives: sub-*_space-MNI152*_desc-preproc_bold.nii.gz",
    _looks_like_bids,
    _bids_runs,
)
LAYOUTS: Mapping[str, Layout] = {
    "hcp": Layout(
        "HCP minimally preprocessed: <subject>/MNINonLinear/Results/<run>/<run>*.nii.gz",
        looks_like_hcp,
        hcp_runs,
    ),
    "ukb": Layout(
        "UK Biobank: <eid>_20227_<instance>_0/fMRI/rfMRI.ica/filtered_func_data_clean*.nii.gz",
        looks_like_ukb,
        ukb_runs,
    ),
    "abcd": Layout(
        "ABCD: BIDS names with sub-NDARINV..., or NDAR_INV..._<session>_<run>.nii.gz",
        looks_like_abcd,
        abcd_runs,
    ),
    "bids": _BIDS,
    "fmriprep": _BIDS,
    "plain": Layout("any folder of 4D *.nii and *.nii.gz", lambda tree: True, _plain_runs),
}
AUTO = "auto"


def find_runs(
    folder: str | Path,
    layout: str = AUTO,
    choice: Choice = BEST,
    exclude: Path | None = None,
    flag: str = "--input",
) -> Found:
    """All runs below a folder.

    Args:
        folder: searched recursively for ``*.nii`` and ``*.nii.gz``; hidden files are left out.
        layout: key of ``LAYOUTS``, or "auto": the first that the folder looks like.
        choice: among versions of a run.
        exclude: a file to leave out (the mask of ``--mask``).
        flag: that named the folder.

    Raises:
        UserInputError: no such folder or layout, or no run in it.
    """
    look_up(layout, (AUTO, *LAYOUTS), "--layout")
    tree = scan(folder, exclude, flag)
    refused = [_unreadable(tree, place, why) for place, why in tree.unreadable]
    if not tree.volumes and not refused:
        packed = f" Unpack the {tree.archives} archive(s) first." if tree.archives else ""
        raise UserInputError(
            f"{flag}: no *.nii or *.nii.gz in '{tree.root}' or below; expected a folder of 4D "
            f"runs.{packed}"
        )
    seems = next(name for name, known in LAYOUTS.items() if known.recognise(tree))
    chosen = seems if layout == AUTO else layout
    if choice.desc and chosen in ("hcp", "ukb"):
        raise UserInputError(
            f"--desc: '{tree.root}' has the layout {chosen}, whose files have no desc-. Leave the "
            f"flag out."
        )
    sources, passed = LAYOUTS[chosen].find(tree, choice)
    if choice.desc and not sources and not refused:
        kinds = sorted({name.output or "none" for name in _split_names(tree)[0]})
        raise UserInputError(
            f"--desc: no run of desc-{choice.desc} in '{tree.root}'; there are {some_of(kinds)}."
        )
    if not sources and not refused:
        if chosen == seems == "plain":
            raise UserInputError(
                f"{flag}: only masks, references or anatomical images in '{tree.root}'; expected "
                f"4D runs."
            )
        given = flag if layout == AUTO else f"--layout {chosen}"
        other = "" if chosen == seems else f" (it looks like --layout {seems})"
        raise UserInputError(
            f"{given}: no run in '{tree.root}', expected {LAYOUTS[chosen].description}. Found "
            f"{len(passed)} other image(s), such as {passed[0].name if passed else 'none'}{other}."
        )
    passed += [PassedOver(path.as_posix(), "surface or CIFTI") for path in tree.surfaces]
    passed += [PassedOver(path.as_posix(), _other_format(path)) for path in tree.others]
    pair = "a pair of .hdr and .img; make one file of it (fslchfiletype NIFTI_GZ)"
    passed += [PassedOver(path.as_posix(), pair) for path in tree.pairs]
    sources = sorted([*sources, *refused], key=lambda source: source.path)
    passed.sort(key=lambda image: image.name)
    return Found(chosen, refuse_shared_names(sources), passed)


def _other_format(path: PurePosixPath) -> str:
    """Why a file is passed over that is an image of another kind, or has another spelling."""
    if path.name.lower().endswith(SUFFIXES):
        return "its name is not in small letters; rename it to end in .nii or .nii.gz"
    return "another format; convert it to .nii.gz (mri_convert, 3dAFNItoNIFTI, gzip)"


def _unreadable(tree: Tree, place: str, why: str) -> Source:
    path = Path(place)
    name = path.relative_to(tree.root).as_posix() if path.is_relative_to(tree.root) else place
    return Source(
        path=path,
        name=name,
        subject=re.sub(r"/", "-", name.strip("/")) or "folder",
        error=f"{path}: the folder cannot be read ({why}). Have its permissions changed "
        f"(chmod u+rx).",
    )
