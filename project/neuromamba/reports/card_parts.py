"""Parts of model cards, in Markdown, that both families have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from neuromamba.evaluation.intervals import Interval
from neuromamba.pages.tables import metric_label

SYNTHETIC = "Dummy"  # the data set of scans that `neuromamba synthetic` makes
FOLDER = "MODEL_FOLDER"  # stands for the folder in commands
NOT_COMPARED = "so it is not known whether a simple model does as well."
# Name of a metric here -> on the hub.
HUB_METRICS = {
    "auroc": "roc_auc",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "macro_f1": "f1",
    "mse": "mse",
    "mae": "mae",
    "pearson_r": "pearsonr",
    "r2": "r_squared",
}


def section(title: str, paragraphs: Sequence[str]) -> list[str]:
    """A heading and what stands below it."""
    return [f"## {title}", *paragraphs]


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ("", "")) -> str:
    """A table of texts."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def interval(one: Mapping[str, Any]) -> str:
    """A value with its interval, from plain containers."""
    values = (one.get(end) for end in ("value", "low", "high"))
    return str(Interval(*(math.nan if value is None else float(value) for value in values)))


def results(
    metrics: Mapping[str, Any], baselines: Sequence[Mapping[str, Any]], main: str, without: str
) -> list[str]:
    """The metrics of a test in a table, a row each for the model and its baselines.

    Args:
        metrics: of the model, name -> value with interval.
        baselines: each with "name", "text" (what it is; None is left out), "metrics" ({} where
            they are not known) and "difference", paired, of ``main``: model less baseline.
        main: metric that models are compared by.
        without: the text if there are no baselines.
    """
    rows = [["this model", *map(interval, metrics.values())]]
    head = ["", *map(metric_label, metrics)]
    if not baselines:
        return [table(rows, head), without]
    rows[0].append("")
    for one in baselines:
        known = one["metrics"]
        cells = (interval(known[name]) if name in known else "" for name in metrics)
        rows.append([one["name"], *cells, interval(one["difference"])])
    explained = [f"{one['name']}: {one['text']}" for one in baselines if one["text"]]
    return [
        table(rows, [*head, f"{metric_label(main)}: model less this"]),
        *([bullets(explained)] if explained else []),
        "The baselines were scored on the same test subjects; differences are paired. Two models "
        "differ where the interval of the difference excludes 0.",
    ]


def calibration_errors(found: Mapping[str, Any]) -> str:
    """A sentence, with a space behind it, about errors of calibration; "" if none is known."""
    words = [
        f"{label} {found[name]:.3f}"
        for name, label in (("ece", "expected calibration error"), ("brier", "Brier score"))
        if isinstance(found.get(name), float)
    ]
    return f"Calibration on the test subjects: {', '.join(words)}. " if words else ""


def licence(license_id: str | None) -> str:
    """The text about the licence; None: the text says that none is stated."""
    if license_id is None:
        return (
            "Not stated. Ask the people who share the model; the licence of NeuroMamba's code "
            "(Apache-2.0) does not extend to it, and the terms of the training data may apply."
        )
    return f"{license_id}, of the weights. The terms of the training data may apply as well."


STATE_SPACE = ("state-space-model", "mamba2")
TRANSFORMER = ("transformer", "swift")


def hub_head(
    kind: str,
    datasets: Iterable[str],
    metrics: Iterable[str],
    license_id: str | None,
    architecture: Sequence[str] = STATE_SPACE,
) -> str:
    """The head of the model card, which the hub reads as YAML.

    Args:
        kind: of the model: "classification", "regression" or "feature-extraction".
        datasets: names of the data sets.
        metrics: names of the metrics that the model card reports.
        license_id: of the model; None: not stated.
        architecture: tags that name it.
    """
    tags = ["neuroimaging", "fmri", "brain", *architecture, "neuromamba", kind]
    head: dict[str, Any] = {"library_name": "neuromamba", "tags": tags}
    if license_id is not None:
        head["license"] = license_id
    head["datasets"] = list(dict.fromkeys(datasets))
    named = [HUB_METRICS[one] for one in metrics if one in HUB_METRICS]
    if named:
        head["metrics"] = named
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def how_to_use(
    shell: Sequence[str],
    python: Sequence[str],
    link: str = "https://openreview.net/forum?id=kftg4lmQi8",
) -> list[str]:
    """The lines that use a model, in a shell and in Python.

    Args:
        shell, python: lines of code.
        link: to the paper.
    """
    return [
        f"With [NeuroMamba]({link}) installed from its repository, in a shell:",
        "```bash\n" + "\n".join(shell) + "\n```",
        "or in Python:",
        "```python\n" + "\n".join(python) + "\n```",
        "No code of the folder is executed: weights are safetensors, all else is text.",
    ]
