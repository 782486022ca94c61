"""Where in its run a checkpoint is taken, and what is needed to continue from there exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerFn

RUN_KEY = "neuromamba_run"  # in a checkpoint


def note_position(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Add to a checkpoint what Lightning leaves out of it.

    Under ``RUN_KEY``: ``validation_due``, whether a validation comes first when the run continues;
    ``row``, what will be logged of the step that has just ended (it may not come to that);
    ``loss``, of the last step; ``stopped``, whether the training has ended early.
    ``FaultTolerance`` adds ``settings`` (``resume.step_settings``) and ``seconds`` of training,
    over all resumptions.
    """
    checkpoint[RUN_KEY] = {
        "validation_due": _repeat_validation(trainer, checkpoint["loops"]["fit_loop"]),
        "row": _row(trainer),
        "loss": float(trainer.callback_metrics.get("train/loss", math.nan)),
        "stopped": trainer.should_stop,
    }


def restore_position(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """A run that had stopped early, and is resumed for its evaluation, trains no further."""
    early = trainer.early_stopping_callback is not None
    if trainer.state.fn == TrainerFn.FITTING and early:
        trainer.should_stop = checkpoint.get(RUN_KEY, {}).get("stopped", False)


def _repeat_validation(trainer: Trainer, loops: dict[str, Any]) -> bool:
    """Where a validation is due or under way, say so in a checkpoint, so that it is done again.

    Lightning would continue after it: with metrics of some batches, or of none.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
        return False
    training: Any = epoch_loop.batch_progress
    validation = epoch_loop.val_loop.batch_progress
    if trainer.validating:
        due = validation.current.completed < validation.current.ready
    else:
        ends_batch = training.current.completed < training.current.processed
        fetcher = trainer.fit_loop._data_fetcher
        due = ends_batch and fetcher is not None and epoch_loop._should_check_val_fx(fetcher)
    if due:
        for part in ("total", "current"):
            progress = loops["epoch_loop.batch_progress"][part]
            progress["completed"] = progress["processed"]
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            loops["epoch_loop.val_loop.batch_progress"][part].update(begun)
        loops["epoch_loop.val_loop.batch_progress"]["is_last_batch"] = False
    return due


def _row(trainer: Trainer) -> dict[str, float]:
    """What will be logged of the step that has just ended, in case that is not reached."""
    connector = trainer._logger_connector
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    ends_batch = trainer.training and progress.current.completed < progress.current.processed
    if not ends_batch or not connector.should_update_logs:
        return {}
    values = {name: float(value) for name, value in connector.metrics["log"].items()}
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    return values | {"epoch": trainer.current_epoch, "step": step}


def inside_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a Lightning checkpoint was taken before the end of an epoch."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return not progress["is_last_batch"]


def ended_inside_epoch(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the training was over behind a part of an epoch, which so is done with."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return inside_epoch(checkpoint) and epochs["processed"] == epochs["ready"]


def loader_states(checkpoint: Mapping[str, Any]) -> list[dict[str, int]]:
    """``WindowLoader.state_dict`` of the training loader in a checkpoint; [] in older ones."""
    states: list[dict[str, int]] = checkpoint["loops"]["fit_loop"]["state_dict"].get(
        "combined_loader", []
    )
    return states


def count_last_epoch(trainer: Trainer) -> None:
    """Count the last epoch of a finished training, which Lightning leaves out on resuming."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    epochs.completed = epochs.processed


def resume_by_epochs(trainer: Trainer) -> None:
    """Have a run with ``--max_steps`` continue as the others do.

    Lightning takes such a run for one inside an epoch, always, and loses its place behind one.
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
