"""The page of ``neuromamba predict``: what is predicted, and how far to trust it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.evaluation.intervals import Interval
from neuromamba.inference.batch import Batch, summary
from neuromamba.inference.calibration import COVERAGE
from neuromamba.inference.model import TrainedModel
from neuromamba.inference.prepared import range_text
from neuromamba.inference.region_model import RegionModel
from neuromamba.pages.figures import BLUE, GREY, ORANGE, new_axes, save_figure, styled
from neuromamba.pages.page import Page, Picture, Section, Table, render, wrap_command
from neuromamba.pages.tables import metric_label
from neuromamba.reports.card_parts import SYNTHETIC

PAGE = "report.html"
_MOST_SCANS = 40  # in a figure


def write_prediction_page(batch: Batch, model_name: str, command: str) -> Path:
    """Write ``report.html`` into the folder of a call; returns its path.

    Args:
        batch: finished.
        model_name: as the user gave it.
        command: for the end of the page.
    """
    model, records = batch.model, batch.in_order
    answered = [record for record in records if record["result"]]
    refused = [record for record in records if not record["result"]]
    assert model.task is not None
    with tempfile.TemporaryDirectory() as folder:
        sections = []
        if answered:
            sections.append(_predictions(model, answered, Path(folder)))
        sections += [_trust(model), *input_sections(answered), *scan_sections(answered, refused)]
        sections.append(contract_section(model))
        sections.append(Section("Command", code=wrap_command(command)))
        what = model.task.task
        page = Page(
            f"Prediction of {what}",
            (
                f"{model_name} on {summary(batch)}.",
                "A prediction of a single person by a model of this kind is a research result and "
                "no diagnosis.",
            ),
            sections,
            notice=_notice(model, answered),
        )
        path = batch.folder.path / PAGE
        write_text_atomically(path, render(page))
    return path


def _notice(model: TrainedModel, answered: Sequence[Mapping[str, Any]]) -> str:
    if notice := range_notice(answered, "predictions"):
        return f"{notice} They have no calibrated probability and no interval."
    if not model.contract.inputs:
        return (
            "The checkpoint does not say what the scans of its training looked like, so it is not "
            "known whether these resemble them."
        )
    return ""


def _predictions(
    model: TrainedModel, answered: Sequence[Mapping[str, Any]], folder: Path
) -> Section:
    names = model.class_names
    head = ["scan", "prediction"]
    if names:
        head += ["probability", "calibrated"]
    else:
        head += [f"{COVERAGE:.0%} interval"]
    head += ["spread over windows", "windows", "in range", "status"]
    rows = [_row(record, names) for record in answered]
    figure = window_figure(model, answered[:_MOST_SCANS])
    more = f" The first {_MOST_SCANS} of {len(answered)} scans." if len(rows) > _MOST_SCANS else ""
    unit = f" in {model.unit}" if model.unit else ""
    what = f"Probability of {names[-1]}" if names else f"Predicted value{unit}"
    picture = Picture(
        save_figure(figure, folder / "windows.png"),
        f"{what} of each window (small) and their mean (large).{more}",
        f"{what} of the windows of each scan, and their mean.",
    )
    note = (
        "Spread: standard deviation over the windows of a scan. It says how steady the prediction "
        "is, not how right it is."
    )
    numbers = range(2, len(head) - 2)
    table = Table(rows, head, note=note, numbers=numbers, sortable=True)
    return Section("Predictions", tables=[table], pictures=[picture])


def _row(record: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    result = record["result"]
    value, spread = result["value"], result["spread"]
    row = [record["scan"]]
    if names:
        calibrated = result["calibrated"]
        row += [value, f"{result['probabilities'][value]:.3f}"]
        row += ["not defined" if calibrated is None else f"{calibrated[value]:.3f}"]
    else:
        unit = f" {result['unit']}" if result["unit"] else ""
        ends = result["interval"]
        row += [f"{value:.4g}{unit}"]
        row += ["not defined" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}{unit}"]
    inside = {True: "yes", False: "no", None: "not known"}[result["in_range"]]
    row += ["one window" if spread is None else f"{spread:.3g}"]
    return [*row, str(len(result["windows"])), inside, record["status"]]


@styled
def window_figure(model: TrainedModel, answered: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the windows of each scan and their mean, one line per scan."""
    names = model.class_names
    figure, axes = new_axes(6.2, 1.4 + 0.28 * len(answered))
    for y, record in enumerate(answered):
        values = np.asarray(record["result"]["windows"])[:, -1]
        axes.plot(values, np.full(len(values), y), "o", color=GREY, markersize=3, alpha=0.6)
        inside = record["result"]["in_range"] is not False
        axes.plot(values.mean(), y, "o" if inside else "X", color=BLUE if inside else ORANGE)
    axes.set_yticks(range(len(answered)), [_short(record["scan"]) for record in answered])
    axes.set_ylim(len(answered) - 0.5, -0.5)
    unit = f" ({model.unit})" if model.unit else ""
    assert model.task is not None
    axes.set_xlabel(f"probability of {names[-1]}" if names else f"{model.task.task}{unit}")
    if len(names) == 2:
        axes.set_xlim(-0.02, 1.02)
        axes.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
    if any(record["result"]["in_range"] is False for record in answered):
        axes.plot([], [], "X", color=ORANGE, label="mean of a scan out of range")
        axes.plot([], [], "o", color=BLUE, label="mean of a scan in range")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _trust(model: TrainedModel | RegionModel) -> Section:
    """How well the model did on people it was not trained on."""
    found = model.evaluation
    if not found.get("metrics"):
        text = (
            "No test of this model is recorded beside it, so nothing is known about its errors. "
            "Run folders and exports of them hold one.",
        )
        return Section("How good the model is", text)
    rows = [
        (
            metric_label(name, model.unit),
            str(Interval(*(_number(one[end]) for end in ("value", "low", "high")))),
        )
        for name, one in found["metrics"].items()
    ]
    data = f"its own training's data{_trained_on(model)}"
    tested = [f"On the {found['subjects']} test subjects of {data}:"]
    after = "Scans of another scanner, population or preprocessing may be predicted worse."
    calibration = model.calibration
    if calibration is not None and calibration.half_width is not None:
        after += (
            f" The {COVERAGE:.0%} interval of a prediction is the error that {COVERAGE:.0%} of its "
            f"{calibration.subjects} validation subjects stayed below."
        )
    elif calibration is not None and calibration.power is not None:
        after += (
            f" Calibrated probabilities are fitted to its {calibration.subjects} validation "
            f"subjects (temperature {1 / calibration.power:.2f})."
        )
    elif isinstance(model, RegionModel):
        after += (
            " It was trained without validation subjects, so there are no calibrated probabilities."
        )
    elif model.task is not None and model.task.task_type == "regression":
        after += " Its validation subjects are too few for an interval, which needs 9 of them."
    else:
        after += (
            " Its validation subjects define no calibrated probabilities: these need 10 of each "
            "class, and some whom the model gets wrong."
        )
    table = Table(rows, ("metric", "value with 95 % interval"), note=after)
    return Section("How good the model is", tested, [table])


