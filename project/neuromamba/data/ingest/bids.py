"""Runs by BIDS names: which images are versions of one run, and which version is taken.

fMRIPrep writes a run in several spaces and resolutions; the store gets one of them. What else a
name says (``acq-``, ``dir-``, ``echo-``, ``rec-``) distinguishes runs and goes into the run's name.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from neuromamba.data.ingest.sources import (
    SUFFIXES,
    Choice,
    PassedOver,
    Source,
    Tree,
    is_companion,
    stem_of,
)
from neuromamba.data.ingest.space import space_kind

# Entities that name a version of a run, and those with a field of their own in the store.
_VERSION = {"space", "res", "den", "desc", "cohort"}
_OWN_FIELD = {"sub", "ses", "task", "run"}
_USUAL_SPACES = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
_USUAL_RESOLUTIONS = ("2", "02")
# Outputs of one run by fMRIPrep, XCP-D, tedana, fmriprep-denoise and C-PAC, best first: the
# preprocessed run, then denoised ones, then those whose frames were interpolated or that were
# smoothed, which blurs what a model of voxels is to see. Names not listed come after these.
KNOWN_OUTPUTS = (
    "preproc",
    "",
    "optcom",
    "optcomDenoised",
    "denoised",
    "residual",
    "cleaned",
    "clean",
    "denoisedInterpolated",
    "interpolated",
    "denoisedSmoothed",
    "residual_smooth",
    "smoothed",
)
_SMOOTH = "smooth"  # XCP-D before 0.5 has it as a part of its own: desc-residual_smooth


@dataclass(frozen=True, kw_only=True)
class BidsName:
    """A file name in its parts.

    Attributes:
        path: relative to the input folder.
        entities: key -> value, in the order of the name.
        others: parts that are no ``key-value``, without the suffix.
        suffix: the last part if it is no entity, such as "bold".
    """

    path: PurePosixPath
    entities: dict[str, str]
    others: tuple[str, ...]
    suffix: str

    def get(self, key: str) -> str:
        return self.entities.get(key, "")

    @property
    def space(self) -> str:
        """The space that the name gives; fMRIPrep images that name none are in native space."""
        cohort = f":cohort-{self.get('cohort')}" if self.get("cohort") else ""
        own = "native" if self.get("desc") == "preproc" else ""
        return f"{self.get('space')}{cohort}" if self.get("space") else own

    @property
    def run_name(self) -> str:
        """Value of ``run-`` and what else distinguishes this run: ``1-acq-mb4-dir-AP``."""
        extra = [f"{k}-{v}" for k, v in self.entities.items() if k not in _OWN_FIELD | _VERSION]
        return "-".join([value for value in (self.get("run"), *extra) if value])

    @property
    def output(self) -> str:
        """Which output of a pipeline it is: ``desc``, with "_smooth" where that follows."""
        return f"{self.get('desc')}_{_SMOOTH}" if _SMOOTH in self.others else self.get("desc")

    @property
    def version(self) -> tuple[str, ...]:
        """What distinguishes the versions of one run."""
        return (*(self.get(key) for key in sorted(_VERSION)), self.output)

    @property
    def run_key(self) -> tuple[str, ...]:
        """Equal for the versions of one run."""
        fields = (self.get(key) for key in ("sub", "ses", "task"))
        others = (part for part in self.others if part != _SMOOTH)
        return (*fields, self.run_name, *others, self.suffix)


def parse(path: PurePosixPath) -> BidsName | None:
    """The parts of a name that starts with ``sub-``; None for another name."""
    parts = stem_of(path).split("_")
    if not re.fullmatch(r"sub-.+", parts[0]):
        return None
    suffix = parts.pop() if len(parts) > 1 and "-" not in parts[-1] else ""
    pairs = [part.partition("-") for part in parts]
    entities = {key: value for key, dash, value in pairs if dash}
    others = [key for key, dash, _ in pairs if not dash]
    if suffix == "preproc" and "bold" in others:  # fMRIPrep up to 1.1: _bold_space-X_preproc
        others.remove("bold")
        suffix = "bold"
        entities["desc"] = "preproc"
    return BidsName(path=path, entities=entities, others=tuple(others), suffix=suffix)


def bids_runs(
    tree: Tree, names: Sequence[BidsName], choice: Choice, strict: bool
) -> tuple[list[Source], list[PassedOver]]:
    """One source per run.

    Args:
        tree: where the files are.
        names: images with BIDS names.
        choice: among the versions of a run; without ``desc`` the best of ``KNOWN_OUTPUTS``.
        strict: take only images whose suffix is ``bold``.
    """
    passed: list[PassedOver] = []
    groups: dict[tuple[str, ...], list[BidsName]] = {}
    for name in names:
        why = _not_a_run(name, strict)
        if why:
            passed.append(PassedOver(name.path.as_posix(), why))
        else:
            groups.setdefault(name.run_key, []).append(name)
    combined = {key for key in groups if not groups[key][0].get("echo")}
    desc = choice.desc
    rank = _Ranking(choice.space, [name for group in groups.values() for name in group])
    sources: list[Source] = []
    echoes = _middle_echoes(groups, combined)
    for group in groups.values():
        first = group[0]
        if first.get("echo") and _without_echo(first).run_key in combined:
            why = "an echo; the combined run is used"
            passed += [PassedOver(name.path.as_posix(), why) for name in group]
            continue
        if desc:
            others = [name for name in group if name.output != desc]
            passed += [PassedOver(n.path.as_posix(), f"not --desc {desc}") for n in others]
            group = [name for name in group if name.output == desc]
            if not group:
                continue
        chosen = min(group, key=rank)
        key = _without_echo(first).run_key
        if first.get("echo") and key in echoes and first.get("echo") != echoes[key]:
            why = f"no combined run; echo-{echoes[key]}, the middle one, is used"
            passed += [PassedOver(name.path.as_posix(), why) for name in group]
            continue
        why = f"another version of the run; {chosen.path.name} is used"
        for name in group:
            if name.version == chosen.version:  # twice in two folders: refused later on
                sources.append(_source(tree, name))
            else:
                passed.append(PassedOver(name.path.as_posix(), why))
    return _told_apart(sources, groups), passed


def _middle_echoes(
    groups: Mapping[tuple[str, ...], Sequence[BidsName]], combined: set[tuple[str, ...]]
) -> dict[tuple[str, ...], str]:
    """Key of a run of which there are only echoes -> the middle one, whose contrast is BOLD's."""
    echoes: dict[tuple[str, ...], list[str]] = {}
    for group in groups.values():
        key = _without_echo(group[0]).run_key
        if group[0].get("echo") and key not in combined:
            echoes.setdefault(key, []).append(group[0].get("echo"))
    return {
        key: sorted(numbers, key=lambda n: (len(n), n))[len(numbers) // 2]
        for key, numbers in echoes.items()
    }


def _not_a_run(name: BidsName, strict: bool) -> str:
    if is_companion(name.path):
        return "mask, reference or anatomy"
    if name.get("part") == "phase":
        return "phase image"
    if name.get("hemi"):
        return "surface"
    if strict and name.suffix != "bold":
        return f"no BOLD run by its name (suffix '{name.suffix}'); --layout plain takes it"
    return ""


def _without_echo(name: BidsName) -> BidsName:
    entities = {key: value for key, value in name.entities.items() if key != "echo"}
    return BidsName(path=name.path, entities=entities, others=name.others, suffix=name.suffix)


class _Ranking:
    """Order of preference among the versions of a run: the smallest is taken.

    The space asked for comes first (without ``--space``: MNI, else an unnamed one), then the
    outputs of ``KNOWN_OUTPUTS`` in their order, then the MNI space that most images of the folder
    have, so that all runs of a store share one, then ``res-2``.
    """

    def __init__(self, wanted: str, names: Sequence[BidsName]) -> None:
        self.wanted = wanted
        self.frequency = Counter(
            name.space for name in names if name.get("desc") in ("preproc", "")
        )

    def __call__(self, name: BidsName) -> tuple[object, ...]:
        kind = space_kind(name.space)
        if self.wanted in ("", "native"):
            order = ("mni", "", "native") if not self.wanted else ("native", "", "mni")
            of_space = order.index(kind) if kind in order else len(order)
        else:
            exact = name.space.casefold() == self.wanted.casefold()
            of_space = 0 if exact else 1 if kind == "" else 2
        listed = name.output in KNOWN_OUTPUTS
        desc = KNOWN_OUTPUTS.index(name.output) if listed else len(KNOWN_OUTPUTS)
        usual = _USUAL_SPACES.index(name.space) if name.space in _USUAL_SPACES else 9
        resolution = 0 if name.get("res") in _USUAL_RESOLUTIONS else 1
        frequency = -self.frequency[name.space]
        return of_space, desc, frequency, usual, resolution, name.path.as_posix()


def _source(tree: Tree, name: BidsName) -> Source:
    output = name.output
    notes: tuple[str, ...] = ()
    if output not in ("preproc", ""):
        notes = (f"desc-{output}: the best output there is",)
    if name.get("echo"):
        notes += ("a single echo; combine the echoes (fMRIPrep, tedana) for a better signal",)
    return Source(
        path=tree.root / name.path,
        name=name.path.as_posix(),
        subject=f"sub-{name.get('sub')}",
        session=name.get("ses"),
        task=name.get("task"),
        run=name.run_name,
        mask=sibling_mask(tree, name.path),
        sidecar=sidecar(tree, name),
        space=name.space,
        notes=notes,
    )


def _told_apart(
    sources: list[Source], groups: dict[tuple[str, ...], list[BidsName]]
) -> list[Source]:
    """Parts of a name that are no entities go into the run's name where only they differ."""
    names = {n.path.as_posix(): n for group in groups.values() for n in group}
    count = Counter(source.output for source in sources)
    result = []
    for source in sources:
        name = names[source.name]
        rest = [
            *(part for part in name.others if part != _SMOOTH),
            *([name.suffix] if name.suffix not in ("", "bold") else []),
        ]
        if count[source.output] > 1 and rest:
            run = "-".join([*([source.run] if source.run else []), *rest])
            source = dataclasses.replace(source, run=run)
        result.append(source)
    return result


def sibling_mask(tree: Tree, path: PurePosixPath) -> Path | None:
    """``<run>_desc-brain_mask.nii.gz`` (or ``.nii``) beside a run, as fMRIPrep writes it."""
    stem = re.sub(r"_(bold|preproc)$", "", stem_of(path))
    stem = re.sub(r"_desc-[^_]+$", "", stem)
    masks = ("desc-brain_mask", "brainmask")
    names = [f"{stem}_{mask}{suffix}" for mask in masks for suffix in SUFFIXES]
    return tree.first(path.parent, names)


def sidecar(tree: Tree, name: BidsName) -> Path | None:
    """The JSON file of a run: of the same name, or inherited from a folder above it (BIDS)."""
    own = tree.first(name.path.parent, [f"{stem_of(name.path)}.json"])
    if own is not None or name.suffix != "bold":
        return own
    parts = set(stem_of(name.path).split("_"))
    for folder in name.path.parents:
        fitting = [
            file
            for file in tree.json_of.get(folder, ())
            if file.stem.split("_")[-1] == "bold" and parts.issuperset(file.stem.split("_"))
        ]
        if fitting:
            return tree.root / max(fitting, key=lambda file: len(file.stem.split("_")))
    return None
