"""Build the Lightning Trainer of a run: its checkpoints, loggers and number of steps."""

from __future__ import annotations

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
from neuromamba.fmamba.feature_watch import FeatureWatch
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.scalability import scalability_check
from neuromamba.fmamba.steps import accumulation, epochs
from neuromamba.training.callbacks import BestCheckpoint, EmbeddingWriter, RegularCheckpoint
from neuromamba.training.curves import curve_logger
from neuromamba.training.fault_tolerance import FaultTolerance
from neuromamba.training.fit import assemble_trainer
from neuromamba.training.hardware_flags import installed
from neuromamba.training.strategies import Hardware

WANDB_FILE = Path("configs", "wandb.yaml")  # in the repository, else in the working folder


def monitored(config: RunConfig) -> tuple[str, str]:
    """The validation value that chooses the best checkpoint, and "min" or "max"."""
    if config.downstream is None:
        return "val/loss", "min"
    task_type = TASK_TYPES[config.downstream.task_type]
    return task_type.monitor, task_type.monitor_mode


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
