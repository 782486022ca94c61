"""The page of an evaluation, ``Results/<DATASET>/<MODEL>/report.html``, and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuromamba.common.atomic_files import write_text_atomically
from neuromamba.data.regions.cohort import Cohort
from neuromamba.data.regions.holdout import EXTERNAL
from neuromamba.neurossm.holdouts import HoldoutReport
from neuromamba.neurossm.report_pictures import all_confusions, curves_figure, training_curves
from neuromamba.neurossm.report_results import PART_TITLES, left_out_section, results_section
from neuromamba.neurossm.results import (
    PARTS,
    FitResult,
    Results,
)
from neuromamba.pages.evidence import ENOUGH
from neuromamba.pages.figures import save_figure
from neuromamba.pages.page import Page, Picture, Section, Table, render
from neuromamba.pages.score_sections import (
    confounds_section,
    prediction_figures,
    subject_cells,
    subjects_table,
    verdict,
    worst_first,
)
from neuromamba.pages.tables import metric_label, metrics_table, version_table

if TYPE_CHECKING:
    from neuromamba.neurossm.comparison import Comparison


def write_report(
    folder: Path,
    cohort: Cohort,
    results: Results,
    reports: Sequence[HoldoutReport],
    compared: Sequence[Comparison],
    flags: Mapping[str, str],
    shares: Mapping[int, float],
) -> Path:
    """Draw the figures, and write ``report.html``; returns its path.

    Args:
        folder: of the model; receives ``curves.png`` and ``confusion_*.png``, and below
            ``figures/`` those of the first seed's holdout.
        cohort: the data.
        results: the model's first, then those of the baselines.
        reports: evaluation of the holdouts, and, if there is one, of the external cohort.
        compared: the model and its baselines over splits.
        flags: of the command line.
        shares: seed -> of NeuroSSM's first-order logits, see ``first_order_share``; empty without.
    """
    name, own = next(iter(results.items()))
    holdouts = reports[0]
    classes, first = cohort.details.classes, holdouts.holdouts[0]
    details = cohort.details
    sections = [results_section(results, compared)]
    if flags.get("leave_out"):
        found = left_out_section(results, flags["leave_out"])
        sections += [] if found is None else [found]
    sections += [_holdout_section(cohort, report) for report in reports]
    sections.append(
        prediction_figures(
            f"Holdout of seed {first.seed}",
            first.scores,
            classes,
            folder / "figures",
            details.unit,
            details.target,
        )
    )
    pictures = []
    for part in PARTS:
        of_part = [result for result in own if result.part == part]
        if of_part and classes:
            pictures.append(all_confusions(folder, part, of_part, classes))
    if pictures:
        sections.append(
            Section("Confusions of all fits", pictures=pictures, side_by_side=len(pictures) > 1)
        )
    record = holdouts.record()["holdouts"]
    for one in holdouts.holdouts:
        title = f"Confounds, holdout of seed {one.seed}"
        sections += confounds_section(record[str(one.seed)], title)
    sections.append(_subjects_section(holdouts, classes, details.unit))
    curves = training_curves(folder, own)
    if curves:
        loss = "squared error (standardised)" if details.is_regression else "cross entropy (nats)"
        figure = save_figure(curves_figure(curves, loss), folder / "curves.png")
        caption = "Training loss of each fit; the weights of the last epoch are the ones tested."
        alt = f"Line plot of the {loss} of {len(curves)} fits over optimiser steps."
        sections.append(Section("Training", pictures=[Picture(figure, caption, alt)]))
    sections.append(Section("Data", tables=[_data_table(cohort)]))
    given = [[key, value] for key, value in sorted(flags.items())]
    sections.append(
        Section(
            "Settings and versions",
            tables=[Table(given, title="Settings"), version_table()],
            side_by_side=True,
        )
    )
    page = Page(f"{name} on {cohort.title}", _what(cohort, own, flags, shares), sections)
    path = folder / "report.html"
    write_text_atomically(path, render(page))
    return path


def _holdout_section(cohort: Cohort, found: HoldoutReport) -> Section:
    """Intervals and paired differences: a table a seed, and one of the mean over seeds."""
    classes = cohort.details.classes
    main = found.holdouts[0].scores[found.model].main_metric
    several = any("/" in name for name in _names_of_several(found))
    external = found.part == EXTERNAL
    subjects = "external subjects" if external else "held-out subjects"
    pairs = f"pairs of a {subjects[:-1]} and a {'class' if classes else 'value'}"
    tables = []
    for number, one in enumerate(found.holdouts, start=1):
        tables.append(
            metrics_table(
                one.scores,
                classes,
                samples="scans",
                drawn=found.drawn,
                units=pairs if several else subjects,
                title=f"{PART_TITLES[found.part]}, models of seed {one.seed}"
                if external
                else f"Holdout of seed {one.seed}",
                explained=number == len(found.holdouts),
                unit=cohort.details.unit,
            )
        )
    if found.metrics:
        tables.append(_mean_table(found, cohort.details.unit))
    text = [
        "Each seed has a holdout of its own, a fifth of the subjects, on which no model was fitted "
        "and nothing was chosen."
    ]
    if external:
        text = [
            "Scans of another file (--test_data), which no split holds, scored by the models of "
            "the holdouts. All seeds are tested on the same subjects."
        ]
        if found.metrics:
            text.append(
                "The interval of the mean over seeds draws subjects; a subject drawn counts for "
                "the models of all seeds. These intervals do not cover the choice of training "
                "subjects."
            )
    elif found.metrics:
        text.append(
            "The holdouts of different seeds overlap in subjects, so that their intervals are not "
            "independent and must not be combined. The interval of the mean over seeds draws from "
            "the subjects of all holdouts together; a subject drawn counts in every holdout it "
            "belongs to. These intervals do not cover the choice of training subjects, splits and "
            "seeds; those of the differences over splits, above, do."
        )
    calibration = "; ".join(
        f"seed {one.seed}: expected calibration error {one.evaluation.calibration['ece']:.3f}, "
        f"Brier score {one.evaluation.calibration['brier']:.3f}"
        for one in found.holdouts
        if one.evaluation.calibration
    )
    if calibration:
        text.append(f"Calibration of {found.model}, {calibration}.")
    differences = {name: of[main] for name, of in found.verdict_on.items()}
    said = verdict(found.model, main, differences, decisive=_decisive(found))
    if said and found.metrics:
        said = [f"Over the {len(found.holdouts)} seeds: {said[0][0].lower()}{said[0][1:]}"]
    title = "Intervals on the external cohort" if external else "Intervals on the holdouts"
    return Section(title, [*text, *said], tables)


def _decisive(found: HoldoutReport) -> bool:
    """Whether the holdouts of all seeds together have subjects enough to compare models."""
    first = found.holdouts[0].scores[found.model]
    of_classes = first.task_type == "classification"
    units: list[set[str]] = [set() for _ in range(first.score.shape[1])]
    for one in found.holdouts:
        scores = one.scores[found.model]
        names = scores.resampling_unit or scores.subjects
        for name, label in zip(names, scores.target.tolist(), strict=True):
            units[label if of_classes else 0].add(name)
    return min(map(len, units)) >= ENOUGH


def _names_of_several(found: HoldoutReport) -> Sequence[str]:
    first = found.holdouts[0].scores[found.model]
    return first.subjects if first.resampling_unit is not None else ()


def _mean_table(found: HoldoutReport, unit: str) -> Table:
    names = list(found.metrics)
    rows = [[found.model, *(str(found.metrics[name]) for name in names)]]
    rows += [
        [f"{found.model} less {other}", *(str(of[name]) for name in names)]
        for other, of in found.differences.items()
    ]
    drawn = "the external subjects for all seeds at once"
    if found.part != EXTERNAL:
        drawn = "the subjects of all holdouts together"
    note = f"In brackets: intervals of the same kind ({found.drawn}), but drawn from {drawn}."
    if any("not defined" in cell for row in rows for cell in row):
        note += " Not defined where all samples have the same value."
    return Table(
        rows,
        ("", *(metric_label(name, unit) for name in names)),
        f"Mean over {len(found.holdouts)} seeds",
        note,
        numbers=range(1, len(names) + 1),
        strong=0,
    )


def _subjects_section(found: HoldoutReport, classes: Sequence[str], unit: str) -> Section:
    """Every holdout subject of every seed, the worst first."""
    rows: list[tuple[float, tuple[str, ...]]] = []
    for one in found.holdouts:
        scores = one.scores[found.model]
        for i in worst_first(scores):
            cells = subject_cells(scores, int(i), classes)
            rows.append((float(cells[-1]), (scores.subjects[i], *cells, str(one.seed))))
    rows.sort(key=lambda row: row[0], reverse=not classes)  # probability, or error
    table = subjects_table(
        [cells for _, cells in rows],
        classes,
        f"The scores are those of {found.model} on the holdout of each seed; subjects.csv has all "
        f"of their digits.",
        more=("seed",),
        unit=unit,
    )
    return Section("Subjects", tables=(table,))


def _what(
    cohort: Cohort,
    results: Sequence[FitResult],
    flags: Mapping[str, str],
    shares: Mapping[int, float],
) -> tuple[str, ...]:
    seeds = sorted({result.seed for result in results})
    more = []
    if column := flags.get("stratify_by"):
        of = "quarters of the values" if cohort.details.is_regression else "classes"
        more.append(f"Splits have the same shares of the {of} and of {column}.")
    if column := flags.get("leave_out"):
        more.append(
            f"In place of folds, each {column} is left out in turn: the table of the "
            f"cross-validation is over models that are tested on one and trained on all others."
        )
    if shares:
        found = ", ".join(f"{share:.2g}" for share in shares.values())
        more.append(
            f"NeuroSSM holds the linear model Tangent as its second-order pathway: what it gains "
            f"over Tangent is what the other pathways add. They count by a share that is "
            f"chosen on training scans, from 0 (Tangent alone) to 1; by seed: {found}."
        )
    first = (
        f"{cohort.details.task_type.capitalize()} of {cohort.details.target} from "
        f"{len(cohort.scans)} scans of {cohort.rois} regions. Seeds "
        f"{', '.join(map(str, seeds))}; splits keep subjects together. Values are mean ± standard "
        f"deviation over fits; fits of one seed share subjects, so that they are not independent."
    )
    return (first, *([" ".join(more)] if more else []))


def _data_table(cohort: Cohort) -> Table:
    details, scans = cohort.details, cohort.scans
    frames = [scan.series.shape[1] for scan in scans]
    rows = [
        ["scans", str(len(scans))],
        ["subjects", str(len({scan.subject for scan in scans}))],
        ["groups that are not split", str(len(set(cohort.groups)))],
        ["regions", f"{cohort.rois} ({details.atlas or 'atlas not named'})"],
        ["frames", " to ".join(map(str, sorted({min(frames), max(frames)})))],
        *(
            [name, f"{int((cohort.labels == label).sum())} scans"]
            for label, name in enumerate(details.classes)
        ),
        *([["task", f"regression of {details.target}"]] if details.is_regression else []),
        ["hash of the data", cohort.hash],
        *(["note", note] for note in cohort.notes),
    ]
    return Table(rows)
