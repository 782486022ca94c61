"""The report of finished runs, ``neuromamba report``: results beside baselines, figures, subjects.

The first run is shown in full; others of the same kind are compared with it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import HeadConfig
from neuromamba.config.serialise import from_dict
from neuromamba.config.training import DownstreamConfig
from neuromamba.data.windows.dataset import WindowDataset
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.scores import SubjectScores
from neuromamba.evaluation.subject_keys import subject_key
from neuromamba.fmamba.baselines import Baseline
from neuromamba.fmamba.flop_formula import window_flops
from neuromamba.fmamba.run_folder import RunFolder
from neuromamba.pages.evidence import decisive
from neuromamba.pages.figures import save_figure
from neuromamba.pages.page import Link, Page, Picture, Section, Table
from neuromamba.pages.score_sections import (
    confounds_section,
    prediction_figures,
    subject_cells,
    subjects_table,
    threshold_section,
    verdict,
    worst_first,
)
from neuromamba.pages.tables import metric_label, metrics_table, version_table
from neuromamba.reports.brain_figures import (
    kept_shares,
    mean_volume_figure,
    next_token_example,
    next_token_figure,
    token_mask,
    token_mask_figure,
    two_forms,
)
from neuromamba.reports.cards import data_card
from neuromamba.reports.skill_text import SKILLS, skill_text
from neuromamba.reports.training_curves import (
    downstream_curves,
    learning_rate_figure,
    pretraining_curves,
    watched_figure,
    watched_names,
)

PICTURED = 24  # subjects with a picture, the worst ones


def run_report(
    runs: Sequence[RunFolder],
    baselines: Sequence[Baseline],
    data: RunData,
    figure_dir: Path,
) -> Page:
    """Draw every figure into ``figure_dir`` and put the page together.

    Args:
        runs: finished ones; the first is shown in full, the others are compared with it.
        baselines: of the first, on its subjects and split.
        data: of the first.
        figure_dir: receives PNG and PDF files.

    Raises:
        UserInputError: a run folder is incomplete; pre-training compared with a task, or two
            different tasks.
    """
    first = runs[0]
    _same_kind(runs)
    for run in runs:
        run.check_records()
    if first.task is None:
        sections = [_pretraining(first, figure_dir), _tokens(first, data, figure_dir)]
        title = f"Pre-training: {first.path.name}"
        summary = ("Metrics are of the validation subjects.",)
        if len(runs) > 1:
            sections.insert(0, _pretraining_results(runs))
    else:
        scores = {run_name(run): run.scores() for run in runs}
        _check_subjects(first, scores[run_name(first)], data)
        sections = [
            _results(runs, scores, baselines, first.task),
            _figures(first.task, scores, baselines, figure_dir),
            *threshold_section(first.evaluation),
            *confounds_section(first.evaluation),
            _subjects(data, scores[run_name(first)], first.task, figure_dir),
        ]
        if not first.config.get("test_only"):
            sections.append(_curves(first, figure_dir))
        title = f"{first.task.task}: {run_name(first)}"
        summary = (f"{describe(first)}. {len(first.scores().subjects)} held-out subjects.",)
    sections += [
        Section(
            "Data and model",
            tables=(data_card(first, data), _model_card(first, data)),
            side_by_side=True,
        ),
        Section("Configuration", code=yaml.safe_dump(first.config, sort_keys=True).rstrip()),
        Section("Versions", tables=(version_table(),)),
    ]
    return Page(title, summary, sections, _notice(data))


def _check_subjects(run: RunFolder, scores: SubjectScores, data: RunData) -> None:
    """The predictions are of the test subjects, all of them."""
    wanted, found = set(data.sample_names("test").values()), set(scores.subjects)
    if found != wanted:
        raise UserInputError(
            f"{run.path / 'predictions.csv'}: has {len(found)} subjects, the run's data "
            f"{len(wanted)} test subjects, {len(found & wanted)} of them the same. Restore the "
            f"file, or run again."
        )
    run.check_subjects()


def run_name(run: RunFolder) -> str:
    """The folder's name, which distinguishes runs."""
    return run.path.resolve().name


