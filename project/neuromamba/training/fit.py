"""The Lightning Trainer of a fit, put together in one way for both model families.

Seeds of batches, curves, progress, signals and faults, atomic checkpoints, the launcher's
environment and the device are the same for every model; a family adds its own callbacks, loggers
and arguments.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from neuromamba.common.errors import UserInputError
from neuromamba.training.callbacks import BatchSeed, PlainProgress
from neuromamba.training.checkpoint_writer import AtomicCheckpoints
from neuromamba.training.fault_tolerance import FaultTolerance, take_over_signals
from neuromamba.training.launch import cluster_environment
from neuromamba.training.strategies import Hardware

_DEFAULTS: Mapping[str, Any] = {
    "log_every_n_steps": 10,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
# Lightning's advice that does not apply here.
_NOISE = (
    ".*does not have many workers.*",  # 0 workers is our documented default
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*You defined a `validation_step` but have no `val_dataloader`.*",  # val_split 0 is allowed
    ".*Checkpoint directory .* exists and is not empty.*",  # resuming
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*could not find the monitored key.*",  # ended before the first validation
    ".*You are trying to `self.log\\(\\)` but `Trainer\\(barebones.*",
    ".*Total length of `list` across ranks is zero.*",  # no validation subjects
    ".*module\\(s\\) in eval mode at the start of training.*",  # a frozen backbone
    ".*You have overridden `on_before_batch_transfer` in `LightningModule`.*",  # as intended
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # Lightning 2.6 with torch 2.13
    ".*It is recommended to use `self.log\\('(val|test)/.*sync_dist=True.*",  # reduced already
    ".*requested to overfit but enabled val dataloader shuffling.*",  # it is in order
    ".*The `srun` command is available on your system but is not used.*",  # launch.py knows
    ".*Since DeepSpeed handles gradient clipping internally.*",  # ours does nothing then
    ".*When saving the DeepSpeed Stage 3 checkpoint.*",  # export_checkpoint.py makes one file
)


def quiet_lightning() -> None:
    """Leave out Lightning's advice that does not apply here, and its informal lines.

    These (devices found, files restored, tips) hide ours.
    """
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch_lightning", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)


def assemble_trainer(
    *,
    folder: Path,
    hardware: Hardware,
    seed: int,
    arguments: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    fault_tolerance: FaultTolerance | None = None,
    epochs_per_line: int = 1,
) -> Trainer:
    """Put the Trainer of a fit together.

    Args:
        folder: everything is written below it.
        hardware: resolved, present.
        seed: of dropout in each batch.
        arguments: of the Trainer; ``barebones`` leaves out all callbacks and loggers.
        callbacks: of the model family.
        loggers: receive the curves.
        fault_tolerance: what is done about signals, time limits and losses that are not numbers.
        epochs_per_line: epochs between lines of progress, where there is no terminal.

    Raises:
        UserInputError: Lightning refuses an argument.
    """
    quiet_lightning()
    # Lightning < 2.6 would unpickle whatever a checkpoint to resume from holds.
    os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    bare = arguments.get("barebones", False)
    defaults = {k: v for k, v in _DEFAULTS.items() if not (bare and k == "log_every_n_steps")}
    chosen: dict[str, Any] = {**defaults, **arguments, **hardware.trainer_arguments()}
    plugins = [*chosen.get("plugins", []), *cluster_environment(), AtomicCheckpoints()]
    progress: Callback = PlainProgress(every=epochs_per_line)
    shows_bar = sys.stderr.isatty() and chosen.get("enable_progress_bar", True)
    if shows_bar:
        # It shows the loss, and to read that from a GPU the host waits until the step is done.
        progress = TQDMProgressBar(refresh_rate=1 if hardware.accelerator == "cpu" else 20)
    chosen |= {
        "plugins": plugins,
        "use_distributed_sampler": False,  # ours knows the ranks
        "enable_progress_bar": shows_bar,
        "default_root_dir": folder,
    }
    first = [] if fault_tolerance is None else [fault_tolerance]
    used = [] if bare else [*first, BatchSeed(seed), progress, *callbacks]
    try:
        trainer = Trainer(logger=False if bare else list(loggers), callbacks=used, **chosen)
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        # Lightning's own checks of its flags: their messages name the argument.
        raise UserInputError(f"Trainer: {' '.join(str(error).split())}") from None
    take_over_signals(trainer)
    return trainer


def fit_once(
    trainer: Trainer, module: LightningModule, loader: Any, fault_tolerance: FaultTolerance
) -> None:
    """Train on one loader, and leave signals and other ranks alone again, however it ends.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        StoppedRun, UserInputError: see ``training.fault_tolerance``.
    """
    try:
        trainer.fit(module, loader)
    except SystemExit:
        raise KeyboardInterrupt from None  # Lightning makes this of Ctrl-C
    finally:
        fault_tolerance.end()
    fault_tolerance.siblings.part()
