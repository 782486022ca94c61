"""Build the Lightning Trainer of a run: its checkpoints, loggers and number of steps."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import Logger

from neuromamba.common.checkout import repository
from neuromamba.common.errors import UserInputError
from neuromamba.config.serialise import read_yaml
from neuromamba.config.tasks import TASK_TYPES
from neuromamba.config.training import DOWNSTREAM_EPOCHS, PRETRAIN_EPOCHS
from neuromamba.fmamba.feature_watch import FeatureWatch
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.scalability import scalability_check
from neuromamba.training.callbacks import BestCheckpoint, EmbeddingWriter, RegularCheckpoint
from neuromamba.training.curves import curve_logger
from neuromamba.training.fault_tolerance import FaultTolerance
from neuromamba.training.fit import assemble_trainer
from neuromamba.training.strategies import Hardware, installed

WANDB_FILE = Path("configs", "wandb.yaml")  # in the repository, else in the working folder


def monitored(config: RunConfig) -> tuple[str, str]:
    """The validation value that chooses the best checkpoint, and "min" or "max"."""
    if config.downstream is None:
        return "val/loss", "min"
    task_type = TASK_TYPES[config.downstream.task_type]
    return task_type.monitor, task_type.monitor_mode


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


def build_trainer(
    config: RunConfig,
    hardware: Hardware,
    run_dir: Path,
    run_name: str,
    validates: bool,
    fault_tolerance: FaultTolerance | None = None,
    taken: Mapping[str, Any] | None = None,
) -> Trainer:
    """The Trainer of a run.

    Args:
        config: the run.
        hardware: resolved, present.
        run_dir: everything is written below it.
        run_name: for wandb.
        validates: whether there are validation windows; without them only ``last.ckpt`` is kept.
        fault_tolerance: what is done about signals, time limits and losses that are not numbers.
        taken: of a resumed run, see ``curve_logger``.
    """
    # The hardware has settled these.
    settled = {"accelerator", "devices", "num_nodes", "strategy", "precision"}
    arguments: dict[str, Any] = {k: v for k, v in config.trainer.items() if k not in settled}
    arguments.pop("max_time", None)  # kept by FaultTolerance, on all ranks and with a checkpoint
    arguments.setdefault("max_epochs", epochs(config))
    arguments["accumulate_grad_batches"] = accumulation(config)
    if config.flags["grad_clip"] is not None:
        arguments["gradient_clip_val"] = config.flags["grad_clip"]
    bare = arguments.get("barebones", False)
    return assemble_trainer(
        folder=run_dir,
        hardware=hardware,
        seed=config.flags["seed"],
        arguments=arguments,
        callbacks=[] if bare else build_callbacks(config, run_dir, validates),
        loggers=[] if bare else build_loggers(config, run_dir, run_name, taken),
        fault_tolerance=fault_tolerance,
    )


def build_callbacks(config: RunConfig, run_dir: Path, validates: bool) -> list[Callback]:
    """Checkpoints, early stopping and embeddings, as far as asked for."""
    callbacks: list[Callback] = []
    folder = run_dir / "checkpoints"
    monitor, mode = monitored(config)
    if config.trainer.get("enable_checkpointing", True):
        if validates:
            callbacks.append(BestCheckpoint(folder, monitor, mode))
        callbacks.append(RegularCheckpoint(folder, "last"))
        name = "epoch={epoch}-step={step}"
        if config.flags["save_every_checkpoints"]:
            callbacks.append(RegularCheckpoint(folder, name))
        if config.flags["every_n_train_steps"]:
            steps = config.flags["every_n_train_steps"]
            callbacks.append(RegularCheckpoint(folder, name, steps))
    if validates and config.pretrain is not None:
        callbacks.append(FeatureWatch(config.data.input_scaling_method))
    if config.flags["use_early_stopping"]:
        if not validates:
            raise UserInputError("--use_early_stopping: needs validation subjects (--val_split).")
        patience = config.flags["early_stopping_patience"]
        callbacks.append(EarlyStopping(monitor=monitor, mode=mode, patience=patience))
    if config.flags["scalability_check"]:
        callbacks.append(scalability_check(config, run_dir))
    if config.flags["save_embedding"]:
        target = config.flags["embedding_save_dir"] or run_dir / "embeddings"
        callbacks.append(EmbeddingWriter(Path(target)))
    return callbacks


def build_loggers(
    config: RunConfig, run_dir: Path, run_name: str, taken: Mapping[str, Any] | None = None
) -> list[Logger]:
    """``logs/metrics.csv`` always, and the logger asked for beside it."""
    loggers: list[Logger] = [curve_logger(run_dir, taken)]
    name = config.flags["loggername"]
    if name == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(save_dir=run_dir, name="", version="tensorboard"))
    elif name == "wandb":
        loggers.append(_wandb_logger(config, run_dir, run_name))
    return loggers


def _wandb_logger(config: RunConfig, run_dir: Path, run_name: str) -> Logger:
    if not installed("wandb"):
        raise UserInputError("--loggername: wandb is not installed; pip install wandb.")
    from pytorch_lightning.loggers import WandbLogger

    settings: Mapping[str, Any] = {}
    file = (repository() or Path()) / WANDB_FILE
    if file.exists():
        settings = read_yaml(file, str(WANDB_FILE))
    # Without a key wandb would ask on the terminal, and fail in a batch job.
    has_key = "WANDB_API_KEY" in os.environ or (Path.home() / ".netrc").exists()
    mode = os.environ.get("WANDB_MODE") or settings.get("mode") or ("online" if has_key else "")
    if not mode:
        print("wandb: no API key found, logging offline below the run folder (wandb sync later).")
    return WandbLogger(
        project=config.flags["project_name"],
        name=run_name,
        save_dir=run_dir,
        entity=settings.get("entity"),
        offline=mode != "online",
    )
