"""The page of ``neuromamba embed``: a map of the scans, and what simple models read from them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.config.names import LAST_LAYER
from neuromamba.evaluation.cross_validated import FOLDS, LEAST, cross_validated
from neuromamba.fmamba.layer_outputs import EMBEDDING
from neuromamba.inference.batch import Batch, summary
from neuromamba.inference.embed import layer_name
from neuromamba.inference.embedding_files import EMBEDDINGS
from neuromamba.inference.region_model import RegionModel
from neuromamba.inference.subject_labels import MOST_CLASSES, SubjectLabels
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
from neuromamba.reports.prediction_page import (
    PAGE,
    contract_section,
    input_sections,
    range_notice,
    scan_sections,
)

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000", GREY)
_MARKERS = "osD^vP*X"
_LAYERS = {LAST_LAYER: "features after the final norm", EMBEDDING: "embedded tokens"}
_POOLS = {
    "subject": "a scan (the mean over the brain and over all windows)",
    "window": "a window of a scan (the mean over the brain)",
    "region": "a region of a scan (the mean over all windows)",
}
_FEWEST = 3  # scans on a map
assert len(_COLOURS) == len(_MARKERS) == MOST_CLASSES


def write_embedding_page(
    batch: Batch, model_name: str, command: str, labels: SubjectLabels | None = None
) -> Path:
    """Write ``report.html`` into the folder of a call; returns its path.

    Args:
        batch: finished.
        model_name: as the user gave it.
        command: for the end of the page.
        labels: of the subjects, to colour and probe by; or None.
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
            owners = [subjects[name] for name in names]
            known = None if labels is None else labels.among(owners)
            if labels is not None and known is None:
                text = f"No scan with an answer is of a subject with a value of {labels.column}."
                sections.append(Section("Labels", (text,)))
            sections.append(_map(rows, owners, known, Path(folder)))
            if known is not None:
                sections.append(_probes(rows, owners, known))
        sections += [*input_sections(answered), *scan_sections(answered, refused)]
        sections.append(contract_section(batch.model))
        sections.append(Section("Command", code=wrap_command(command)))
        intro = (f"{model_name} on {summary(batch)}.", _what_a_row_is(batch))
        page = Page("Embeddings", intro, sections, notice=range_notice(answered, "embeddings"))
        write_text_atomically(path, render(page))
    return path


def _what_a_row_is(batch: Batch) -> str:
    """Which features the rows of embeddings.parquet hold, in one sentence."""
    if isinstance(batch.model, RegionModel):
        return "A row holds the means over time of every pathway and of their fusion."
    options = batch.folder.options
    layer = layer_name(options["layer"], batch.model.contract.model.token_blocks)
    features = _LAYERS.get(layer, f"outputs of {layer}")
    return (
        f"A row of {EMBEDDINGS} holds the {features}, for {_POOLS[options['pool']]}. Statistics "
        f"over time, a row each: {', '.join(options['statistics'])}."
    )


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


def _map(
    rows: np.ndarray, owners: Sequence[str], labels: SubjectLabels | None, folder: Path
) -> Section:
    title = "Map of the scans"
    if len(rows) < _FEWEST:
        text = (
            f"Not drawn for fewer than {_FEWEST} scans: a map would only show whether they differ."
        )
        return Section(title, (text,))
    points, shares = principal_components(rows)
    figure = map_figure(points, shares, owners, labels)
    coloured = f"Colours: {labels.column}." if labels else "Scans of a subject share a colour."
    held = f"which hold {shares.sum():.0%} of the variance"
    if len(rows) == _FEWEST:
        held = f"which always hold all of the variance of {_FEWEST} scans"
    picture = Picture(
        save_figure(figure, folder / "map.png"),
        f"Each point is a scan: its standardised features on their first two principal "
        f"components, {held}. {coloured} Distances along other directions do not show.",
        "Scans on the first two principal components of their features.",
    )
    return Section(title, pictures=[picture])


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
    points: np.ndarray, shares: np.ndarray, owners: Sequence[str], labels: SubjectLabels | None
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


def _probes(rows: np.ndarray, owners: Sequence[str], labels: SubjectLabels) -> Section:
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
