"""The quality page of a store: one HTML file that opens at once however many runs it shows.

The table of all runs is plain HTML and can be read without scripts. The pictures of a run lie in
the page as inert JSON; ``store_quality.js`` shows 25 runs at a time and decodes no others.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from neuromamba.common.atomic_files import atomic_path
from neuromamba.common.errors import UserInputError
from neuromamba.pages.templates import template
from neuromamba.reports.quality.outliers import (
    LEAST_RUNS,
    MEASURES,
    THRESHOLD,
    Measure,
    asymmetries,
    number,
)
from neuromamba.reports.quality.table import COLUMNS, Row


class PageContext(NamedTuple):
    """What the page says about the store as a whole.

    Attributes:
        store: its folder; command: that makes the page again.
        available: runs that the store has, of which the page may show fewer.
        scaling: ``--input_scaling_method``; patch_size and sequence_length: of the tokens.
        frames: most frames read of a run, 0 for all.
        content: whether the values were compared with their hashes, a sentence.
        shorter: what follows on runs that are shorter than a window.
    """

    store: str
    command: str
    available: int
    scaling: str
    patch_size: Sequence[int]
    sequence_length: int
    frames: int
    content: str
    shorter: str = ""


def embedded(value: Any) -> Markup:
    """JSON that may stand in a ``<script>``: no character in it can end the element.

    Text in it is shown by the page's script as it is, so it must hold numbers and our own words.
    """
    text = json.dumps(value, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def strip(measure: Measure, rows: Sequence[Row]) -> dict[str, Any] | None:
    """A measure of all runs as dots on a line, in SVG paths 1000 wide and 40 high.

    None if no run has the measure. Dots are spread over the height so that each is seen.
    """
    values, flagged = [], []
    for row in rows:
        value = measure.value(row.summary) if row.summary else None
        if value is not None and math.isfinite(value):
            values.append(value)
            z = row.z.get(measure.key, math.nan)
            flagged.append(abs(z) > THRESHOLD and measure.tail * z >= 0)
    if not values:
        return None
    low, high = min(values), max(values)
    median = float(np.median(values))
    span = (high - low) or 1.0
    dots: dict[bool, list[str]] = {False: [], True: []}
    for place, (value, out) in enumerate(zip(values, flagged, strict=True)):
        x = 12 + 976 * (value - low) / span if high > low else 500
        y = 6 + 28 * (0.618034 * place % 1) if len(values) > 1 else 20
        dots[out].append(f"M{x:.0f} {y:.0f}h0")
    return {
        "title": measure.title,
        "unit": measure.unit,
        "low": number(low, measure.digits),
        "high": number(high, measure.digits),
        "median": number(median, measure.digits),
        "median_x": round(12 + 976 * (median - low) / span) if high > low else 500,
        "usual": Markup("".join(dots[False])),
        "flagged": Markup("".join(dots[True])),
        "count": len(dots[True]),
    }


def _table(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Cells of the rows, made one by one."""
    for place, row in enumerate(rows):
        cells = []
        for column in COLUMNS:
            text = column.text(row.summary) if row.summary else ""
            value = column.sort(row.summary) if column.sort and row.summary else None
            known = value is not None and math.isfinite(value)
            cells.append((text, f"{value:.6g}" if known else "", column.sort is not None))
        yield {
            "place": place,
            "name": row.name,
            "flags": row.flags,
            "broken": bool(row.run.error),
            "cells": cells,
        }


def _pictures(rows: Sequence[Row]) -> Iterator[tuple[int, Markup]]:
    """Pictures of the runs, read from the cache one by one."""
    for place, row in enumerate(rows):
        if row.summary:
            numbers, header = row.summary.numbers, row.summary.header
            extra = {
                "frames": header.n_frames,
                "read": numbers.frames_read,
                "step": numbers.frame_step,
                "tr": header.tr if math.isfinite(header.tr) else None,
                "background": numbers.background,
                "kept": numbers.kept_patches,
                "patches": numbers.patches,
            }
            yield place, embedded(row.run.picture() | extra)


def _notes(rows: Sequence[Row], context: PageContext) -> list[str]:
    """Sentences on what the numbers rest on, and on what could not be compared."""
    summaries = [row.summary for row in rows if row.summary]
    read = [summary.numbers.frames_read for summary in summaries]
    notes = [context.content]
    if len(rows) < context.available:
        notes.append(f"Only the first {len(rows):,} of {context.available:,} runs were measured.")
    if summaries:
        if any(summary.numbers.frame_step > 1 for summary in summaries):
            notes.append(
                f"Numbers and pictures come from at most {context.frames} evenly spaced frames of "
                f"each run ({min(read)} to {max(read)} were read); frames in between were not "
                f"looked at."
            )
        else:
            notes.append("Numbers and pictures come from all frames of every run.")
    if len(summaries) < LEAST_RUNS:
        notes.append(
            f"Runs are compared with each other in stores of {LEAST_RUNS} or more; here only what "
            f"is wrong with a run by itself is flagged."
        )
    elif asymmetries(summaries) is None:
        notes.append(
            "Left-right flips cannot be found here: the mean images differ too little, or too "
            "irregularly, between left and right."
        )
    return notes


def write_page(path: Path, rows: Sequence[Row], context: PageContext) -> None:
    """Write the page, whole or not at all; one run's pictures are in memory at a time.

    Raises:
        UserInputError: the file cannot be written.
    """
    names = Counter(flag.name for row in rows for flag in row.flags)
    broken = sum(bool(row.run.error) for row in rows)
    strips = [found for measure in MEASURES if (found := strip(measure, rows))]
    stream = template("store_quality.html.j2").stream(
        context=context,
        notes=_notes(rows, context),
        columns=COLUMNS,
        rows=_table(rows),
        pictures=_pictures(rows),
        strips=strips,
        flag_names=names.most_common(),
        total=len(rows),
        flagged=sum(bool(row.flags) and not row.run.error for row in rows),
        broken=broken,
        threshold=THRESHOLD,
    )
    stream.enable_buffering(20)
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            stream.dump(file, "utf-8")
    except OSError as error:
        raise UserInputError(f"--output: cannot write '{path}' ({error.strerror}).") from None
