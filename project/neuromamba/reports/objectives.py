"""The study of pre-training objectives as jobs: synthetic data, pre-trainings and probes.

All pre-trainings have the same architecture, windows and number of optimiser steps, and differ in
the objective, the scaling or the order of the tokens. ``objectives_table.py`` writes what has been
run.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from neuromamba.common.atomic_files import make_folder
from neuromamba.common.errors import UserInputError, look_up
from neuromamba.common.stages import run_stage, shown
from neuromamba.reports.reproduction import check_seeds, paper_folder
from neuromamba.reports.reproduction_run import (
    do_once,
    refuse_owned,
    write_store,
)

STUDIES = ("objectives",)
SEEDS = (1, 2, 3, 4, 5)
LABELS = (4, 8, 16)  # labelled subjects a class
POOLS = ("mean", "mean_sd")

GRID = ("30", "36", "30")
DATA = (*("--subjects", "160", "--frames", "40"), "--grid", *GRID)
# Name of a planted effect -> flags of "neuromamba synthetic". The easy one is the demo's.
EFFECTS: Mapping[str, tuple[str, ...]] = {
    "hard": ("--effect_size", "1", "--tsnr", "50", "--network_radius", "22"),
    "easy": ("--effect_size", "3", "--tsnr", "10"),
}
MODEL = (
    *("--depth", "2", "--embed_dim", "64", "--patch_size", "6", "6", "6", "2"),
    *("--img_size", *GRID, "20"),
)
TRAINING = (
    *("--learning_rate", "3e-3", "--batch_size", "4", "--max_epochs", "6"),
    *("--train_split", "0.5", "--val_split", "0.15"),
    # Only the end of the training is compared, so it is validated once.
    *("--check_val_every_n_epoch", "6", "--num_sanity_val_steps", "0"),
    *("--accelerator", "cpu", "--log_every_n_steps", "5"),
)
PROBE = (
    *("--blocks", "0", "--pools", *POOLS, "--labels", *map(str, LABELS), "--draws", "5"),
    *("--accelerator", "cpu"),
)


class Objective(NamedTuple):
    """A pre-training of the study.

    Attributes:
        label: its row.
        flags: of ``neuromamba train``.
        steps: whether the model predicts the next token of the same place, so that the metrics at
            steps are defined.
    """

    label: str
    flags: tuple[str, ...]
    steps: bool = True


def _next(*flags: str, scaling: str = "voxelnorm_zeroback") -> tuple[str, ...]:
    return ("--use_autoregressive", "--input_scaling_method", scaling, *flags)


REFERENCE = "voxelwise"  # the others are compared with it
_SAME, _SPACE = ("--predict", "same_place"), ("--token_order", "space_first")
OBJECTIVES: Mapping[str, Objective] = {
    # One step at a rate that changes no weight: an untrained model is measured like the others.
    "untrained": Objective(
        "untrained, voxel-wise",
        (
            *(*_next(), "--learning_rate", "1e-12", "--limit_train_batches", "1"),
            *("--max_epochs", "1", "--check_val_every_n_epoch", "1"),
        ),
    ),
    "runwide": Objective("run-wide z-norm, next token", _next(scaling="znorm_minback")),
    REFERENCE: Objective("voxel-wise, next token", _next()),
    "demean": Objective("demean_zeroback, next token", _next(scaling="demean_zeroback")),
    "same_place": Objective("voxel-wise, same place, 1 ahead", _next(*_SAME)),
    "same_place_2": Objective(
        "voxel-wise, same place, 2 ahead", _next(*_SAME, "--predict_ahead", "2"), False
    ),
    "difference": Objective(
        "voxel-wise, same place, difference", _next(*_SAME, "--loss_on", "difference")
    ),
    "space_first": Objective("voxel-wise, space first, next token", _next(*_SPACE), False),
    "space_first_same_place": Objective(
        "voxel-wise, space first, same place", _next(*_SPACE, *_SAME)
    ),
    "tubes": Objective(
        "voxel-wise, masked tubes",
        ("--use_mim", "--masking_type", "tube", "--input_scaling_method", "voxelnorm_zeroback"),
        False,
    ),
}


class Place(NamedTuple):
    """Where the jobs of a seed and an effect write.

    Attributes:
        effect: of ``EFFECTS``.
        seed: of data, split and training.
        folder: of the jobs.
    """

    effect: str
    seed: int
    folder: Path

    @property
    def store(self) -> Path:
        """The synthetic data."""
        return self.folder / "store"

    def run(self, name: str) -> Path:
        """The run of a pre-training."""
        return self.folder / name

    def probe(self, name: str) -> Path:
        """The folder of its probe."""
        return self.folder / f"{name}_probe"


class ObjectivesStudy(NamedTuple):
    """What the flags ask for, checked.

    Attributes:
        seeds: of data, split and training.
        out: folder of the runs.
        folder: of the tables.
        extra: flags for every pre-training.
        added: results of seeds that were run elsewhere.
    """

    seeds: tuple[int, ...]
    out: Path
    folder: Path
    extra: tuple[str, ...]
    added: tuple[Path, ...] = ()

    def places(self) -> Iterator[Place]:
        """Every effect of the first seed, then of the next."""
        for seed in self.seeds:
            for effect in EFFECTS:
                yield Place(effect, seed, self.out / f"{effect}_seed{seed}")


def checked_study(args: argparse.Namespace, extra: tuple[str, ...]) -> ObjectivesStudy:
    """Check the flags.

    Raises:
        UserInputError: names the flag.
    """
    look_up(args.study, STUDIES, "--study")
    seeds = tuple(args.seeds or SEEDS)
    check_seeds(seeds)
    for flag, value in (
        ("--image_path", args.image_path),
        ("--checkpoints", args.checkpoints),
        ("--script", args.script),
        ("--job", args.job),
        ("--gpu", args.gpu),
    ):
        if value is not None:
            raise UserInputError(
                f"{flag}: only used with --table; the study makes its own synthetic data and runs "
                f"its jobs one after the other. Leave it out."
            )
    if args.dataset_name != "Dummy":
        raise UserInputError(
            f"--dataset_name: got '{args.dataset_name}', but the study needs an effect that is "
            f"known, so its data are synthetic; leave the flag out."
        )
    chosen = {*OWNED_BY_STUDY} & {word.split("=")[0] for word in extra}
    if chosen:
        raise UserInputError(
            f"{min(chosen)}: stands after --, but the study chooses it for each run. Leave it out."
        )
    refuse_owned(extra)
    return ObjectivesStudy(
        seeds=seeds,
        out=Path(args.output_dir or "output/study_objectives"),
        folder=Path(args.paper_dir or paper_folder() / "synthetic"),
        extra=extra,
        added=tuple(map(Path, args.add or ())),
    )


# What makes the rows differ, or has to be the same in all of them.
OWNED_BY_STUDY = tuple(
    f"--{name}"
    for name in (
        *("input_scaling_method", "token_order", "predict", "predict_ahead", "loss_on"),
        *("mask_ratio", "masking_type", "train_split", "val_split", "dataset_split_num"),
        *("img_size", "patch_size", "accelerator"),
    )
)


def job_lines(study: ObjectivesStudy) -> list[str]:
    """Every command of the study, in order."""
    lines = []
    for place in study.places():
        lines += [shown(command) for command in _store_commands(place)]
        for name in OBJECTIVES:
            lines += [shown(_train(study, place, name)), shown(_probe(place, name))]
    return lines


def run_study(study: ObjectivesStudy) -> None:
    """Do every job that has not finished.

    Raises:
        UserInputError: a folder was made with other settings.
        StageFailure: a job failed.
    """
    make_folder(study.out, "--output_dir")
    for place in study.places():
        here = f"{place.effect} effect, seed {place.seed}"
        commands = _store_commands(place)
        text = " && ".join(map(shown, commands))
        make_folder(place.folder, "--output_dir")
        do_once(place.store, text, f"{here}: data", partial(write_store, place.folder, commands))
        for name in OBJECTIVES:
            _objective(study, place, name, here)


def _objective(study: ObjectivesStudy, place: Place, name: str, here: str) -> None:
    """Pre-train and probe."""
    train, probe = _train(study, place, name), _probe(place, name)

    def pretrain() -> None:
        # A run that was ended in the middle goes on from its checkpoint.
        run_stage(name, (*train, "--resume_ckpt_path", "last"))

    def read() -> None:
        make_folder(place.probe(name), "--output_dir")
        run_stage(name, probe)

    do_once(place.run(name), shlex.join(train), f"{here}: {name}", pretrain)
    do_once(place.probe(name), shlex.join((*train, *probe)), f"{here}: probe of {name}", read)


def _store_commands(place: Place) -> tuple[tuple[str, ...], tuple[str, ...]]:
    nifti = str(place.folder / "nifti")
    return (
        (
            *("synthetic", "--output", nifti, *DATA, *EFFECTS[place.effect]),
            *("--seed", str(place.seed), "--num_workers", "2", "--overwrite"),
        ),
        (
            *("preprocess", "--input", nifti, "--output", str(place.store), "--img_size", *GRID),
            *("--dataset_name", "Dummy", "--num_workers", "2"),
        ),
    )


def _train(study: ObjectivesStudy, place: Place, name: str) -> tuple[str, ...]:
    return (
        *("train", "--pretraining", "--dataset_name", "Dummy"),
        *("--image_path", str(place.store), *MODEL, *_merged(OBJECTIVES[name].flags)),
        *("--seed", str(place.seed), *study.extra, "--output_dir", str(place.run(name))),
    )


def _merged(flags: Sequence[str]) -> tuple[str, ...]:
    """Flags of the training, less those that an objective sets otherwise, and its own."""
    kept, skip = [], False
    for word in TRAINING:
        if word.startswith("--"):
            skip = word in flags
        if not skip:
            kept.append(word)
    return (*kept, *flags)


def _probe(place: Place, name: str) -> tuple[str, ...]:
    folder = place.probe(name)
    return (
        *("probe", str(place.run(name)), *PROBE, "--json", str(folder / "probe.json")),
        *("--output", str(folder / "probe.html")),
    )
