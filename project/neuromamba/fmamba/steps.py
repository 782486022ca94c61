"""Epochs, batches and optimiser steps of a run, from its flags; torch is not needed for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from neuromamba.common.errors import UserInputError
from neuromamba.config.training import DOWNSTREAM_EPOCHS, EFFECTIVE_BATCH, PRETRAIN_EPOCHS
from neuromamba.fmamba.run_config import RunConfig


def accumulation(config: RunConfig) -> int:
    """Batches of an optimiser step."""
    if "accumulate_grad_batches" in config.trainer:
        return config.trainer["accumulate_grad_batches"]
    return config.flags["gradient_accumulation_steps"]


def epochs(config: RunConfig) -> int:
    """``--max_epochs``, else the paper's number."""
    chosen = config.trainer.get("max_epochs")
    most = config.trainer.get("max_steps", -1)
    if most == 0 or most < -1:
        raise UserInputError(
            f"--max_steps: got {most}, expected 1 or more; leave it out for no limit."
        )
    if chosen is not None and chosen < 1 and not (chosen == -1 and most > 0):
        raise UserInputError(
            f"--max_epochs: got {chosen}, expected 1 or more, or -1 together with --max_steps."
        )
    if chosen is None:
        return PRETRAIN_EPOCHS if config.pretrain else DOWNSTREAM_EPOCHS
    return chosen


def batches_of_epoch(config: RunConfig, batches: int) -> int:
    """Number of batches that an epoch trains on, after ``--limit_train_batches`` and the like."""
    for name in ("limit_train_batches", "overfit_batches"):
        limit = config.trainer.get(name)
        if limit:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return batches


def total_steps(config: RunConfig, batches: int) -> int:
    """Optimiser steps of the run, of which each epoch has ``batches`` on every rank.

    Counted here: asking Lightning (``estimated_stepping_batches``) would set up the loaders early
    and disable resuming in the middle of an epoch.
    """
    quick, most = config.trainer.get("fast_dev_run", False), config.trainer.get("max_steps", -1)
    batches = batches_of_epoch(config, batches)
    if quick:
        steps = math.ceil(min(batches, int(quick)) / accumulation(config))
    elif epochs(config) < 0:
        steps = most
    else:
        steps = math.ceil(batches / accumulation(config)) * epochs(config)
    return max(1, min(steps, most) if most > 0 else steps)


def check_limits(config: RunConfig, batches: Mapping[str, int]) -> None:
    """Refuse a share of the batches that is less than one, and validations that never come.

    Args:
        config: the run.
        batches: "train", "val" and "test" -> batches on every rank.

    Raises:
        UserInputError: names the flag.
    """
    flags = {"limit_train_batches": "train", "overfit_batches": "train"}
    flags |= {"limit_val_batches": "val", "limit_test_batches": "test"}
    for name, part in flags.items():
        share, available = config.trainer.get(name), batches[part]
        if part == "train" and name == "limit_train_batches" and share is not None and share <= 0:
            raise UserInputError(
                f"--{name}: got {share:g}, expected a share above 0, or 1 batch or more: nothing "
                f"would be trained."
            )
        if isinstance(share, float) and 0 < share * available < 1:
            raise UserInputError(
                f"--{name}: {share:g} of {available} batches is less than one; give a larger "
                f"share, or a number of batches (an integer)."
            )
    interval = config.trainer.get("val_check_interval")
    if isinstance(interval, int) and not 0 < interval <= batches["train"]:
        raise UserInputError(
            f"--val_check_interval: got {interval}, expected 1 to {batches['train']}, the batches "
            f"of an epoch, or a share of them (a number with a point)."
        )


def effective_batch(config: RunConfig, ranks: int) -> int:
    """Count the windows of an optimiser step: micro batch x ranks x accumulated batches."""
    return config.data.batch_size * ranks * accumulation(config)


def scale_learning_rate(config: RunConfig, ranks: int) -> RunConfig:
    """Return the configuration with ``--lr_scaling`` applied: the rate follows the batch."""
    if not config.optim.lr_scaling:
        return config
    rate = config.optim.learning_rate * effective_batch(config, ranks) / EFFECTIVE_BATCH
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=rate))