def _trained_on(model: TrainedModel | RegionModel) -> str:
    """Which data these are, in brackets; "" where that is not recorded."""
    names = model.contents.metadata.get("data", {}).get("config", {}).get("dataset_name", ())
    if SYNTHETIC in names:
        return f" ({SYNTHETIC}: synthetic, if they are those of the demo, and not of people)"
    return f" ({', '.join(names)})" if names else ""


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def input_sections(answered: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Each scan's measures beside those of the training."""
    measured = [record for record in answered if record["prepared"].get("measures")]
    if not measured:
        return []
    first = measured[0]["prepared"]["measures"]
    head = ("scan", *(name.replace("_", " ") for name in first))
    training = [range_text(one["training"][0], one["training"][2]) for one in first.values()]
    rows = [("training", *training)]
    rows += [
        (record["scan"], *(_measure(one) for one in record["prepared"]["measures"].values()))
        for record in measured
    ]
    explained = "; ".join(
        f"{name.replace('_', ' ')}: {one['meaning']}"
        for name, one in first.items()
        if "meaning" in one  # not in records of an earlier version
    )
    note = (
        f"{explained}. An exclamation mark: outside the range of the training's runs, widened at "
        f"either end by half of its width (more where few runs were measured) and by a tenth of "
        f"their median."
    )
    table = Table(rows, head, note=note, numbers=range(1, len(head)), strong=0)
    return [Section("Does the scan look like those of the training?", tables=[table])]


def _measure(one: Mapping[str, Any]) -> str:
    if one["value"] is None:
        return "not defined"
    return f"{one['value']:.3g}{' !' if one['inside'] is False else ''}"


def range_notice(answered: Sequence[Mapping[str, Any]], what: str) -> str:
    """Say how many scans are out of the training's range; "" if none is.

    Args:
        answered: records of scans.
        what: that is made of them, such as "maps".
    """
    out = 0
    for record in answered:
        measures = record["prepared"].get("measures", {})
        out += any(one["inside"] is False for one in measures.values())
    if not out:
        return ""
    return (
        f"{out} of {len(answered)} scans differ from the training's in a way that the model has "
        f"not seen (see the measures): their {what} may mean nothing."
    )


def scan_sections(
    answered: Sequence[Mapping[str, Any]], refused: Sequence[Mapping[str, Any]]
) -> list[Section]:
    """What was done to each scan, the doubts about it, and why others were refused."""
    sections = []
    if answered:
        rows = [
            (
                record["scan"],
                Path(record["prepared"]["source"]).name,
                "; ".join(record["prepared"]["actions"]),
                " ".join(record["prepared"]["problems"]) or "none",
            )
            for record in answered
        ]
        table = Table(rows, ("scan", "file", "what was done", "doubts and remedies"))
        sections.append(Section("What was done to the scans", tables=[table]))
    if refused:
        reasons = [(record["scan"], record["reason"]) for record in refused]
        sections.append(Section("Refused", tables=[Table(reasons, ("scan", "reason"))]))
    return sections


def contract_section(model: TrainedModel) -> Section:
    """What the model expects of a scan."""
    return Section("What the model expects", tables=[Table(model.contract.describe())])
