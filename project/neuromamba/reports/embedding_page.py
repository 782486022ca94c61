"""The page of ``neuromamba embed``: a map of the scans, and what simple models read from them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.text import ABSENT, category, names_for_message, number
from neuromamba.data.cohorts.tables import Table as Cells
from neuromamba.data.cohorts.tables import read_table
from neuromamba.evaluation.cross_validated import FOLDS, LEAST, cross_validated
from neuromamba.inference.batch import Batch, summary
from neuromamba.inference.embedding_files import EMBEDDINGS
from neuromamba.inference.region_model import RegionModel
from neuromamba.pages.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    new_axes,
    save_figure,
    styled,
)
from neuromamba.pages.page import Page, Picture, Section, Table, render, wrap_command
from neuromamba.pages.tables import interval_note, metric_label
from neuromamba.reports.prediction_page import PAGE, contract_section, scan_sections

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000", GREY)
_MARKERS = "osD^vP*X"
_MOST_CLASSES = len(_COLOURS)


class Labels(NamedTuple):
    """Labels of subjects.

    Attributes:
        column: its name.
        of_subject: subject -> class index or value.
        classes: names; () of values.
    """

    column: str
    of_subject: Mapping[str, int | float]
    classes: tuple[str, ...]


def write_embedding_page(
    batch: Batch, model_name: str, command: str, *, labels: str | None, column: str | None
) -> Path:
    """Write ``report.html`` into the folder of a call; returns its path.

    Args:
        batch: finished.
        model_name: as the user gave it.
        command: for the end of the page.
        labels, column: table of subjects and its column to colour and probe by; or None.

    Raises:
        UserInputError: the table does not fit the subjects.
    """
    records = batch.in_order
    answered = [record for record in records if record["result"]]
    refused = [record for record in records if not record["result"]]
    sections: list[Section] = []
    path = batch.folder.path / PAGE
    with tempfile.TemporaryDirectory() as folder:
        if answered:
            names, rows = scan_rows(batch.folder.path / EMBEDDINGS)
            subjects = {record["scan"]: record["subject"] for record in answered}
            found = None
            if labels is not None and column is not None:
                found = read_labels_of(Path(labels), column, sorted(set(subjects.values())))
            owners = [subjects[name] for name in names]
            sections.append(_map(rows, owners, found, Path(folder)))
            if found is not None:
                sections.append(_probes(rows, owners, found))
        sections += [*scan_sections(answered, refused), contract_section(batch.model)]
        sections.append(Section("Command", code=wrap_command(command)))
        options = batch.folder.options
        text = f"Layer {options['layer']}, rows of kind {options['pool']}"
        text += f", statistics over time: {', '.join(options['statistics'])}."
        if isinstance(batch.model, RegionModel):
            text = "Means over time of every pathway, and their fusion, one after the other."
        page = Page("Embeddings", (f"{model_name} on {summary(batch)}.", text), sections)
        write_text_atomically(path, render(page))
    return path


def scan_rows(path: Path) -> tuple[list[str], np.ndarray]:
    """One row per scan: the statistics (and regions) side by side, windows averaged.

    Args:
        path: ``embeddings.parquet``.

    Returns:
        S names of scans, and float64 [S, D]. Only regions that all scans have are used.
    """
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    features = [name for name in table.column_names if name[0] == "f" and name[1:].isdigit()]
    values = np.column_stack([table.column(name).to_numpy() for name in features])
    columns = [table.column(name).to_pylist() for name in ("scan", "region", "statistic")]
    keys = list(zip(*columns, strict=True))
    sums: dict[tuple[str, str, str], np.ndarray] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for key, row in zip(keys, values.astype(np.float64), strict=True):
        sums[key] = sums[key] + row if key in sums else row
        counts[key] = counts.get(key, 0) + 1
    scans = list(dict.fromkeys(key[0] for key in keys))
    kinds = dict.fromkeys(key[1:] for key in keys)
    shared = [kind for kind in kinds if all((scan, *kind) in sums for scan in scans)]
    whole = [[(scan, *kind) for kind in shared] for scan in scans]
    return scans, np.stack([np.concatenate([sums[k] / counts[k] for k in one]) for one in whole])


def read_labels_of(path: Path, column: str, subjects: Sequence[str]) -> Labels:
    """Read a column of a table of subjects; ``sub-`` in front of a name does not matter.

    A column of numbers with more than eight different values is a regression, others are classes.
    Subjects without a value are left out.

    Raises:
        UserInputError: no such column; no column of subjects; no value for anybody; too many
            classes.
    """
    table = read_table(path)
    texts = table.column(column, "--label_column")
    wanted = {_bare(subject): subject for subject in subjects}
    found: dict[str, str] = {}
    for name, text in zip(_subject_column(table, set(wanted)), texts, strict=True):
        subject = wanted.get(_bare(name))
        if subject is None or text.lower() in ABSENT:
            continue
        if found.setdefault(subject, text) != text:
            raise UserInputError(
                f"--labels: '{path}' has two values of {column} for {subject}: {found[subject]} "
                f"and {text}. Keep one row."
            )
    if not found:
        raise UserInputError(
            f"--labels: '{path}' has no value of {column} for any of the {len(subjects)} subjects: "
            f"{names_for_message(subjects)}. Check the column of subjects."
        )
    values = {subject: number(text) for subject, text in found.items()}
    numbers = {subject: value for subject, value in values.items() if value is not None}
    if len(numbers) == len(found) and len(set(numbers.values())) > _MOST_CLASSES:
        return Labels(column, numbers, ())
    classes = tuple(sorted({category(text) for text in found.values()}))
    if len(classes) > _MOST_CLASSES:
        raise UserInputError(
            f"--label_column: '{column}' has {len(classes)} different texts, expected numbers or "
            f"at most {_MOST_CLASSES} classes."
        )
    index = {subject: classes.index(category(text)) for subject, text in found.items()}
    return Labels(column, index, classes)


def _bare(name: str) -> str:
    return name.removeprefix("sub-")


def _subject_column(table: Cells, wanted: set[str]) -> list[str]:
    """The column in which most of the subjects are found."""
    columns = [table.column(name, "--labels") for name in table.columns]
    hits = [len({_bare(cell) for cell in cells} & wanted) for cells in columns]
    if not hits or max(hits) == 0:
        raise UserInputError(
            f"--labels: no column of {table.summary} holds the names of the subjects, such as "
            f"{min(wanted)}."
        )
    return columns[hits.index(max(hits))]


def _map(rows: np.ndarray, owners: Sequence[str], labels: Labels | None, folder: Path) -> Section:
    points, shares = principal_components(rows)
    figure = map_figure(points, shares, owners, labels)
    coloured = f"Colours: {labels.column}." if labels else "Scans of a subject share a colour."
    kept = shares.sum()
    picture = Picture(
        save_figure(figure, folder / "map.png"),
        f"Each point is a scan: its standardised features on their first two principal "
        f"components, which hold {kept:.0%} of the variance. {coloured} Distances along other "
        f"directions do not show.",
        "Scans on the first two principal components of their features.",
    )
    return Section("Map of the scans", pictures=[picture])


def principal_components(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project rows [S, D] on their first two principal components after standardising columns.

    Returns:
        [S, 2] points, and [2] shares of the variance; 0 where there is no second component.
    """
    spread = rows.std(axis=0)
    moves = spread > 1e-10 * np.abs(rows.mean(axis=0))
    z = (rows[:, moves] - rows[:, moves].mean(axis=0)) / spread[moves]
    left, size, _ = np.linalg.svd(z, full_matrices=False)
    points, shares = np.zeros((len(rows), 2)), np.zeros(2)
    count = min(2, len(size))
    points[:, :count] = left[:, :count] * size[:count]
    total = np.square(size).sum()
    shares[:count] = np.square(size[:count]) / total if total > 0 else 0
    return points, shares


