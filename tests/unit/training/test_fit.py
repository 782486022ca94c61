"""The Trainer that both model families use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import TQDMProgressBar

from neuromamba.common.errors import UserInputError
from neuromamba.training.callbacks import BatchSeed, PlainProgress
from neuromamba.training.checkpoint_writer import AtomicCheckpoints
from neuromamba.training.curves import CurveLogger, curve_logger
from neuromamba.training.fault_tolerance import FaultTolerance
from neuromamba.training.fit import assemble_trainer
from neuromamba.training.strategies import resolve_hardware

CPU = resolve_hardware({"accelerator": "cpu", "devices": 1})


def assembled(folder: Path, *, bare: bool = False, **more: Any) -> Any:
    return assemble_trainer(
        folder=folder,
        hardware=CPU,
        seed=7,
        arguments={"max_epochs": 3, "enable_checkpointing": not bare, "barebones": bare} | more,
        callbacks=[Last()],
        loggers=[] if bare else [curve_logger(folder)],
        fault_tolerance=FaultTolerance(),
        epochs_per_line=5,
    )


class Last(Callback):
    """A family's own."""


def test_what_every_fit_has(tmp_path: Path) -> None:
    trainer = assembled(tmp_path)
    kinds = [type(c) for c in trainer.callbacks]
    places = [kinds.index(kind) for kind in (FaultTolerance, BatchSeed, PlainProgress, Last)]
    assert places == sorted(places)
    assert [c.every for c in trainer.callbacks if isinstance(c, PlainProgress)] == [5]
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpoints)
    assert isinstance(trainer.logger, CurveLogger)
    assert (trainer.log_every_n_steps, trainer.num_sanity_val_steps) == (10, 0)
    before = trainer._signal_connector.register_signal_handlers
    assert before() is None  # ours are installed by FaultTolerance


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    kinds = {type(c) for c in assembled(tmp_path).callbacks}
    assert TQDMProgressBar in kinds and PlainProgress not in kinds
    kinds = {type(c) for c in assembled(tmp_path, enable_progress_bar=False).callbacks}
    assert TQDMProgressBar not in kinds and PlainProgress in kinds


def test_barebones_has_nothing_of_it(tmp_path: Path) -> None:
    trainer = assembled(tmp_path, bare=True)
    assert not any(isinstance(c, FaultTolerance | BatchSeed | Last) for c in trainer.callbacks)
    assert not trainer.loggers


def test_what_lightning_refuses_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"^Trainer: .*limit_train_batches"):
        assembled(tmp_path, limit_train_batches=-0.5)
