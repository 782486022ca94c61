"""The table of a store's runs: for the page, and as quality.tsv for scripts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.csv_cells import written
from neuromamba.common.errors import UserInputError
from neuromamba.reports.quality.outliers import (
    MEASURES,
    Flag,
    RobustScores,
    RunSummary,
    number,
    voxel_text,
)
from neuromamba.reports.quality.survey import Surveyed

HEADER_FIELDS = (
    "subject",
    "session",
    "task",
    "run",
    "dataset",
    "n_frames",
    "dropped_frames",
    "tr",
    "tr_source",
    "space",
    "mask_source",
    "n_voxels",
    "cropped_voxels",
    "source",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run on the page: what was found, its flags, and its z in every measure.

    ``summary`` is None for a file that cannot be read; its one flag says why.
    """

    run: Surveyed
    summary: RunSummary | None
    flags: tuple[Flag, ...]
    z: Mapping[str, float]

    @property
    def name(self) -> str:
        """The file's name without suffix, which is the run's label."""
        return self.run.path.stem


def make_rows(
    runs: Sequence[Surveyed],
    summaries: Sequence[RunSummary],
    flags: Sequence[Sequence[Flag]],
    scores: Mapping[str, RobustScores],
) -> list[Row]:
    """Rows of all runs: files that cannot be read, then the most flags, then by name.

    Args:
        runs: all of them.
        summaries, flags: of those that can be read, in the same order.
        scores: of the measures, in that order, too.
    """
    rows, position = [], 0
    for run in runs:
        if run.error:
            rows.append(
                Row(run=run, summary=None, flags=(Flag("cannot be read", run.error),), z={})
            )
            continue
        z = {key: float(found.z[position]) for key, found in scores.items()}
        rows.append(Row(run=run, summary=summaries[position], flags=tuple(flags[position]), z=z))
        position += 1
    return sorted(rows, key=lambda row: (not row.run.error, -len(row.flags), row.name))


# ----------------------------------------------------------------------- columns of the page


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the page's table; ``sort`` gives a number for columns that are numbers."""

    title: str
    explanation: str
    text: Callable[[RunSummary], str]
    sort: Callable[[RunSummary], float | None] | None = None


def _numeric(
    title: str, explanation: str, value: Callable[[RunSummary], float | None], digits: int = 3
) -> Column:
    return Column(
        title=title,
        explanation=explanation,
        text=lambda summary: number(value(summary), digits),
        sort=value,
    )


def _minutes(summary: RunSummary) -> float:
    return summary.header.n_frames * summary.header.tr / 60


def _percent(summary: RunSummary) -> float | None:
    share = summary.numbers.kept_fraction
    return None if share is None else 100 * share


def _mask_kind(summary: RunSummary) -> str:
    """``sibling:<file>`` without the file, which would fill the table."""
    return summary.header.mask_source.split(":")[0] or "n/a"


COLUMNS = (
    _numeric("frames", "stored frames", lambda f: f.header.n_frames, 6),
    _numeric("TR, s", "repetition time", lambda f: f.header.tr, 4),
    _numeric("minutes", "frames times TR", _minutes),
    _numeric("windows", "whole windows of the sequence length", lambda f: f.windows, 6),
    _numeric("voxels", "brain voxels", lambda f: f.header.n_voxels, 7),
    _numeric("cropped", "brain voxels that the crop cut off", lambda f: f.header.cropped_voxels, 7),
    _numeric("kept tokens, %", "tokens with a brain voxel, of all tokens", _percent),
    _numeric(
        "mean/SD",
        "mean over standard deviation of all intensities; the background lies so far below 0 "
        "after znorm scaling",
        lambda f: f.numbers.mean_std_ratio,
    ),
    _numeric(
        "temporal SNR",
        "mean over standard deviation in time, median of the voxels",
        lambda f: f.numbers.tsnr,
    ),
    _numeric(
        "largest jump",
        "largest difference of two consecutive frames over the run's median difference",
        lambda f: f.numbers.jump,
    ),
    _numeric(
        "similarity",
        "correlation of the mean image with the median of the other runs' mean images",
        lambda f: f.similarity.correlation,
    ),
    _numeric(
        "mirrored",
        "the same with that median mirrored left-right",
        lambda f: f.similarity.mirrored,
    ),
    _numeric(
        "mask overlap",
        "Dice overlap of the mask with the mask of most other runs",
        lambda f: f.similarity.dice,
    ),
    Column(
        title="constant (0)",
        explanation="brain voxels that never change, in brackets those that are 0",
        text=lambda f: f"{f.numbers.constant_voxels:,} ({f.numbers.zero_voxels:,})",
        sort=lambda f: f.numbers.constant_voxels,
    ),
    Column(title="voxel, mm", explanation="edges of a voxel", text=lambda f: voxel_text(f.header)),
    Column(
        title="space", explanation="space of the images", text=lambda f: f.header.space or "n/a"
    ),
    Column(title="mask", explanation="where the brain mask comes from", text=_mask_kind),
)


# ----------------------------------------------------------------------- quality.tsv


def tsv_record(row: Row) -> dict[str, Any]:
    """A line of quality.tsv; every row has the same keys."""
    record: dict[str, Any] = {
        "file": row.run.path.name,
        "readable": not row.run.error,
        "flags": "; ".join(flag.name for flag in row.flags),
        "reasons": "; ".join(flag.reason for flag in row.flags),
    }
    summary = row.summary
    header = summary.header if summary else None
    for name in HEADER_FIELDS:
        record[name] = getattr(header, name) if header else None
    record["grid"] = "x".join(map(str, header.grid)) if header else None
    record["voxel_size"] = voxel_text(header) if header else None
    record["windows"] = summary.windows if summary else None
    if summary:
        record |= dataclasses.asdict(summary.numbers) | summary.similarity._asdict()
    record["kept_fraction"] = summary.numbers.kept_fraction if summary else None
    return record | {f"z_{measure.key}": row.z.get(measure.key) for measure in MEASURES}


def write_tsv(path: Path, rows: Sequence[Row]) -> None:
    """Write quality.tsv, sorted by file; undefined values are n/a.

    Raises:
        UserInputError: the file cannot be written.
    """
    records = [tsv_record(row) for row in sorted(rows, key=lambda row: row.run.path.name)]
    names = list(dict.fromkeys(name for record in records for name in record))
    lines = ["\t".join(names)]
    lines += ["\t".join(_cell(record.get(name)) for name in names) for record in records]
    try:
        write_text_atomically(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise UserInputError(f"--output: cannot write '{path}' ({error.strerror}).") from None


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(written(" ".join(str(value).split())))