def describe(run: RunFolder) -> str:
    """Head and mode of a downstream run, in words."""
    task, metadata = run.task, run.contents.metadata
    assert task is not None
    mode = task.mode(pretrained=bool(run.config.get("load_model_path")))
    shuffled = "" if task.shuffle_labels is None else ", labels shuffled over subjects"
    name = run.model_config.display_name
    return f"{name}, {metadata['head']['name']} head, {mode}, seed {run.config['seed']}{shuffled}"


def _notice(data: RunData) -> str:
    if any(store.dataset == "Dummy" for store in data.stores):
        return "Synthetic data: the figures show that the pipeline works, and nothing about brains."
    return ""


def _same_kind(runs: Sequence[RunFolder]) -> None:
    names = [run_name(run) for run in runs]
    if len(set(names)) < len(names):
        raise UserInputError(
            f"RUN_DIR: two runs have the name {max(names, key=names.count)}; rename one."
        )
    kinds = {(run.task.task, run.task.task_type) if run.task else None for run in runs}
    if len(kinds) > 1:
        shown = ", ".join(sorted(str((kind and kind[0]) or "pre-training") for kind in kinds))
        raise UserInputError(
            f"RUN_DIR: runs of different kinds ({shown}) cannot be compared; give those of one."
        )


# ------------------------------------------------------------------------------ results


def _results(
    runs: Sequence[RunFolder],
    scores: Mapping[str, SubjectScores],
    baselines: Sequence[Baseline],
    task: DownstreamConfig,
) -> Section:
    classes = task.class_names
    first = scores[run_name(runs[0])]
    same = {name: one for name, one in scores.items() if _same_subjects(one, first)}
    shown = same | {one.name: one.scores for one in baselines}
    tables = [metrics_table(shown, classes, unit=task.unit)]
    others = [run for run in runs if run_name(run) not in same]
    if others:
        note = "Tested on other subjects than the first run, so no difference can be paired."
        rows = [(run_name(r), *_intervals(scores[run_name(r)]), describe(r)) for r in others]
        labels = [metric_label(name, task.unit) for name in first.metric_names]
        head = ("run", *labels, "what it is")
        tables.append(Table(rows, head, "Other subjects", note))
    if len(runs) > 1:
        tables.append(_over_runs(runs, scores))
    text = [f"{run_name(run)}: {describe(run)}." for run in runs]
    text += [f"{one.name}: {one.text}" for one in baselines]
    metric = first.main_metric
    differences = {one.name: first.difference(one.scores, metric) for one in baselines}
    text += verdict(run_name(runs[0]), metric, differences, decisive=decisive(first))
    return Section("Results on held-out subjects", text, tables)


def _same_subjects(one: SubjectScores, other: SubjectScores) -> bool:
    targets = [dict(zip(s.subjects, s.target.tolist(), strict=True)) for s in (one, other)]
    return targets[0] == targets[1]


def _intervals(scores: SubjectScores) -> tuple[str, ...]:
    return tuple(str(scores.interval(name)) for name in scores.metric_names)


def _over_runs(runs: Sequence[RunFolder], scores: Mapping[str, SubjectScores]) -> Table:
    """Mean and deviation over runs that differ in seed and split alone."""
    groups: dict[str, list[SubjectScores]] = defaultdict(list)
    for run in runs:
        what = re.sub(r", seed \d+", "", describe(run))
        groups[f"{what}, width {run.model_config.embed_dim}"].append(scores[run_name(run)])
    names = next(iter(scores.values())).metric_names
    rows = []
    for what, members in groups.items():
        cells = []
        for name in names:
            values = np.array([one.metrics()[name] for one in members])
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}")
        rows.append((what, str(len(members)), *cells))
    head = ("", "runs", *(metric_label(name) for name in names))
    note = "Mean and standard deviation over runs that differ in seed or split alone."
    return Table(rows, head, "Over runs", note, numbers=range(1, len(names) + 2))


