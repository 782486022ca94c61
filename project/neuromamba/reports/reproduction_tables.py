"""The papers' tables from the runs that exist, beside the published numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.csv_cells import CsvWriter
from neuromamba.evaluation.intervals import Interval, bootstrap_interval
from neuromamba.evaluation.scores import Draws, SubjectScores
from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.reports.reproduction import METRICS, PaperTable, Row, finished

# Metric of a pre-training -> heading of its column.
PRETRAINING = {
    "val/dynamic_skill": "pre-training dynamic skill",
    "val/skill": "pre-training skill",
    "val/sequence_skill": "pre-training sequence skill",
}


class Measured(NamedTuple):
    """What is known of a row.

    Attributes:
        done, planned: runs.
        subjects: tested; 0 if none was.
        metrics: metric -> mean over runs, standard deviation over runs, interval over subjects.
        difference: from the reference row, paired; None if there is none.
        facts: width, parameters, tokens and other numbers of the first run.
    """

    done: int
    planned: int
    subjects: int = 0
    metrics: Mapping[str, tuple[float, float, Interval | None]] = {}
    difference: Interval | None = None
    facts: Mapping[str, Any] = {}


def measure(row: Row, rows: Iterable[Row], folder: Path) -> Measured:
    """Collect a row's finished runs.

    The interval is of the mean over runs: subjects are drawn, the same for all runs, which were
    tested on the same ones.
    """
    done = [RunFolder(folder / name) for name in row.jobs if finished(folder, name)]
    if not done:
        return Measured(0, len(row.jobs))
    first = done[0]
    facts = {
        "width": first.config["embed_dim"],
        "depth": first.config["depth"],
        "parameters": first.metrics["model/parameters"],
        "seeds": [run.config["seed"] for run in done],
        "train_subjects": first.metrics["data/subjects_train"],
        "epochs": first.config["max_epochs"],
    }
    if first.task is None:
        names = ("val/loss", *PRETRAINING)
        found = {
            name: (float(np.mean([run.metrics.get(name, np.nan) for run in done])), np.nan, None)
            for name in names
        }
        return Measured(len(done), len(row.jobs), 0, found, None, facts)
    scores = _aligned([run.scores() for run in done])
    metrics = {}
    for name in METRICS:
        values = np.array([one.metrics()[name] for one in scores])
        spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        metrics[name] = (float(values.mean()), spread, _mean_interval(scores, name))
    other = next((r for r in rows if row.reference and r.labels == row.reference), None)
    difference = None
    if other is not None:
        against = [RunFolder(folder / name) for name in other.jobs if finished(folder, name)]
        if against:
            compared = _aligned([*scores, *(run.scores() for run in against)])
            difference = _difference(compared[: len(scores)], compared[len(scores) :])
    subjects = len(scores[0].subjects)
    return Measured(len(done), len(row.jobs), subjects, metrics, difference, facts)


def _aligned(scores: Sequence[SubjectScores]) -> list[SubjectScores]:
    """Bring the scores of all runs into the order of the first.

    Raises:
        UserInputError: they were tested on different subjects.
    """
    return [scores[0], *(one.in_order_of(scores[0]) for one in scores[1:])]


def _mean_interval(scores: Sequence[SubjectScores], name: str) -> Interval:
    statistics = [one.statistic(name) for one in scores]

    def mean(chosen: np.ndarray) -> float:
        return float(np.mean([statistic(chosen) for statistic in statistics]))

    return bootstrap_interval(mean, Draws(scores[:1]).strata)


def _difference(ours: Sequence[SubjectScores], theirs: Sequence[SubjectScores]) -> Interval:
    """Interval of the difference in mean AUROC over runs, both on the same draws of subjects."""
    groups = [[one.statistic("auroc") for one in side] for side in (ours, theirs)]

    def less(chosen: np.ndarray) -> float:
        one, other = (np.mean([statistic(chosen) for statistic in side]) for side in groups)
        return float(one - other)

    return bootstrap_interval(less, Draws(ours[:1]).strata)


# ------------------------------------------------------------------------------ writing


def cells(table: PaperTable, folder: Path) -> tuple[list[str], list[list[str]], list[Measured]]:
    """Header and rows of a table, as texts, and what they were made from.

    Columns that are empty in all rows are left out.
    """
    header = [*table.header, *PRETRAINING.values()]
    for label in METRICS.values():
        header += [f"{label} published", f"{label} here", f"{label} 95 %"]
    header += ["AUC less its reference", "n", "runs", "run with"]
    rows, measured = [], []
    for row in table.rows:
        found = measure(row, table.rows, folder)
        measured.append(found)
        line = [*row.labels, *(_skill(found, name) for name in PRETRAINING)]
        for name in METRICS:
            line += [row.published.get(name, ""), *_here(row, found, name)]
        line += [
            "" if found.difference is None else str(found.difference),
            str(found.subjects or ""),
            f"{found.done} of {found.planned}" if row.jobs else "",
            row.note if not row.jobs else _grid_text(found),
        ]
        rows.append(line)
    own = len(table.header)
    kept = [i for i in range(len(header)) if i < own or any(row[i] for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows], measured


def _skill(found: Measured, name: str) -> str:
    if name not in found.metrics:
        return ""
    value = found.metrics[name][0]
    return "not defined" if np.isnan(value) else f"{value:.3f}"


def _here(row: Row, found: Measured, name: str) -> list[str]:
    if name not in found.metrics:
        return ["quoted" if not row.jobs else "not run" if not found.done else "", ""]
    mean, spread, interval = found.metrics[name]
    text = f"{mean:.4f}" + ("" if np.isnan(spread) else f" ± {spread:.4f}")
    if interval is None:
        return [text, ""]
    if np.isnan(interval.low):
        return [text, "not defined"]
    return [text, f"[{interval.low:.3f}, {interval.high:.3f}]"]


def _reference(table: PaperTable) -> str:
    """A sentence on the rows that others are compared with; nothing where there are none."""
    for row in table.rows:
        for name, own, other in zip(table.header, row.labels, row.reference, strict=False):
            if own != other:
                return f" AUC less its reference: less that of the row with {name} = {other}."
    return ""


def _grid_text(found: Measured) -> str:
    if not found.facts:
        return ""
    facts = found.facts
    return (
        f"width {facts['width']}, depth {facts['depth']}, {facts['parameters']:,.0f} parameters, "
        f"{facts['train_subjects']:.0f} training subjects, {facts['epochs']} epochs"
    )


def write_table(
    table: PaperTable, folder: Path, output: Path, synthetic: bool, command: str
) -> list[Path]:
    """Write ``table_<name>.md``, ``.tex``, ``.csv`` and ``.json``; returns the paths."""
    header, rows, measured = cells(table, folder)
    output.mkdir(parents=True, exist_ok=True)
    stem = f"table_{table.name}"
    title = f"Table {table.name}: {table.title}" if table.name.isdecimal() else table.title
    notice = (
        '**Synthetic data, tiny models.** The columns "here" show that the pipeline works; they '
        "have nothing to do with the published numbers beside them.\n\n"
        if synthetic
        else ""
    )
    text = (
        f"# {title}\n\n{notice}Made by `{command}`. Here: mean ± standard deviation over seeds; "
        f"95 %: bootstrap interval over the n test subjects of that mean, not defined where they "
        f"are too few or no resample differs from another; differences are paired."
        f"{_reference(table)}\n"
        f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}\n"
        + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    )
    stream = io.StringIO()
    CsvWriter(stream).writerows([header, *rows])
    record = [_record(row, found) for row, found in zip(table.rows, measured, strict=True)]
    contents = {
        ".md": text,
        ".tex": _latex(title, header, rows, synthetic),
        ".csv": stream.getvalue(),
        ".json": json.dumps({"synthetic": synthetic, "rows": record}, indent=1) + "\n",
    }
    paths = []
    for suffix, content in contents.items():
        path = output / (stem + suffix)
        write_text_atomically(path, content)
        paths.append(path)
    return paths


def _record(row: Row, found: Measured) -> dict[str, Any]:
    """A row in plain containers."""
    metrics = {
        name: {
            "mean": None if np.isnan(mean) else mean,
            "std": None if np.isnan(spread) else spread,
            "interval": None if interval is None else list(interval),
        }
        for name, (mean, spread, interval) in found.metrics.items()
    }
    return {
        "labels": list(row.labels),
        "published": dict(row.published),
        "runs": found.done,
        "planned": found.planned,
        "subjects": found.subjects,
        "metrics": metrics,
        "difference": None if found.difference is None else list(found.difference),
        **found.facts,
    }


def _latex(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], synthetic: bool
) -> str:
    lines = [" & ".join(map(_tex, line)) + " \\\\" for line in (header, *rows)]
    return "\n".join(
        [
            f"% {title}{' (SYNTHETIC DATA)' if synthetic else ''}",
            f"\\begin{{tabular}}{{{'l' * len(header)}}}",
            "\\hline",
            lines[0],
            "\\hline",
            *lines[1:],
            "\\hline",
            "\\end{tabular}\n",
        ]
    )


def _tex(text: str) -> str:
    for plain, escaped in (("%", "\\%"), ("_", "\\_"), ("±", "$\\pm$"), ("&", "\\&")):
        text = text.replace(plain, escaped)
    return text
