"""Fine-tune a pre-trained backbone and train one from scratch on few labelled subjects, many times.

Each draw gives the labelled subjects; both trainings of a draw start from the same seed, take the
same number of optimiser steps (or as many as asked for) and are tested, once, on the same test
subjects. There are no validation subjects: with few labels there would be none to spare, so the
weights after the last step are those that are tested.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from neuromamba.checkpoints.io import read_checkpoint
from neuromamba.common.atomic_files import make_folder, write_text_atomically
from neuromamba.common.denormals import denormals_as_zeros
from neuromamba.common.errors import UserInputError
from neuromamba.common.json_text import read_json_record
from neuromamba.common.seeds import seed_run
from neuromamba.common.text import some_of
from neuromamba.common.workers import available_cpus, in_processes
from neuromamba.config.serialise import to_dict
from neuromamba.data.windows.data_module import FMRIDataModule
from neuromamba.data.windows.run_data import RunData, with_training_subjects
from neuromamba.evaluation.few_labels import FewLabelScores, draw_subjects
from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.result_files import PREDICTIONS, write_record, write_rows
from neuromamba.evaluation.scores import SubjectScores, read_scores
from neuromamba.fmamba import builders, weights
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.run_outputs import write_all_predictions
from neuromamba.fmamba.sample_rows import units_of
from neuromamba.fmamba.stores import check_cohorts_have_target, locate_data
from neuromamba.layers.ssd import select_backend
from neuromamba.training.fit import assemble_trainer
from neuromamba.training.lightning import load_lightning
from neuromamba.training.strategies import Hardware, resolve_hardware

PRETRAINED, SCRATCH = "pretrained", "scratch"
_VALUES = (PRETRAINED, SCRATCH, "difference")  # of a point
TRAININGS, RESULT, SETTINGS = "trainings.csv", "label_efficiency.json", "settings.json"


class Study(NamedTuple):
    """What to train.

    Attributes:
        config: of a downstream task with ``--load_model_path``.
        labels: labelled subjects of each class.
        draws: draws of labelled subjects for each number of them.
        steps: optimiser steps of a training.
        scratch_steps: of one from scratch.
        output: folder of the results.
        at_once: trainings at the same time.
    """

    config: RunConfig
    labels: tuple[int, ...]
    draws: int
    steps: int
    scratch_steps: int
    output: Path
    at_once: int = 1


class Training(NamedTuple):
    """One training: on how many labels of which draw, and what it started from."""

    labels: int
    draw: int
    model: str

    def __str__(self) -> str:
        return f"{self.labels} a class, draw {self.draw + 1}, {self.model}"

    def folder(self, output: Path) -> Path:
        """Where its predictions are."""
        return output / "trainings" / f"{self.labels}_a_class" / f"draw_{self.draw}" / self.model


class Point(NamedTuple):
    """The trainings with one number of labels, as means over draws.

    Attributes:
        labels: subjects of each class.
        draws: of them.
        pretrained, scratch: the main metric.
        difference: of the two in the same draw.
    """

    labels: int
    draws: int
    pretrained: Interval
    scratch: Interval
    difference: Interval


def run_study(study: Study) -> list[Point]:
    """Do every training that is not done, and write the results.

    Raises:
        UserInputError: missing hardware or data; too few subjects of a class; a folder that holds
            the results of other settings.
    """
    hardware = resolve_hardware(study.config.trainer, False)
    hardware.require()
    if hardware.ranks != 1:
        raise UserInputError(
            f"--devices: got {hardware.ranks} processes, expected 1: these trainings are short."
        )
    check_cohorts_have_target(study.config)
    select_backend(study.config.flags["ssd_backend"], torch.device(hardware.accelerator))
    data = RunData(locate_data(study.config, make_dummy=True), study.config.downstream)
    classes = data.named_targets("train")
    check_enough(classes, study.labels)
    if not data.windows_in("test"):
        raise UserInputError(
            "--train_split/--val_split: no test subjects are left to evaluate on; lower them."
        )
    make_folder(study.output, "--output_dir")
    keep_settings(study, data)
    wanted = [
        Training(labels, draw, model)
        for labels, draw, model in itertools.product(
            study.labels, range(study.draws), (PRETRAINED, SCRATCH)
        )
    ]
    done = [one for one in wanted if (one.folder(study.output) / PREDICTIONS["test"]).is_file()]
    tested = sum(map(len, data.subjects["test"]))
    print(
        f"{len(wanted)} trainings, {len(done)} of them done; each is tested on {tested} subjects",
        flush=True,
    )
    metric, units = main_metric(study.config), units_of(data, "test")
    found = {one: _scores_of(study, one, units) for one in done}
    missing = [one for one in wanted if one not in found]
    task = partial(_train, study, data, hardware)
    for one in in_processes(task, missing, study.at_once, _ended, load_lightning):
        found[one] = _scores_of(study, one, units)
        print(
            f"[{len(found)}/{len(wanted)}] {one}: {metric} {found[one].metrics()[metric]:.3f}",
            flush=True,
        )
    scores = {one: found[one] for one in wanted}
    points = summarise(scores, metric)
    write_results(study, scores, points)
    return points


def _scores_of(study: Study, one: Training, units: Mapping[str, str]) -> SubjectScores:
    """The test scores of a finished training."""
    found = read_scores(one.folder(study.output) / PREDICTIONS["test"])
    return found._replace(resampling_unit=tuple(units[name] for name in found.subjects))


def _ended(one: Training) -> Training:
    raise UserInputError(
        f"--at_once: the process of a training ({one}) was ended from outside, probably for want "
        f"of memory. Call again with a lower --at_once; finished trainings are kept."
    )


_passed: set[str] = set()  # messages of this process


def _is_new(record: logging.LogRecord) -> bool:
    new = record.getMessage() not in _passed
    _passed.add(record.getMessage())
    return new


def _train(study: Study, data: RunData, hardware: Hardware, one: Training) -> Training:
    """Do a training with its share of the processor's threads."""
    threads = torch.get_num_threads()
    weights.logger.addFilter(_is_new)  # all load the same checkpoint: what is said is said once
    try:
        if study.at_once > 1:
            torch.set_num_threads(max(1, available_cpus() // study.at_once))
        train_once(study, data, hardware, one)
    finally:
        torch.set_num_threads(threads)
        weights.logger.removeFilter(_is_new)
    return one


def check_enough(classes: Mapping[str, int | float], labels: Sequence[int]) -> None:
    """Refuse more labelled subjects than the training part has.

    Raises:
        UserInputError: names the class with the fewest.
    """
    counts = {label: list(classes.values()).count(label) for label in sorted(set(classes.values()))}
    fewest = min(counts.values())
    if max(labels) > fewest:
        told = ", ".join(f"class {label}: {count}" for label, count in counts.items())
        raise UserInputError(
            f"--labels: got {max(labels)} of each class, but the training subjects have {told}; "
            f"give at most {fewest}, or raise --train_split."
        )


def main_metric(config: RunConfig) -> str:
    """AUROC of two classes, else balanced accuracy."""
    assert config.downstream is not None
    return "auroc" if len(config.downstream.class_names) == 2 else "balanced_accuracy"


@denormals_as_zeros()
def train_once(study: Study, data: RunData, hardware: Hardware, one: Training) -> None:
    """Train on the labelled subjects of a draw, and write the predictions of the test subjects."""
    config, steps = study.config, study.steps
    if one.model == SCRATCH:
        flags = dict(config.flags) | {"load_model_path": None}
        config, steps = dataclasses.replace(config, flags=flags), study.scratch_steps
    seed = config.flags["seed"]
    classes = data.named_targets("train")
    chosen = draw_subjects(classes, one.labels, draw=one.draw, seed=seed)
    data = with_training_subjects(data, chosen)
    seed_run(seed + one.draw)
    module = builders.build_module(config, data, steps, measured=False)  # writes no checkpoint
    assert isinstance(module, DownstreamModule)
    weights.load_weights(module, config, data)
    trainer = assemble_trainer(
        folder=study.output,
        hardware=hardware,
        seed=seed + one.draw,
        arguments={
            "max_steps": steps,
            "max_epochs": -1,
            "limit_val_batches": 0,
            "accumulate_grad_batches": config.flags["gradient_accumulation_steps"],
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "gradient_clip_val": config.flags["grad_clip"],
        },
        epochs_per_line=10**9,  # the line after each training says enough
    )
    loaders = FMRIDataModule(data)
    trainer.fit(module, datamodule=loaders)
    trainer.test(module, datamodule=loaders, verbose=False)
    folder = one.folder(study.output)
    make_folder(folder, "--output_dir")
    write_all_predictions(module, data, folder)


def summarise(scores: Mapping[Training, SubjectScores], metric: str) -> list[Point]:
    """Means over draws, and the mean difference in the same draw."""
    sets: dict[int, dict[str, list[SubjectScores]]] = {}
    for one, found in scores.items():
        sets.setdefault(one.labels, {}).setdefault(one.model, []).append(found)
    points = []
    for labels, models in sorted(sets.items()):
        ours, theirs = (FewLabelScores(models[name], metric) for name in (PRETRAINED, SCRATCH))
        points.append(
            Point(
                labels, len(ours.sets), ours.interval(), theirs.interval(), ours.difference(theirs)
            )
        )
    return points


# ------------------------------------------------------------------------------------- files


def keep_settings(study: Study, data: RunData) -> None:
    """Note what the results depend on; refuse a folder with those of other settings.

    Raises:
        UserInputError: the folder holds results of other settings.
    """
    config = study.config
    weights_of = read_checkpoint(config.flags["load_model_path"], "--load_model_path").state_dict
    digest = hashlib.sha256()
    for name, tensor in sorted(weights_of.items()):
        digest.update(name.encode() + tensor.detach().float().contiguous().numpy().tobytes())
    metadata = data.metadata()
    assert config.downstream is not None and config.head is not None
    settings: dict[str, Any] = {
        "checkpoint": digest.hexdigest()[:16],
        "steps": study.steps,
        "scratch_steps": study.scratch_steps,
        "model": to_dict(config.model),
        "head": to_dict(config.head),
        "task": to_dict(config.downstream),
        "optim": to_dict(config.optim),
        "augment": to_dict(config.augment) if config.augment else None,
        "seed": config.flags["seed"],
        "grad_clip": config.flags["grad_clip"],
        "accumulation": config.flags["gradient_accumulation_steps"],
        "precision": config.trainer.get("precision"),
        "data": {key: value for key, value in metadata.items() if key != "config"},
        "windows": metadata["config"],
    }
    text = json.dumps(settings, indent=1, sort_keys=True, default=list) + "\n"
    path = study.output / SETTINGS
    if path.exists():
        remedy = "Choose another folder, or remove that one."
        before = read_json_record(path, remedy, "--output_dir")
        now = json.loads(text)
        changed = sorted(key for key in now if before.get(key) != now[key])
        if changed:
            raise UserInputError(
                f"--output_dir: '{study.output}' holds results of other settings "
                f"({some_of(changed)}). Choose another folder, or remove that one."
            )
    write_text_atomically(path, text)


def write_results(
    study: Study, scores: Mapping[Training, SubjectScores], points: Sequence[Point]
) -> None:
    """Write ``label_efficiency.json``, and a row for each training in ``trainings.csv``."""
    metric, some = main_metric(study.config), next(iter(scores.values()))
    names = list(some.metric_names)
    values = ([*one, *(found.metrics()[name] for name in names)] for one, found in scores.items())
    write_rows([*Training._fields, *names], values, study.output / TRAININGS)
    record = {
        "metric": metric,
        "steps": study.steps,
        "scratch_steps": study.scratch_steps,
        "subjects_test": len(some.subjects),
        "points": [
            {"subjects_a_class": point.labels, "draws": point.draws}
            | {name: value._asdict() for name, value in zip(_VALUES, point[2:], strict=True)}
            for point in points
        ],
    }
    write_record(record, study.output / RESULT)


def read_points(output: Path) -> tuple[list[Point], str]:
    """The points of ``label_efficiency.json``, and the metric."""
    path, remedy = output / RESULT, "Remove it and call neuromamba label-efficiency again."
    record = read_json_record(path, remedy)
    points = []
    try:
        for point in record["points"]:
            values = [
                Interval(*(math.nan if v is None else v for v in point[name].values()))
                for name in _VALUES
            ]
            points.append(Point(point["subjects_a_class"], point["draws"], *values))
        return points, record["metric"]
    except (KeyError, TypeError, AttributeError):
        raise UserInputError(f"{path}: is damaged. {remedy}") from None


def lines_of(points: Sequence[Point], metric: str) -> list[str]:
    """A table for the terminal."""
    head = f"{'labels a class':<16}{'pre-trained':<24}{'from scratch':<24}difference"
    rows = [f"{p.labels:<16}{p.pretrained!s:<24}{p.scratch!s:<24}{p.difference!s}" for p in points]
    note = (
        f"{metric}: means over {points[0].draws} draws of labelled subjects, with 95 % intervals "
        f"over draws and test subjects."
    )
    return ["", head, *rows, note]


def flat_label_efficiency(points: Sequence[Point], metric: str) -> dict[str, float]:
    """``labels/<N>/pretrained/<metric>`` and the like, for ``metrics.json``."""
    found: dict[str, float] = {}
    for point in points:
        for name, value in zip(_VALUES, point[2:], strict=True):
            key = f"labels/{point.labels}/{name}/{metric}"
            found |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
    return found
