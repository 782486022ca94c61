"""Tables and figure of ``frozen_decoding.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from neuromamba.pages.figures import save_figure, styled
from neuromamba.reports.real_subjects.sherlock_scores import (
    AUTOCORRELATION,
    PLACES,
    RAW,
    RAW_LEVEL,
    Values,
    interval,
    merged,
)

STEM = "frozen_decoding"
PRETRAINED_ROW, UNTRAINED_ROW = PLACES


class Task(NamedTuple):
    """A table.

    Attributes:
        dataset, key: where its values are; ``key`` may have a metric behind a slash.
        title, metric: shown.
        unit: what is drawn for intervals.
        chance: value of guessing.
        references: rows that the others are compared with.
    """

    dataset: str
    key: str
    title: str
    metric: str
    unit: str
    chance: float
    references: tuple[str, ...]


TASKS = (
    Task(
        "haxby2001",
        "category",
        "haxby2001: eight object categories",
        "accuracy",
        "runs",
        1 / 8,
        (RAW, UNTRAINED_ROW),
    ),
    Task(
        "sherlock_pmc",
        "scene",
        "sherlock_pmc: one of 50 scenes",
        "accuracy",
        "subjects",
        1 / 50,
        (RAW, RAW_LEVEL, UNTRAINED_ROW),
    ),
    Task(
        "sherlock_pmc",
        "state/auroc",
        "sherlock_pmc: film or recall",
        "AUROC",
        "subjects",
        0.5,
        (RAW, AUTOCORRELATION, UNTRAINED_ROW),
    ),
    Task(
        "sherlock_pmc",
        "state/balanced_accuracy",
        "sherlock_pmc: film or recall",
        "balanced accuracy",
        "subjects",
        0.5,
        (RAW, AUTOCORRELATION, UNTRAINED_ROW),
    ),
)


def values_of(parts: Sequence[Mapping[str, Any]], key: str) -> Values:
    """Values of a task, averaged over seeds."""
    found = []
    for part in parts:
        value: Any = part
        for name in key.split("/"):
            value = value[name]
        found.append(value)
    return merged(found)


def table(task: Task, values: Values) -> tuple[list[str], dict[str, Any]]:
    """Lines of Markdown, and the same as a record."""
    head = [task.metric, *(f"less: {name}" for name in task.references)]
    lines = [f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    record: dict[str, Any] = {}
    for name, row in values.items():
        score = interval(row)
        less = {r: interval(row, values[r]) for r in task.references if r != name}
        cells = [str(less[r]) if r in less else "" for r in task.references]
        lines.append(f"| {name} | {score} | {' | '.join(cells)} |")
        record[name] = {
            "value": list(score),
            "less": {r: list(found) for r, found in less.items()},
            "units": row,
        }
    return lines, record


def write_report(
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    out: Path,
    *,
    seeds: Mapping[str, int],
    epochs: Mapping[str, int],
) -> None:
    """Write and print the tables, the record and the figure.

    Args:
        parts: data set -> results of its folds and seeds.
        out: folder.
        seeds, epochs: of the pre-trainings on each data set.
    """
    record: dict[str, Any] = {"pretraining": {}, "tasks": {}}
    text = [
        "# Decoding from frozen features kept apart by place",
        "",
        "Made by `python paper/frozen_decoding.py`. In each fold a backbone is pre-trained without "
        "labels on the runs or subjects that are not",
        "left out; untrained backbones have the same seeds. A value is the mean over runs or "
        "subjects left out, each averaged over seeds; in",
        "brackets its 95 % BCa bootstrap interval over these runs or subjects. The columns "
        '"less ..." are paired differences on the same runs',
        "or subjects.",
    ]
    for name, found in parts.items():
        skill = [one["dynamic_skill"] for one in found]
        settings = {"seeds": seeds[name], "epochs": epochs[name], "dynamic_skill": skill}
        record["pretraining"][name] = settings
        text += [
            "",
            f"Pre-training on {name}: {seeds[name]} seed(s), {epochs[name]} epochs, dynamic skill "
            f"on validation runs {np.mean(skill):.3f} (mean), {min(skill):.3f} to "
            f"{max(skill):.3f}.",
        ]
    shown = [task for task in TASKS if task.dataset in parts]
    for task in shown:
        lines, rows = table(task, values_of(parts[task.dataset], task.key))
        record["tasks"][f"{task.dataset}/{task.key}"] = {"chance": task.chance, "rows": rows}
        count = len(rows[PRETRAINED_ROW]["units"])
        title = f"**{task.title}** ({count} {task.unit}, chance {task.chance:g})"
        text += ["", title, "", *lines]
    (out / f"{STEM}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (out / f"{STEM}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    panels = [task for task in shown if task.metric != "balanced accuracy"]
    save_figure(draw(panels, record["tasks"]), out / f"{STEM}.png")
    print("\n".join(text))


@styled
def draw(tasks: Sequence[Task], records: Mapping[str, Any]) -> Figure:
    """A panel a task: rows with their intervals, runs or subjects as grey points, and chance."""
    sizes = [len(records[f"{task.dataset}/{task.key}"]["rows"]) for task in tasks]
    figure = Figure(figsize=(8.6, 0.9 * len(tasks) + 0.34 * sum(sizes)), layout="constrained")
    panels = figure.subplots(len(tasks), squeeze=False, height_ratios=sizes)[:, 0]
    for task, axes in zip(tasks, panels, strict=True):
        rows = records[f"{task.dataset}/{task.key}"]["rows"]
        for place, row in enumerate(rows.values()):
            units = list(row["units"].values())
            axes.plot(units, [place] * len(units), "o", color="0.75", markersize=3, zorder=1)
            value, low, high = row["value"]
            error = [[value - low], [high - value]]
            axes.errorbar([value], [place], xerr=error, fmt="o", color="#0a5a9c", capsize=3)
        axes.axvline(task.chance, color="0.4", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.set_title(task.title)
        axes.set_xlabel(f"{task.metric} ({task.unit} left out; dashed: chance)")
    return figure
