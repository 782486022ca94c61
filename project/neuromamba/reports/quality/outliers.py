"""Which runs of a store stand out: comparison with the other runs, and flags in words.

A measure of a run is compared with its median over the store, in robust standard deviations
(1.4826 x the median absolute deviation). A floor under these keeps runs that hardly differ from
being flagged where most are identical. Letter in shapes: R runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neuromamba.common.text import some_of
from neuromamba.data.store.header import RunHeader
from neuromamba.reports.quality.measure import RunNumbers
from neuromamba.reports.quality.pictures import voxel_size
from neuromamba.reports.quality.similarity import NO_SIMILARITY, Similarity

THRESHOLD = 5.0  # robust standard deviations
LEAST_RUNS = 5  # fewer are not compared
CONSTANT_SHARE = CROPPED_SHARE = 0.01  # of the brain voxels, beyond which a run is flagged

_ASYMMETRY = 0.1  # correlation of left-right differences that may be chance


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """All that is known of a run; ``name`` is that of its file, without suffix."""

    name: str
    header: RunHeader
    numbers: RunNumbers
    windows: int
    similarity: Similarity = NO_SIMILARITY


@dataclass(frozen=True)
class Flag:
    """``name`` is a word for a table; ``reason`` says it in full."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that is compared between runs.

    Attributes:
        key: column of quality.tsv.
        title, unit: for people; digits: significant ones to show.
        value: of a run; None or NaN if undefined.
        tail: flag only values that are too low (-1) or too high (1), or both (0).
        floor: smallest robust standard deviation; relative: times the median's size, if larger.
    """

    key: str
    title: str
    unit: str
    digits: int
    value: Callable[[RunSummary], float | None]
    tail: int = 0
    floor: float = 1e-9
    relative: float = 0.0


MEASURES = (
    Measure(
        key="n_frames",
        title="frames",
        unit="",
        digits=4,
        value=lambda f: f.header.n_frames,
        tail=0,
        floor=0.2,
        relative=0.02,
    ),
    Measure(
        key="tr",
        title="TR",
        unit="s",
        digits=4,
        value=lambda f: f.header.tr,
        tail=0,
        floor=1e-4,
        relative=0.002,
    ),
    Measure(
        key="kept_percent",
        title="kept tokens",
        unit="%",
        digits=3,
        value=lambda f: _percent(f),
        tail=0,
        floor=0.5,
        relative=0.02,
    ),
    Measure(
        key="mean_std_ratio",
        title="mean/SD",
        unit="",
        digits=3,
        value=lambda f: f.numbers.mean_std_ratio,
        tail=0,
        floor=0.05,
        relative=0.05,
    ),
    Measure(
        key="tsnr",
        title="temporal SNR",
        unit="",
        digits=3,
        value=lambda f: f.numbers.tsnr,
        tail=0,
        floor=0.2,
        relative=0.1,
    ),
    Measure(
        key="jump",
        title="largest jump",
        unit="",
        digits=3,
        value=lambda f: f.numbers.jump,
        tail=1,
        floor=0.1,
        relative=0.1,
    ),
    Measure(
        key="correlation",
        title="similarity",
        unit="",
        digits=3,
        value=lambda f: f.similarity.correlation,
        tail=-1,
        floor=0.01,
    ),
    Measure(
        key="dice",
        title="mask overlap",
        unit="",
        digits=3,
        value=lambda f: f.similarity.dice,
        tail=-1,
        floor=0.01,
    ),
)
_SIDES = Measure(
    key="asymmetry",
    title="asymmetry",
    unit="",
    digits=3,
    value=lambda f: f.similarity.asymmetry,
    tail=-1,
    floor=0.03,
)


def _percent(summary: RunSummary) -> float | None:
    share = summary.numbers.kept_fraction
    return None if share is None else 100 * share


class RobustScores(NamedTuple):
    """Robust z-scores [R] of all runs in a measure (NaN if undefined), median and spread."""

    z: np.ndarray
    median: float
    spread: float


def robust_scores(measure: Measure, summaries: Sequence[RunSummary]) -> RobustScores:
    """Compute robust z-scores of all runs; all NaN if fewer than five runs have the measure."""
    values = np.array([_defined(measure.value(run)) for run in summaries], dtype=np.float64)
    known = values[np.isfinite(values)]
    if known.size < LEAST_RUNS:
        median = float(np.median(known)) if known.size else math.nan
        return RobustScores(np.full(len(values), math.nan), median, math.nan)
    median = float(np.median(known))
    spread = max(
        1.4826 * float(np.median(np.abs(known - median))),
        measure.floor,
        measure.relative * abs(median),
    )
    return RobustScores((values - median) / spread, median, spread)


def _defined(value: float | None) -> float:
    return math.nan if value is None else value


def asymmetries(summaries: Sequence[RunSummary]) -> RobustScores | None:
    """Score all runs in ``Similarity.asymmetry``; None if flips cannot be found.

    They can where left and right differ in the same way in most runs, so much that a run with its
    sides exchanged would stand out.
    """
    found = robust_scores(_SIDES, summaries)
    if found.median > _ASYMMETRY and 2 * found.median > THRESHOLD * found.spread:
        return found
    return None


def flag_runs(summaries: Sequence[RunSummary]) -> tuple[list[list[Flag]], dict[str, RobustScores]]:
    """Flag every run, in the order of ``summaries``, and score all runs in every measure."""
    flags = [_own_flags(run) for run in summaries]
    scores = {measure.key: robust_scores(measure, summaries) for measure in MEASURES}
    for measure in MEASURES:
        found = scores[measure.key]
        for run, mine, z in zip(summaries, flags, found.z, strict=True):
            if abs(z) > THRESHOLD and measure.tail * z >= 0:
                mine.append(_outlier(measure, run, found.median, float(z)))
    sides = asymmetries(summaries)
    if sides is not None:
        for run, mine, z in zip(summaries, flags, sides.z, strict=True):
            similarity = run.similarity
            if similarity.mirrored > similarity.correlation and z < -THRESHOLD:
                mine.append(
                    Flag(
                        "left-right flip",
                        f"possible left-right flip: the mean image is more like the mirrored "
                        f"median image (r {similarity.mirrored:.3f}) than like the median image "
                        f"(r {similarity.correlation:.3f})",
                    )
                )
    _flag_others(summaries, flags)
    return flags, scores


def _outlier(measure: Measure, run: RunSummary, median: float, z: float) -> Flag:
    unit = f" {measure.unit}" if measure.unit else ""
    value = _defined(measure.value(run))
    where = ""
    if measure.key == "jump" and run.numbers.jump_frame is not None:
        where = f" at frame {run.numbers.jump_frame + 1}"
    return Flag(
        measure.title,
        f"{measure.title} {number(value, measure.digits)}{unit}{where}, median of the store "
        f"{number(median, measure.digits)}{unit} (robust z {z:+.1f})",
    )


def _own_flags(run: RunSummary) -> list[Flag]:
    """What is wrong with a run whatever the others are like."""
    header, numbers = run.header, run.numbers
    flags = []
    if not run.windows:
        flags.append(Flag("too short", f"{header.n_frames} frames are shorter than one window"))
    if numbers.unscalable:
        flags.append(Flag("not scalable", numbers.unscalable))
    if numbers.constant_voxels > CONSTANT_SHARE * header.n_voxels:
        flags.append(
            Flag(
                "constant voxels",
                f"{numbers.constant_voxels / header.n_voxels:.1%} of the brain voxels never "
                f"change ({numbers.zero_voxels:,} of {numbers.constant_voxels:,} are 0)",
            )
        )
    if header.cropped_voxels > CROPPED_SHARE * (header.n_voxels + header.cropped_voxels):
        flags.append(
            Flag("cropped", f"the crop cut off {header.cropped_voxels:,} voxels of the brain mask")
        )
    if numbers.repeated_frames:
        flags.append(
            Flag(
                "repeated frames",
                f"{numbers.repeated_frames} frame(s) equal the one before",
            )
        )
    return flags


def _flag_others(summaries: Sequence[RunSummary], flags: list[list[Flag]]) -> None:
    """Runs that differ from most in what cannot be averaged, and runs with the same data."""
    for name, values in (
        ("grid", ["×".join(map(str, f.header.grid)) for f in summaries]),
        ("voxel size", [voxel_text(f.header) + " mm" for f in summaries]),
        ("space", [f.header.space or "unknown" for f in summaries]),
        ("TR unknown", ["known" if math.isfinite(f.header.tr) else "unknown" for f in summaries]),
    ):
        usual, count = Counter(values).most_common(1)[0] if values else ("", 0)
        if 2 * count <= len(values):
            continue  # no majority to differ from
        for value, mine in zip(values, flags, strict=True):
            if value != usual and (name != "TR unknown" or value == "unknown"):
                title = "TR" if name == "TR unknown" else name
                mine.append(Flag(name, f"{title} {value}; most runs of the store: {usual}"))
    by_content: dict[str, list[int]] = {}
    for index, run in enumerate(summaries):
        if run.header.content_sha256:
            by_content.setdefault(run.header.content_sha256, []).append(index)
    for same in by_content.values():
        for index in same if len(same) > 1 else ():
            labels = [summaries[i].name for i in same if i != index]
            flags[index].append(Flag("duplicate", f"the same data as {some_of(labels, 3)}"))


def number(value: float | None, digits: int) -> str:
    """A number for people: so many significant digits, below 1 so many decimals; or n/a."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    if abs(value) < 1:
        return f"{round(value, digits) + 0.0:.{digits}f}".rstrip("0").rstrip(".")  # not "-0"
    return f"{value:.{digits}g}"


def voxel_text(header: RunHeader) -> str:
    """Voxel size such as "2" or "2×2×2.4", in mm."""
    sizes = [f"{size:.3g}" for size in voxel_size(header)]
    return sizes[0] if len(set(sizes)) == 1 else "×".join(sizes)
