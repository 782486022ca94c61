"""Fine-tune a pre-trained backbone and train one from scratch on few labelled subjects, many times.

Each draw gives the labelled subjects; both trainings of a draw start from the same seed, take the
same number of optimiser steps (or as many as asked for) and are tested, once, on the same test
subjects. There are no validation subjects: with few labels there would be none to spare, so the
weights after the last step are those that are tested.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from neuromamba.checkpoints.io import read_checkpoint
from neuromamba.common.atomic_files import make_folder, write_text_atomically
from neuromamba.common.errors import UserInputError
from neuromamba.common.seeds import seed_run
from neuromamba.common.text import some_of
from neuromamba.config.serialise import to_dict
from neuromamba.data.windows.data_module import FMRIDataModule
from neuromamba.data.windows.run_data import RunData, with_training_subjects
from neuromamba.evaluation.few_labels import draw_subjects, mean_over_draws
from neuromamba.evaluation.intervals import Interval
from neuromamba.evaluation.result_files import write_record
from neuromamba.fmamba import builders, weights
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.layers.ssd import select_backend
from neuromamba.training.fit import assemble_trainer
from neuromamba.training.strategies import Hardware, resolve_hardware

PRETRAINED, SCRATCH = "pretrained", "scratch"
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
    """

    config: RunConfig
    labels: tuple[int, ...]
    draws: int
    steps: int
    scratch_steps: int
    output: Path


class Training(NamedTuple):
    """One training: what it started from, on how many labels, and its test metrics."""

    model: str
    labels: int
    draw: int
    metrics: Mapping[str, float]


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
    builders.check_cohorts_have_target(study.config)
    select_backend(study.config.flags["ssd_backend"], torch.device(hardware.accelerator))
    data = RunData(builders.locate_data(study.config, make_dummy=True), study.config.downstream)
    classes = data.named_targets("train")
    check_enough(classes, study.labels)
    if not data.windows_in("test"):
        raise UserInputError(
            "--train_split/--val_split: no test subjects are left to evaluate on; lower them."
        )
    make_folder(study.output, "--output_dir")
    keep_settings(study, data)
    table = study.output / TRAININGS
    done = {(one.model, one.labels, one.draw): one for one in read_trainings(table)}
    wanted = list(itertools.product(study.labels, range(study.draws), (PRETRAINED, SCRATCH)))
    tested = sum(map(len, data.subjects["test"]))
    print(
        f"{len(wanted)} trainings, {sum((m, n, d) in done for n, d, m in wanted)} of them done; "
        f"each is tested on {tested} subjects",
        flush=True,
    )
    for number, (labels, draw, model) in enumerate(wanted, start=1):
        if (model, labels, draw) in done:
            continue
        chosen = draw_subjects(classes, labels, draw=draw, seed=study.config.flags["seed"])
        found = train_once(study, with_training_subjects(data, chosen), hardware, model, draw)
        one = Training(model, labels, draw, found)
        append_training(table, one)
        done[(model, labels, draw)] = one
        value = found[main_metric(study.config)]
        print(
            f"[{number}/{len(wanted)}] {labels} a class, draw {draw + 1}, {model}: "
            f"{main_metric(study.config)} {value:.3f}",
            flush=True,
        )
    points = summarise(
        [done[(model, labels, draw)] for labels, draw, model in wanted], main_metric(study.config)
    )
    write_results(study, points, tested)
    return points


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


def train_once(
    study: Study, data: RunData, hardware: Hardware, model: str, draw: int
) -> dict[str, float]:
    """Train on the training subjects of ``data``; return the metrics of the test subjects."""
    config, steps = study.config, study.steps
    if model == SCRATCH:
        flags = dict(config.flags) | {"load_model_path": None}
        config, steps = dataclasses.replace(config, flags=flags), study.scratch_steps
    seed = config.flags["seed"] + draw
    seed_run(seed)
    module = builders.build_module(config, data, steps)
    assert isinstance(module, DownstreamModule)
    weights.load_weights(module, config, data)
    clip = config.flags["grad_clip"]
    trainer = assemble_trainer(
        folder=study.output,
        hardware=hardware,
        seed=seed,
        arguments={
            "max_steps": steps,
            "max_epochs": -1,
            "limit_val_batches": 0,
            "accumulate_grad_batches": config.flags["gradient_accumulation_steps"],
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "gradient_clip_val": clip,
        },
        epochs_per_line=10**9,  # the line after each training says enough
    )
    loaders = FMRIDataModule(data)
    trainer.fit(module, datamodule=loaders)
    (found,) = trainer.test(module, datamodule=loaders, verbose=False)
    return {name.removeprefix("test/"): float(value) for name, value in found.items()}


