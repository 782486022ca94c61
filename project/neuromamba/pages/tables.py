"""Tables that pages of both model families show."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

from neuromamba.evaluation.intervals import CONFIDENCE, RESAMPLES
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.pages.evidence import evidence
from neuromamba.pages.page import Table

_LABELS = {
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "macro_precision": "Macro precision",
    "macro_recall": "Macro recall",
    "mse": "Squared error",
    "mae": "Absolute error",
    "pearson_r": "Pearson r",
    "r2": "R²",
}


PACKAGES = (
    "torch",
    "pytorch-lightning",
    "numpy",
    "scikit-learn",
    "nibabel",
    "nilearn",
    "h5py",
    "matplotlib",
)


def metric_label(name: str, unit: str = "") -> str:
    """A metric's name in tables, with its unit; of one without an entry, its own: Sensitivity."""
    label = _LABELS.get(name, name.replace("_", " ").capitalize())
    power = {"mae": "", "mse": "²"}.get(name)
    return label if not unit or power is None else f"{label} ({unit}{power})"


def metrics_table(
    scores: Mapping[str, SubjectScores],
    class_names: Sequence[str] = (),
    *,
    seed: int = 0,
    samples: str = "windows",
    drawn: str = "",
    units: str = "held-out subjects",
    title: str = "",
    explained: bool = True,
    unit: str = "",
) -> Table:
    """Metrics of a model (first) and of others, with intervals and paired differences.

    Args:
        scores: label -> scores.
        class_names: in the order of the class index; none for a regression.
        seed: of the bootstrap.
        samples: of a subject, whose scores are averaged.
        drawn: what the bootstrap draws, in words; by default subjects, within classes.
        units: what is counted.
        title: of the table.
        explained: whether the note says what the brackets are; once is enough for several tables.
        unit: of the values of a regression.

    Raises:
        UserInputError: the entries were not scored on the same subjects with the same targets.
    """
    first, *_ = scores.values()
    drawn = drawn or ("subjects, within classes" if class_names else "subjects")
    names, main = first.metric_names, first.main_metric
    rows = []
    for label, one in scores.items():
        less = "" if one is first else str(first.difference(one, main, seed))
        rows.append((label, *(str(one.interval(name, seed)) for name in names), less))
    if class_names:
        counts = ", ".join(f"{n} {c}" for n, c in zip(first.per_class, class_names, strict=True))
        what = f" ({counts}); class probabilities averaged over each subject's {samples}, "
        what += "the most probable class decides"
    else:
        what = f"; predictions averaged over each subject's {samples}"
    note = " ".join((f"{len(first.target)} {units}{what}.", *evidence(scores, class_names)))
    return Table(
        rows,
        (
            "",
            *(metric_label(name, unit) for name in names),
            f"{metric_label(main)} of {next(iter(scores))} less this",
        ),
        title,
        note=f"{note} {interval_note(drawn, classes=bool(class_names))}" if explained else note,
        numbers=range(1, len(names) + 2),
        strong=0,
    )


def interval_note(drawn: str, *, classes: bool = False) -> str:
    """Explain the brackets of a table of metrics.

    Args:
        drawn: what the bootstrap draws, in words.
        classes: the table is of a classification.
    """
    note = (
        f"In brackets: {CONFIDENCE:.0%} intervals of {RESAMPLES} bootstrap samples (drawn: "
        f"{drawn}). Differences are paired; two models differ where the interval excludes 0."
    )
    if not classes:
        return note
    return (
        f"{note} Of accuracies of independent subjects the exact interval (Clopper-Pearson); so "
        f"too where all samples have the same AUROC or balanced accuracy, as those of a perfect "
        f"model have."
    )


def time_table(seconds: Mapping[str, float]) -> Table:
    """Run time of each stage, and their sum."""
    rows = [(stage, f"{value:.1f}") for stage, value in seconds.items()]
    rows.append(("together", f"{sum(seconds.values()):.1f}"))
    return Table(rows, ("Stage", "Seconds"), "Run time", numbers=(1,), strong=len(rows) - 1)


def version_table() -> Table:
    """Versions of Python and of the packages that matter for the numbers."""
    rows = [("python", platform.python_version())]
    rows += [(name, importlib.metadata.version(name)) for name in PACKAGES]
    return Table(rows, ("Package", "Version"), "Versions")