@styled
def map_figure(
    points: np.ndarray, shares: np.ndarray, owners: Sequence[str], labels: Labels | None
) -> Figure:
    """Draw the points [S, 2], coloured by label or subject."""
    figure, axes = new_axes(6.0, 5.2)
    of_subject = {} if labels is None else labels.of_subject
    known = np.array([owner in of_subject for owner in owners])
    if labels is not None and not labels.classes:
        values = [of_subject[owner] for owner in owners if owner in of_subject]
        drawn = axes.scatter(points[known, 0], points[known, 1], c=values, cmap="viridis", s=28)
        figure.colorbar(drawn, label=labels.column)
    elif labels is not None:
        for i, name in enumerate(labels.classes):
            here = np.array([of_subject.get(owner) == i for owner in owners])
            x, y = points[here].T
            axes.scatter(x, y, c=_COLOURS[i], marker=_MARKERS[i], s=28, label=name)
        figure.legend(loc="outside lower center", ncols=3)
    else:
        order = {subject: i for i, subject in enumerate(dict.fromkeys(owners))}
        colours = [_COLOURS[order[owner] % len(_COLOURS)] for owner in owners]
        axes.scatter(points[:, 0], points[:, 1], c=colours, s=28)
    if labels is not None and not known.all():
        x, y = points[~known].T
        axes.scatter(x, y, c=GREY, marker="x", s=20)
    axes.set_xlabel(f"component 1 ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"component 2 ({shares[1]:.0%})")
    return figure


def _probes(rows: np.ndarray, owners: Sequence[str], labels: Labels) -> Section:
    """Linear and nearest-neighbour probes over subjects, by cross-validation."""
    subjects = tuple(name for name in dict.fromkeys(owners) if name in labels.of_subject)
    x = np.stack([rows[[owner == name for owner in owners]].mean(axis=0) for name in subjects])
    y = np.array([labels.of_subject[name] for name in subjects])
    classes = len(labels.classes) or 1
    title = f"What simple models read: {labels.column}"
    found = {}
    if classes > 1 or not labels.classes:
        found = cross_validated(subjects, x, y, classes=classes)
    if not found:
        text = (
            f"Not defined: {len(subjects)} subjects with a label; at least two classes of {LEAST} "
            f"subjects each (or {LEAST} subjects with values) are needed.",
        )
        return Section(title, text)
    kinds = {"linear": "linear probe", "knn": "5 nearest neighbours"}
    first = found["linear"]
    drawn = "subjects" if classes == 1 else "subjects, within classes"
    table = Table(
        [
            (kinds[name], *(str(one.interval(metric)) for metric in first.metric_names))
            for name, one in found.items()
        ],
        ("probe", *(metric_label(metric) for metric in first.metric_names)),
        note=f"{len(subjects)} subjects, each predicted by a probe that was fitted on others "
        f"({FOLDS} folds; scans of a subject averaged). "
        f"{interval_note(drawn, classes=classes > 1)} A raw signal "
        f"may hold as much: neuromamba probe sets features beside those of an untrained backbone "
        f"and of the signal itself.",
        numbers=range(1, len(first.metric_names) + 1),
    )
    return Section(title, tables=[table])
