"""The report of a pre-trained and fine-tuned model beside its controls: figures, tables, text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.probe_rows import PRETRAINED, RAW, UNTRAINED, ProbeRow
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.fmamba.label_efficiency import Point
from neuromamba.fmamba.raw_features import CONNECTIVITY, MEAN_IMAGE
from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.pages.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    confusion_figure,
    roc_figure,
    save_figure,
)
from neuromamba.pages.label_figure import Curve, label_figure
from neuromamba.pages.page import Page, Picture, Section, Table, wrap_command
from neuromamba.pages.tables import metric_label, metrics_table, time_table, version_table
from neuromamba.reports.brain_figures import (
    next_token_example,
    next_token_figure,
    token_mask,
    token_mask_figure,
    two_forms,
)
from neuromamba.reports.cards import data_card, model_card
from neuromamba.reports.skill_text import skill_text
from neuromamba.reports.training_curves import downstream_curves, pretraining_curves

MODEL = "FMamba, fine-tuned"


@dataclass(frozen=True, kw_only=True)
class FewLabels:
    """What was learned from few labelled subjects.

    Attributes:
        points: fine-tuned and from scratch.
        rows: of probes of frozen features and of the raw signal.
        metric: of all.
    """

    points: Sequence[Point]
    rows: Sequence[ProbeRow]
    metric: str


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """What a report is made of.

    Attributes:
        pretrained, finetuned: run folders; the second started from the first.
        controls: label -> scores of the same test subjects.
        few_labels: see there.
        title, summary, notice: see ``report.Page``.
        controls_text: what the controls are, one paragraph each.
        commands: what was run.
        seconds: run time of each stage.
    """

    pretrained: RunFolder
    finetuned: RunFolder
    controls: Mapping[str, SubjectScores]
    few_labels: FewLabels
    title: str
    summary: Sequence[str]
    notice: str
    controls_text: Sequence[str]
    commands: Sequence[str]
    seconds: Mapping[str, float]


def training_report(given: ReportInput, figure_dir: Path) -> Page:
    """Draw every figure into ``figure_dir`` and put the page together.

    Raises:
        UserInputError: a run folder is incomplete, or the controls have other test subjects.
    """
    finetuned = given.finetuned
    assert finetuned.task is not None
    classes = finetuned.task.class_names
    scores = {MODEL: finetuned.scores(), **given.controls}
    few_labels, in_numbers = _few_labels(given.few_labels, figure_dir)
    return Page(
        given.title,
        given.summary,
        (
            few_labels,
            Section("What is compared", (*_definitions(given.few_labels), *given.controls_text)),
            in_numbers,
            Section(
                "All labels: results on held-out subjects",
                tables=(metrics_table(scores, classes),),
            ),
            _classification(scores, finetuned.task.task, classes, figure_dir),
            _curves(given, figure_dir),
            _tokens(given.pretrained, figure_dir),
            Section(
                "Data and model",
                tables=(
                    data_card(finetuned, finetuned.data()),
                    model_card(given.pretrained, finetuned),
                ),
                side_by_side=True,
            ),
            Section(
                "Commands",
                ("In this order, from the repository:",),
                code="\n".join(wrap_command(command) for command in given.commands),
            ),
            Section(
                "Run time and versions",
                tables=(time_table(given.seconds), version_table()),
                side_by_side=True,
            ),
        ),
        given.notice,
    )


def _definitions(found: FewLabels) -> tuple[str, ...]:
    """The metric and the models, before their numbers."""
    meaning = {
        "auroc": "the probability that a subject of the second class gets a higher score than one "
        "of the first: 0.5 is chance, 1 is perfect",
        "balanced_accuracy": "the mean over the classes of the share of its subjects classified "
        "correctly: 0.5 is chance for two classes, 1 is perfect",
    }
    text = (
        f"{metric_label(found.metric)}: {meaning[found.metric]}. "
        if found.metric in meaning
        else ""
    )
    return (
        f"{text}Accuracy is the share of subjects classified correctly; balanced accuracy averages "
        f"it over the classes. Brackets after a number hold its 95 % interval.",
        f"{MODEL}: pre-trained without labels, then trained further with them. From scratch: the "
        f"same network without pre-training. Frozen: a linear model of the network's features, "
        f"pre-trained or untrained. FC: of the correlations between regions of the raw signal. "
        f"Mean volume: of the temporal mean of the raw signal.",
    )


def _few_labels(found: FewLabels, folder: Path) -> tuple[Section, Section]:
    """The curve over labelled subjects, then its numbers."""
    curves = label_curves(found)
    sizes, draws = [point.labels for point in found.points], found.points[0].draws
    label = metric_label(found.metric)
    figure = label_figure(
        curves, title="What few labels are worth", label=f"test {label}", chance=0.5
    )
    shown = [(c.name, *(str(c.points.get(str(n), "")) for n in sizes)) for c in curves]
    gain = ("fine-tuned less from scratch", *(str(point.difference) for point in found.points))
    words = "; ".join(
        f"{curve.name}: "
        + ", ".join(f"{point.value:.2f} with {n}" for n, point in curve.points.items())
        for curve in curves
    )
    pictures = Section(
        "Few labels",
        (
            f"Subjects were drawn from the training subjects {draws} times for each number of "
            f"labels; a smaller number is a part of a larger one. Every model learned from the "
            f"same draws. The fine-tuned model and the one from scratch took the same number of "
            f"optimiser steps, of which one from scratch may need more (docs/few_labels.md has "
            f"both); the others are linear models of frozen features (mean and standard "
            f"deviation over time), of correlations between regions (FC), and of the mean volume.",
        ),
        pictures=(
            Picture(
                save_figure(figure, folder / "few_labels.png"),
                f"Means over {draws} draws of labelled subjects. Bars: 95 % intervals over draws "
                f"and test subjects; with so few draws they are somewhat too narrow.",
                f"{label} over labelled subjects a class. {words}",
            ),
        ),
    )
    head = ("model", *(f"{n} a class" for n in sizes))
    table = Table([*shown, gain], head, f"Test {label}", numbers=range(1, len(sizes) + 1))
    return pictures, Section("Few labels in numbers", tables=(table,))


def label_curves(found: FewLabels) -> list[Curve]:
    """Fine-tuned, from scratch, and linear models of frozen features and of the raw signal."""

    def of_rows(name: str, model: str, pool: str, *look: str) -> Curve:
        rows = [
            row
            for row in found.rows
            if (row.model, row.pool) == (model, pool) and row.subjects_a_class is not None
        ]
        points = {str(row.subjects_a_class): Interval(row.value, row.low, row.high) for row in rows}
        color, line, marker = look
        return Curve(name=name, color=color, line=line, marker=marker, points=points)

    tuned = {str(point.labels): point.pretrained for point in found.points}
    scratch = {str(point.labels): point.scratch for point in found.points}
    return [
        Curve(name="pre-trained, fine-tuned", color=BLUE, line="-", marker="o", points=tuned),
        of_rows("pre-trained, frozen", PRETRAINED, "mean_sd", BLUE, "--", "s"),
        Curve(name="from scratch", color=ORANGE, line="-", marker="o", points=scratch),
        of_rows("untrained, frozen", UNTRAINED, "mean_sd", ORANGE, "--", "s"),
        of_rows("FC", RAW, CONNECTIVITY, GREEN, "-.", "^"),
        of_rows("mean volume", RAW, MEAN_IMAGE, PURPLE, ":", "v"),
    ]


def _classification(
    scores: Mapping[str, SubjectScores], task: str, classes: Sequence[str], folder: Path
) -> Section:
    model = next(iter(scores.values()))
    return Section(
        "Classification of " + task,
        pictures=(
            Picture(
                save_figure(roc_figure(scores, classes[1]), folder / "roc.png"),
                "Receiver operating characteristic of the model and the controls, all on the same "
                "held-out subjects. Area under the curve (AUROC) in the legend.",
                "ROC curves of the model and its controls",
            ),
            Picture(
                save_figure(confusion_figure(model, classes), folder / "confusion.png"),
                "Fine-tuned model: subjects by true and predicted class, with the per cent of "
                "each true class.",
                "Confusion matrix of the fine-tuned model",
            ),
        ),
        side_by_side=True,
    )


def _curves(given: ReportInput, folder: Path) -> Section:
    metrics = given.pretrained.metrics
    return Section(
        "Training",
        pictures=(
            Picture(
                save_figure(pretraining_curves(given.pretrained), folder / "pretraining.png"),
                f"Pre-training. Loss on validation subjects: {metrics['val/loss']:.3g}; repeating "
                f"the previous token of the sequence: {metrics['val/persistence_loss']:.3g}; "
                f"predicting the mean token: {metrics['val/mean_token_loss']:.3g}. "
                f"{skill_text(metrics)}",
                "Pre-training loss over optimiser steps",
            ),
            Picture(
                save_figure(downstream_curves(given.finetuned), folder / "finetuning.png"),
                "Fine-tuning. The epoch with the lowest validation loss (star) is the one "
                "tested. The training loss includes label smoothing, the validation loss not.",
                "Fine-tuning loss and validation AUROC over optimiser steps",
            ),
        ),
        side_by_side=True,
    )


def _tokens(run: RunFolder, folder: Path) -> Section:
    data = run.data()
    example = next_token_example(run, data)
    names = [name for store in data.subjects["test"] for name in store]
    path = data.stores[0].runs_of(names)[0][0]
    mask = token_mask(path, run.model_config)
    level = "which is 0" if run.model_config.background == "zero" else "the lowest value"
    return Section(
        "What the model sees and predicts",
        pictures=(
            two_forms(
                partial(next_token_figure, example),
                folder / "next_tokens.png",
                f"One frame of a held-out subject, axial slice, the subject's left (L) on the "
                f"left, anterior up; brain outlined. Every token is predicted from the tokens "
                f"before it in the sequence. Scaled intensity: around the brain, kept tokens hold "
                f"background, {level}. Deviation: the same minus each voxel's mean over the window "
                f"of {example.frames} frames, brain only. Each of the two has one colour scale. "
                f"Hatched: tokens that are never predicted, background and the first token of the "
                f"sample.",
                "Target, predicted next tokens and their difference in an axial slice",
                for_paper=False,
            ),
            two_forms(
                partial(token_mask_figure, mask),
                folder / "token_mask.png",
                f"Temporal mean of a run of {mask.subject} with the token grid "
                f"({' × '.join(map(str, mask.patch))} voxels a patch). Darkened and hatched: "
                f"tokens without a brain voxel, which the model never sees. A patch is three-"
                f"dimensional: one that looks empty here may hold brain in a neighbouring slice. "
                f"L and R: the subject's left and right; A and P: anterior and posterior.",
                "Three orthogonal slices of the mean volume with kept and dropped tokens",
                for_paper=False,
            ),
        ),
    )
