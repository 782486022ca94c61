"""``table.md``, ``.csv``, ``.json`` and ``figure.png``, ``.pdf`` of a table of real subjects."""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.csv_cells import CsvWriter
from neuromamba.common.version import code_version
from neuromamba.evaluation.intervals import Interval
from neuromamba.pages.figures import BLUE, GREY, ORANGE, save_figure, styled
from neuromamba.pages.tables import metric_label
from neuromamba.reports.real_subjects.real_table import Group, RealTable, Row

_COLUMNS = ("group", "model", "metric", "value", "low", "high")
_TITLE = 44  # characters of a line of a panel's title
_WIDEST = 11.0  # inches of a figure: 10 points are still 10 pixels on a page of the site
_MORE = ("subjects", "splits", "split_hash", "seconds_a_fit", "note")


def write_real_table(
    table: RealTable, groups: Sequence[Group], folder: Path, command: str
) -> list[Path]:
    """Write the files; returns their paths, the Markdown first.

    Args:
        table: which.
        groups: that have results.
        folder: receives the files.
        command: that makes them.
    """
    stream = io.StringIO()
    CsvWriter(stream).writerows([(*_COLUMNS, "less", "less_low", "less_high", *_MORE)])
    CsvWriter(stream).writerows(line for group in groups for line in _csv_rows(group))
    record = {
        "table": table.name,
        "command": command,
        "code_version": code_version(),
        "groups": [_record(group) for group in groups],
    }
    contents = {
        "table.md": _markdown(table, groups, command),
        "table.csv": stream.getvalue(),
        "table.json": json.dumps(record, indent=1, allow_nan=False) + "\n",
    }
    for name, text in contents.items():
        write_text_atomically(folder / name, text)
    figure = save_figure(results_figure(groups), folder / "figure.png", for_paper=True)
    return [*(folder / name for name in contents), figure, figure.with_suffix(".pdf")]


def _markdown(table: RealTable, groups: Sequence[Group], command: str) -> str:
    parts = [
        f"# {table.title}",
        f"Made by `{command}` ({table.document}). Data: {table.source}",
        "![Results with intervals](figure.png)",
    ]
    for group in groups:
        metrics = list(group.rows[0].values)
        header = [
            "",
            *(metric_label(name, group.unit) for name in metrics),
            f"{metric_label(group.main)} of {group.rows[0].model} less this",
            "s a fit",
            "note",
        ]
        rows = [_cells(row, metrics) for row in group.rows]
        kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
        lines = [
            f"| {' | '.join(header[i] for i in kept)} |",
            f"|{'---|' * len(kept)}",
            *(f"| {' | '.join(row[i] for i in kept)} |" for row in rows),
        ]
        said = (
            f"{group.subjects} subjects tested in {group.splits} splits (hash of the splits "
            f"`{group.split_hash}`)."
        )
        parts += [f"## {group.title}", "\n".join(lines)]
        parts += [_pairs(group)] if group.pairs else []
        parts.append(" ".join((said, group.intervals, *group.notes)))
    return "\n\n".join(parts) + "\n"


def _pairs(group: Group) -> str:
    """A table of the rows that are compared with each other."""
    lines = [
        f"| the first row less the second | {metric_label(group.main)} | splits |",
        "|---|---|---|",
        *(f"| {pair.name} | {pair.difference} | {pair.splits} |" for pair in group.pairs),
    ]
    return "\n".join(lines)


def _cells(row: Row, metrics: Sequence[str]) -> list[str]:
    return [
        row.model,
        *(str(row.values[name]) for name in metrics),
        "" if row.less is None else str(row.less),
        "" if row.seconds is None else f"{row.seconds:.0f}",
        row.note,
    ]


def _csv_rows(group: Group) -> list[list[Any]]:
    lines = []
    for row in group.rows:
        for metric, interval in row.values.items():
            less = row.less if metric == group.main and row.less is not None else None
            lines.append(
                [
                    group.name,
                    row.model,
                    metric,
                    *map(_cell, interval),
                    *(("", "", "") if less is None else map(_cell, less)),
                    group.subjects,
                    group.splits,
                    group.split_hash,
                    "" if row.seconds is None else round(row.seconds, 1),
                    row.note,
                ]
            )
    for pair in group.pairs:
        values = [group.name, pair.name, f"{group.main}_difference", *map(_cell, pair.difference)]
        of_splits = [group.subjects, pair.splits, group.split_hash]
        lines.append([*values, "", "", "", *of_splits, "", ""])
    return lines


def _cell(value: float) -> Any:
    return "" if math.isnan(value) else round(value, 6)


def _record(group: Group) -> Mapping[str, Any]:
    """Plain containers; what is not defined is null."""
    return {
        "name": group.name,
        "title": group.title,
        "main_metric": group.main,
        "unit": group.unit,
        "subjects": group.subjects,
        "splits": group.splits,
        "split_hash": group.split_hash,
        "intervals": group.intervals,
        "notes": list(group.notes),
        "rows": [
            {
                "model": row.model,
                "metrics": {name: _plain(one) for name, one in row.values.items()},
                "first_less_this": None if row.less is None else _plain(row.less),
                "seconds_a_fit": None if row.seconds is None else round(row.seconds, 1),
                "note": row.note,
            }
            for row in group.rows
        ],
        "pairs": [
            {
                "model": pair.model,
                "other": pair.other,
                "difference": _plain(pair.difference),
                "splits": pair.splits,
            }
            for pair in group.pairs
        ],
    }


def _plain(interval: Interval) -> dict[str, float | None]:
    return {
        name: None if math.isnan(value) else value for name, value in interval._asdict().items()
    }


@styled
def results_figure(groups: Sequence[Group]) -> Figure:
    """A panel a group: the main metric of each row as a dot, its interval as a line."""
    most = max(len(group.rows) for group in groups)
    longest = max(len(row.model) for group in groups for row in group.rows)
    wide = max(4.8, 2.8 + 0.085 * longest)  # of a panel: names of rows are as long as they are
    # Two panels side by side only where their text can still be read on a page of the site.
    across = 2 if len(groups) > 1 and 2 * wide <= _WIDEST else 1
    down = math.ceil(len(groups) / across)
    figure = Figure(figsize=(wide * across, down * (1.1 + 0.36 * most)), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, group in zip(panels, groups, strict=False):
        _panel(axes, group)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Axes, group: Group) -> None:
    for place, row in enumerate(group.rows):
        value, low, high = row.values[group.main]
        color = BLUE if place == 0 else ORANGE
        if not np.isnan(low):
            axes.hlines(place, low, high, color=color, lw=2)
        if not np.isnan(value):
            axes.plot([value], [place], "o" if place == 0 else "s", color=color, ms=6)
    if group.chance is not None:
        axes.axvline(group.chance, color=GREY, ls=":", lw=1.2)
    axes.set_yticks(range(len(group.rows)), [row.model for row in group.rows])
    axes.set_ylim(len(group.rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{metric_label(group.main, group.unit)}, 95 % interval")
    with matplotlib.rc_context({"font.size": 9}):
        axes.set_title(textwrap.fill(group.title, _TITLE), fontsize=9.5)