def _figures(
    task: DownstreamConfig,
    scores: Mapping[str, SubjectScores],
    baselines: Sequence[Baseline],
    folder: Path,
) -> Section:
    first = next(iter(scores.values()))
    shown = {k: one for k, one in scores.items() if _same_subjects(one, first)}
    shown |= {one.name: one.scores for one in baselines}
    if task.task_type == "regression":
        return prediction_figures(f"Prediction of {task.task}", shown, (), folder, task.unit)
    return prediction_figures(f"Classification of {task.task}", shown, task.class_names, folder)


# ------------------------------------------------------------------------------ subjects


def _subjects(
    data: RunData, scores: SubjectScores, task: DownstreamConfig, folder: Path
) -> Section:
    """Every test subject, the worst first, with pictures of the worst."""
    classes = task.class_names
    paths = _first_runs(data)
    rows: list[tuple[str | Link, ...]] = []
    pictures = []
    for rank, i in enumerate(worst_first(scores)):
        name, cells = scores.subjects[i], subject_cells(scores, i, classes)
        subject: str | Link = name
        if rank < PICTURED and name in paths:
            subject = Link(name, f"subject-{rank + 1}")
            file = folder / "subjects" / f"{rank + 1:02d}.png"
            save_figure(mean_volume_figure(paths[name]), file)
            measure = "p(true)" if classes else "error"
            after = f" {task.unit}" if task.unit else ""
            caption = f"{name}: true {cells[0]}, predicted {cells[1]}, {measure} {cells[2]}{after}."
            alt = f"Mean volume of {name} in three planes"
            pictures.append(Picture(file, caption, alt, anchor=subject.anchor))
        rows.append((subject, *cells))
    note = (
        f"The first {len(pictures)} lead to the mean volume of their first run, with the mask's "
        f"outline."
    )
    table = subjects_table(rows, classes, note, unit=task.unit)
    return Section("Subjects", tables=(table,), pictures=pictures, side_by_side=True)


def _first_runs(data: RunData) -> dict[str, Path]:
    """Test sample, by the name of its predictions -> its first run."""
    names = data.sample_names("test")
    found: dict[str, Path] = {}
    windows = data.parts["test"]
    for dataset in windows.datasets if windows is not None else ():
        assert isinstance(dataset, WindowDataset)
        for window in dataset.windows:
            name = names[subject_key(window.sample_id, dataset.dataset)]
            found.setdefault(name, dataset.paths[window.run])
    return found


# ------------------------------------------------------------------------------ training


def _curves(run: RunFolder, folder: Path) -> Section:
    return Section(
        "Training",
        pictures=(
            Picture(
                save_figure(downstream_curves(run), folder / "training.png", for_paper=True),
                "The epoch with the lowest validation loss (star) is the one tested. The training "
                "loss includes label smoothing, the validation loss not.",
                "Training loss and validation metric over optimiser steps",
            ),
            *_rate(run, folder),
        ),
        side_by_side=True,
    )


def _rate(run: RunFolder, folder: Path) -> list[Picture]:
    if not run.curve("train/learning_rate")[0].size:
        return []  # a run shorter than --log_every_n_steps
    path = save_figure(learning_rate_figure(run), folder / "learning_rate.png", for_paper=True)
    text = "Learning rate of each step" + (
        "; of the head, lower layers have less." if run.config.get("layer_decay", 1) < 1 else "."
    )
    return [Picture(path, text, "Learning rate over optimiser steps")]


def _pretraining(run: RunFolder, folder: Path) -> Section:
    metrics = run.metrics
    text = (
        f"Loss of the validation subjects {metrics.get('val/loss', float('nan')):.4g}. "
        f"{skill_text(metrics)}",
    )
    curve = save_figure(pretraining_curves(run), folder / "pretraining.png", for_paper=True)
    pictures = (
        Picture(curve, "Loss beside two predictors that learn nothing.", "Pre-training loss"),
        *_watched(run, folder),
        *_rate(run, folder),
    )
    return Section("Training", text, pictures=pictures, side_by_side=True)


