"""Build the LightningModule of a run from its configuration and data."""

from __future__ import annotations

from typing import Any

from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.target_scaling import UNSCALED, TargetScaling
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.pretrain import PretrainModule
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.training_inputs import METADATA_KEY, training_inputs
from neuromamba.fmamba.watched_facts import watched_facts


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
