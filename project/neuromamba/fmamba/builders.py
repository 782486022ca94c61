"""Build what a run needs from its configuration: data and module.

Plans and dry runs build a module without data, to count its weights; they need no ``Run``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.training import EFFECTIVE_BATCH
from neuromamba.data.cohorts.labels import target_of
from neuromamba.data.cohorts.registry import DATASETS
from neuromamba.data.windows.run_data import RunData
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.pretrain import PretrainModule
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.target_scaling import UNSCALED, TargetScaling
from neuromamba.fmamba.trainer import accumulation
from neuromamba.fmamba.training_inputs import METADATA_KEY, training_inputs
from neuromamba.fmamba.watched_facts import watched_facts

DUMMY_FRAMES = 40


def check_cohorts_have_target(config: RunConfig) -> None:
    """Make sure that each cohort knows the target of the downstream task.

    Raises:
        UserInputError: names the cohort and the targets that it has.
    """
    if config.downstream is not None and not config.downstream.has_own_targets:
        for name in config.data.dataset_name:
            target_of(DATASETS[name], config.downstream.task)


def effective_batch(config: RunConfig, ranks: int) -> int:
    """Count the windows of an optimiser step: micro batch x ranks x accumulated batches."""
    return config.data.batch_size * ranks * accumulation(config)


def scale_learning_rate(config: RunConfig, ranks: int) -> RunConfig:
    """Return the configuration with ``--lr_scaling`` applied: the rate follows the batch."""
    if not config.optim.lr_scaling:
        return config
    rate = config.optim.learning_rate * effective_batch(config, ranks) / EFFECTIVE_BATCH
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=rate))


def describe_objective(config: RunConfig) -> str:
    """Say in a few words what a run trains or tests."""
    pretrain, task, head = config.pretrain, config.downstream, config.head
    if pretrain is not None:
        return f"pre-training, {pretrain.description}"
    assert task is not None and head is not None
    pretrained = bool(config.flags["load_model_path"])
    mode = "test only" if config.flags["test_only"] else task.mode(pretrained)
    return f"{task.task} ({task.task_type}), {head.name} head, {mode}"


def locate_data(config: RunConfig, *, make_dummy: bool) -> DataConfig:
    """Return the data configuration with its stores: those given, or a synthetic one for Dummy.

    Args:
        config: the run.
        make_dummy: write the synthetic store if it is not there yet.

    Raises:
        UserInputError: no store is given, or the synthetic one is not there and not to be made.
    """
    if config.flags["image_path"]:
        return config.data
    if config.data.dataset_name != ("Dummy",):
        raise UserInputError(
            "--image_path: not given; name the folder of the HDF5 store of each data set."
        )
    subjects, effect = config.flags["dummy_subjects"], config.flags["dummy_effect_size"]
    name = "x".join(str(n) for n in config.data.grid)
    frames = max(DUMMY_FRAMES, 2 * config.data.window_span)
    path = Path("output") / "dummy" / f"{name}_{frames}f_{subjects}s_effect{effect:g}"
    if make_dummy:
        # Imported here: the generator needs nilearn and scipy, which take seconds to load.
        from neuromamba.data.synthetic.runs import ensure_dummy_store

        ensure_dummy_store(
            path,
            subjects=subjects,
            frames=frames,
            grid=config.data.grid,
            effect_size=effect,
        )
    elif not path.exists():
        raise UserInputError(
            f"--image_path: not given; {subjects} synthetic subjects will be made in '{path}'."
        )
    return dataclasses.replace(config.data, image_path=(str(path),))


def build_module(
    config: RunConfig, data: RunData | None, total_steps: int, *, measured: bool = True
) -> FMambaModule:
    """Build the LightningModule with fresh weights.

    Args:
        config: the run.
        data: its data, which scale the target and weigh the classes; None for a plan, in which
            LoRA's updates are there already.
        total_steps: optimiser steps that the learning-rate schedule spans.
        measured: whether to measure the training's scans for its checkpoints, which takes seconds;
            not needed if none are written.
    """
    described: dict[str, Any] = {}
    if data is not None:
        described = data.metadata()
        if measured:
            described = described | {METADATA_KEY: training_inputs(data, config.model)}
    shared: dict[str, Any] = {
        "model": config.model,
        "optim": config.optim,
        "total_steps": total_steps,
        "ssd_backend": config.flags["ssd_backend"],
        "activation_checkpointing": config.flags["activation_checkpointing"],
        "data_metadata": described,
        "augment": config.augment,
    }
    if config.pretrain is not None:
        return PretrainModule(
            objective=config.pretrain,
            seed=config.flags["seed"],
            facts={} if data is None else watched_facts(data, tuple(config.flags["watch_task"])),
            **shared,
        )
    assert config.downstream is not None and config.head is not None
    scaling, weights = UNSCALED, None
    if data is not None and config.downstream.task_type == "regression":
        scaling = TargetScaling(*data.target_scaling())
    elif data is not None:
        weights = data.class_weights()
    module = DownstreamModule(
        head=config.head,
        task=config.downstream,
        target_scaling=scaling,
        class_weights=weights,
        **shared,
    )
    if data is None:
        module.add_lora()
    return module
