"""Parts of a page about the scores of test subjects, whichever model they are from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from neuromamba.evaluation.calibration import brier_score, reliability
from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.pages.figures import (
    class_roc_figure,
    confusion_figure,
    hardly_varies,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
    save_figure,
    scatter_figure,
)
from neuromamba.pages.page import Link, Picture, Section, Table
from neuromamba.pages.tables import metric_label

CURVES = 4  # of one figure: as many as colours and line styles keep apart


def verdict(
    name: str, metric: str, differences: Mapping[str, Interval], *, decisive: bool = True
) -> list[str]:
    """State which models another one beats, by the paired intervals.

    Args:
        name: of the model.
        metric: name in ``evaluation.metrics``.
        differences: other model -> the model's metric less that of the other.
        decisive: there are subjects enough to decide (``evidence.decisive``).

    Returns:
        One sentence; none without other models.
    """
    if differences and not decisive:
        return [
            f"There are too few held-out subjects to say whether {name} is better or worse than "
            f"{_listed(list(differences))}."
        ]
    found = defaultdict(list)
    for other, difference in differences.items():
        if not np.isfinite([difference.low, difference.high]).all():
            same = difference.value == 0
            words = "cannot be compared (the interval is not defined) with"
            found["has the same value as" if same else words].append(other)
        elif difference.low > 0:
            found["is better than"].append(other)
        elif difference.high < 0:
            found["is worse than"].append(other)
        else:
            found["is not distinguishable from"].append(other)
    said = "; ".join(f"{words} {_listed(names)}" for words, names in found.items())
    return [f"By {metric_label(metric)}, {name} {said}."] if said else []


def _listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, or ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def prediction_figures(
    title: str,
    scores: Mapping[str, SubjectScores],
    classes: Sequence[str],
    folder: Path,
    unit: str = "",
    target: str = "",
) -> Section:
    """Draw ROC, precision and recall, confusion and calibration; or the scatter of a regression.

    Args:
        title: of the section.
        scores: model -> scores of the same subjects; the first is shown in all figures.
        classes: their names; none for a regression.
        folder: receives PNG and PDF files.
        unit: of the values of a regression.
        target: what these values are called; without it, as the title says after "Prediction of".
    """
    name, first = next(iter(scores.items()))
    if not first.is_finite:
        lost = int((~np.isfinite(first.score).all(axis=1)).sum())
        text = f"Scores of {name} are not finite for {lost} of {len(first.target)} subjects, so no "
        return Section(title, (text + "metric is defined and no curve can be drawn.",))
    scores = {label: one for label, one in scores.items() if one.is_finite}

    def picture(figure: Figure, file: str, caption: str) -> Picture:
        path = save_figure(figure, folder / f"{file}.png", for_paper=True)
        return Picture(path, caption, f"{file.replace('_', ' ')} of {name}")

    if not classes:
        caption = f"{name}: each dot is a held-out subject."
        if hardly_varies(first):
            caption += (
                f" Its predictions hardly vary (standard deviation "
                f"{first.score[:, 0].std():.2g}, of the true values {first.target.std():.2g}), so "
                f"that Pearson r says nothing about them."
            )
        figure = scatter_figure(first, target or title.removeprefix("Prediction of "), unit)
        return Section(title, pictures=[picture(figure, "scatter", caption)])
    if len(classes) == 2:
        shown = dict(list(scores.items())[:CURVES])
        caption = "All on the same held-out subjects; area under the curve (AUROC) in the legend."
        pictures = [picture(roc_figure(shown, classes[1]), "roc", caption)]
        caption = "The same for precision and recall; chance is the share of the class."
        pictures.append(
            picture(precision_recall_figure(shown, classes[1]), "precision_recall", caption)
        )
    else:
        caption = f"{name}: each class against all others."
        pictures = [picture(class_roc_figure(first, classes), "roc", caption)]
    caption = f"{name}: subjects by true and predicted class, with the per cent of each true class."
    pictures.append(picture(confusion_figure(first, classes), "confusion", caption))
    found = reliability(first.score, first.target)
    caption = (
        f"{name}: predictions in ten bins of their confidence; the larger a dot, the more "
        f"subjects. Expected calibration error {found.expected_calibration_error:.3f}, Brier score "
        f"{brier_score(first.score, first.target):.3f}."
    )
    pictures.append(picture(reliability_figure(found), "calibration", caption))
    return Section(title, pictures=pictures, side_by_side=True)


def threshold_section(record: Mapping[str, Any]) -> list[Section]:
    """The threshold of an ``evaluation.json``; nothing where none was chosen."""
    if record.get("threshold") is None:
        return []
    shown = "; ".join(
        f"{metric_label(name).lower()} {_interval(found)}"
        for name, found in record["at_threshold"].items()
    )
    text = (
        f"Chosen on the validation subjects for the best balanced accuracy: class 1 from a "
        f"probability of {record['threshold']:.3f} on. On the test subjects: {shown}.",
    )
    return [Section("Threshold", text)]


def confounds_section(record: Mapping[str, Any], title: str = "Confounds") -> list[Section]:
    """The confounds of an ``evaluation.json``; nothing where none were named."""
    confounds = record.get("confounds")
    if not confounds:
        return []
    rows = [
        (name, *(_explained(confounds[of][name]) for of in ("of_target", "of_score")))
        for name in confounds["of_target"]
    ]
    metric = confounds["metric"]
    text = (
        f"{metric_label(metric)} {_interval(confounds['before'])}; with all confounds regressed "
        f"out of the score {_interval(confounds['after'])}. A linear model of the confounds alone: "
        f"{_interval(confounds['alone'][metric])}.",
    )
    note = (
        f"Share of variance explained (adjusted R²) and p of the F test, of "
        f"{confounds['subjects']} test subjects with values of all confounds."
    )
    table = Table(rows, ("confound", "of the target", "of the score"), note=note)
    return [Section(title, text, (table,))]


def _interval(record: Mapping[str, float | None]) -> str:
    ends = (record[name] for name in ("value", "low", "high"))
    return str(Interval(*(float("nan") if end is None else end for end in ends)))


def _explained(record: Mapping[str, float | None]) -> str:
    if record["share"] is None:
        return "not defined"
    return f"{record['share']:.3f} (p {record['p']:.2g})"


def worst_first(scores: SubjectScores) -> np.ndarray:
    """Indices of the subjects by the probability of the true class, or by their error."""
    if scores.task_type == "classification":
        order = scores.score[np.arange(len(scores.subjects)), scores.target]
    else:
        order = -np.abs(scores.score[:, 0] - scores.target)
    return np.argsort(order, kind="stable")


def subject_cells(scores: SubjectScores, row: int, classes: Sequence[str]) -> tuple[str, str, str]:
    """True and predicted class with p(true), or true and predicted value with the error."""
    if classes:
        true, told = int(scores.target[row]), int(scores.score[row].argmax())
        if not np.isfinite(scores.score[row]).all():
            return classes[true], "not defined", "not defined"
        return classes[true], classes[told], f"{scores.score[row, true]:.3f}"
    truth, guess = float(scores.target[row]), float(scores.score[row, 0])
    return f"{truth:.4g}", f"{guess:.4g}", f"{abs(guess - truth):.4g}"


def subjects_table(
    rows: Sequence[Sequence[str | Link]],
    classes: Sequence[str],
    note: str,
    more: Sequence[str] = (),
    unit: str = "",
) -> Table:
    """The sortable table of test subjects.

    Args:
        rows: the subject, its ``subject_cells``, and what ``more`` names.
        classes: names; none for a regression.
        note: what follows on how the table is sorted.
        more: names of further columns.
        unit: of the values of a regression.
    """
    shown = f" ({unit})" if unit else ""
    last = "p(true)" if classes else f"error{shown}"
    head = ("subject", f"true{shown}", f"predicted{shown}", last, *more)
    return Table(
        rows,
        head,
        note=f"The worst first; a click on a column's head sorts by it. {note}".rstrip(),
        numbers=(3,) if classes else (1, 2, 3),
        sortable=True,
    )