def summarise(trainings: Iterable[Training], metric: str) -> list[Point]:
    """Means over draws, and the difference in the same draw."""
    values: dict[int, dict[str, dict[int, float]]] = {}
    for one in trainings:
        models = values.setdefault(one.labels, {PRETRAINED: {}, SCRATCH: {}})
        models[one.model][one.draw] = one.metrics[metric]
    points = []
    for labels, models in sorted(values.items()):
        draws = sorted(models[PRETRAINED])
        ours = [models[PRETRAINED][draw] for draw in draws]
        theirs = [models[SCRATCH][draw] for draw in draws]
        points.append(
            Point(
                labels,
                len(draws),
                mean_over_draws(ours),
                mean_over_draws(theirs),
                mean_over_draws([a - b for a, b in zip(ours, theirs, strict=True)]),
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
        before = json.loads(path.read_text(encoding="utf-8"))
        now = json.loads(text)
        changed = sorted(key for key in now if before.get(key) != now[key])
        if changed:
            raise UserInputError(
                f"--output_dir: '{study.output}' holds results of other settings "
                f"({some_of(changed)}). Choose another folder, or remove that one."
            )
    write_text_atomically(path, text)


def read_trainings(path: Path) -> list[Training]:
    """Trainings noted so far; a last line that was cut off is left out."""
    if not path.exists():
        return []
    found = []
    with open(path, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            try:
                metrics = {k: float(v) for k, v in row.items() if k not in Training._fields}
                found.append(Training(row["model"], int(row["labels"]), int(row["draw"]), metrics))
            except (TypeError, ValueError):
                continue
    return found


def append_training(path: Path, one: Training) -> None:
    """Note a training, at once: the folder can be continued."""
    trainings = [*read_trainings(path), one]
    names = list(one.metrics)
    lines = [",".join(["model", "labels", "draw", *names])]
    for each in trainings:
        values = [repr(each.metrics.get(name, math.nan)) for name in names]
        lines.append(",".join([each.model, str(each.labels), str(each.draw), *values]))
    write_text_atomically(path, "\n".join(lines) + "\n")


def write_results(study: Study, points: Sequence[Point], tested: int) -> None:
    """Write ``label_efficiency.json``."""
    metric = main_metric(study.config)
    record = {
        "metric": metric,
        "steps": study.steps,
        "scratch_steps": study.scratch_steps,
        "subjects_test": tested,
        "points": [
            {
                "subjects_a_class": point.labels,
                "draws": point.draws,
                **{
                    name: {"value": value.value, "low": value.low, "high": value.high}
                    for name, value in (
                        (PRETRAINED, point.pretrained),
                        (SCRATCH, point.scratch),
                        ("difference", point.difference),
                    )
                },
            }
            for point in points
        ],
    }
    write_record(record, study.output / RESULT)


def lines_of(points: Sequence[Point], metric: str) -> list[str]:
    """A table for the terminal."""
    head = f"{'labels a class':<16}{'pre-trained':<24}{'from scratch':<24}difference"
    rows = [f"{p.labels:<16}{p.pretrained!s:<24}{p.scratch!s:<24}{p.difference!s}" for p in points]
    note = (
        f"{metric}: means over {points[0].draws} draws of labelled subjects with 95 % intervals "
        f"over draws (Student's t); the test subjects are the same in all."
    )
    return ["", head, *rows, note]


def flat_label_efficiency(points: Sequence[Point], metric: str) -> dict[str, float]:
    """``labels/<N>/pretrained/<metric>`` and the like, for ``metrics.json``."""
    found: dict[str, float] = {}
    for point in points:
        parts = ((PRETRAINED, point.pretrained), (SCRATCH, point.scratch))
        for name, value in (*parts, ("difference", point.difference)):
            key = f"labels/{point.labels}/{name}/{metric}"
            found |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
    return found