def _watched(run: RunFolder, folder: Path) -> list[Picture]:
    if not watched_names(run):
        return []
    text = (
        "What the features of validation subjects tell: balanced accuracy of classes, Pearson's r "
        "of numbers (age, motion), each subject predicted from the others; for subject, the share "
        "of windows whose most similar window is of the same one. Of shuffled values, 99 % are "
        "below the grey area's upper edge."
    )
    path = save_figure(watched_figure(run), folder / "watched.png", for_paper=True)
    return [Picture(path, text, "Known facts that the features predict, over optimiser steps")]


def _pretraining_results(runs: Sequence[RunFolder]) -> Section:
    names = (
        *("val/loss", "val/dynamic_skill", "val/skill", "val/sequence_skill", "val/anatomy_share"),
        *("val/persistence_loss", "val/mean_token_loss"),
    )
    rows = [
        (run_name(run), *(f"{run.metrics.get(n, float('nan')):.4g}" for n in names)) for run in runs
    ]
    head = ("run", "loss", *SKILLS, "repeat the previous token", "mean token")
    note = "Of the validation subjects of each run; equal splits are compared on equal subjects."
    numbers = tuple(range(1, len(head)))
    return Section("Results", tables=(Table(rows, head, note=note, numbers=numbers),))


def _tokens(run: RunFolder, data: RunData, folder: Path) -> Section:
    """The token grid over a run, and the prediction of a window if tokens were predicted."""
    config = run.model_config
    part = next(p for p in ("test", "val", "train") if any(data.subjects[p]))
    names = [name for store in data.subjects[part] for name in store]
    mask = token_mask(data.stores[0].runs_of(names)[0][0], config)
    text = "Tokens without a brain voxel are dropped (darkened)."
    alt = "Kept and dropped tokens over the mean volume"
    pictures = [two_forms(partial(token_mask_figure, mask), folder / "token_mask.png", text, alt)]
    if run.contents.metadata.get("pretrain", {}).get("objective") == "autoregressive":
        example = next_token_example(run, data, part)
        text = "Every token is predicted from the tokens before it; once as scaled, and once "
        text += "without each voxel's mean over the window."
        alt = "Target and predicted tokens of a slice"
        draw = partial(next_token_figure, example)
        pictures.append(two_forms(draw, folder / "next_tokens.png", text, alt))
    return Section("Tokens", pictures=pictures)


def _model_card(run: RunFolder, data: RunData) -> Table:
    """Architecture, training, FLOPs and throughput."""
    model, metrics, config = run.model_config, run.metrics, run.config
    share = kept_shares([p for store in data.stores for p in store.paths], model).mean()
    tokens = round(share * model.num_tokens)
    head = None
    if run.task is not None:
        head = from_dict(HeadConfig, run.contents.metadata["head"], str(run.checkpoint))
    frozen = run.task is not None and run.task.freeze_feature_extractor
    trained = window_flops(model, tokens, head=head, frozen=frozen)
    rows = [
        ("Backbone", model.description),
        ("Parameters", f"{metrics['model/parameters']:,.0f}"),
        ("Patch", f"{' × '.join(map(str, model.patch_size))} (x, y, z, t)"),
        ("Tokens of a window", f"{tokens:,} of {model.num_tokens:,} on average"),
        ("FLOPs of a window", f"{trained:.3g}, forward and backward"),
    ]
    steps, seconds = metrics.get("train/steps", 0.0), metrics.get("train/seconds", 0.0)
    if steps and seconds:
        ranks = run.contents.metadata.get("ranks", 1)
        batch = config["batch_size"] * ranks * config["gradient_accumulation_steps"]
        rows += [
            ("Training", f"{steps:,.0f} steps of {batch} windows, {config['optimizer']}, learning "
             f"rate {config['learning_rate']:g}, seed {config['seed']}"),
            ("Throughput", f"{steps * batch / seconds:.3g} windows a second on {ranks} device(s), "
             f"validation included"),
        ]  # fmt: skip
    return Table(rows, title="Model")
