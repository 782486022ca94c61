"""Lightning's own flags reach its Trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neuromamba.commands.train import main
from neuromamba.fmamba import trainer as trainer_module
from neuromamba.fmamba.dry_run import describe_plan
from neuromamba.fmamba.trainer_flags import SYNONYMS
from neuromamba.training import fit as fit_module
from tests.helpers.flag_tests import (
    predictions,
)
from tests.helpers.tiny import CommandLine

# flag -> words on the command line, and what reaches the Trainer.
TRAINER: dict[str, tuple[str, Any]] = {
    "accelerator": ("cpu", "cpu"),
    "strategy": ("ddp", "ddp"),
    "devices": ("2", 2),
    "num_nodes": ("2", 2),
    "precision": ("bf16", "bf16-mixed"),
    "fast_dev_run": ("3", 3),
    "max_epochs": ("7", 7),
    "min_epochs": ("2", 2),
    "max_steps": ("11", 11),
    "min_steps": ("5", 5),
    "max_time": ("00:01:00:00", None),  # we keep the time, see test_survival.py
    "limit_train_batches": ("0.5", 0.5),
    "limit_val_batches": ("2", 2),
    "limit_test_batches": ("1.0", 1.0),
    "limit_predict_batches": ("3", 3),
    "overfit_batches": ("1", 1),
    "val_check_interval": ("0.25", 0.25),
    "check_val_every_n_epoch": ("2", 2),
    "num_sanity_val_steps": ("2", 2),
    "log_every_n_steps": ("3", 3),
    "enable_checkpointing": ("", True),
    "enable_progress_bar": ("", True),
    "enable_model_summary": ("", True),
    "accumulate_grad_batches": ("4", 4),
    "gradient_clip_val": ("0.5", 0.5),
    "gradient_clip_algorithm": ("value", "value"),
    "deterministic": ("warn", "warn"),
    "benchmark": ("", True),
    "inference_mode": ("", True),
    "detect_anomaly": ("", True),
    "barebones": ("", True),
    "sync_batchnorm": ("", True),
    "reload_dataloaders_every_n_epochs": ("2", 2),
    "enable_autolog_hparams": ("", True),
}


@pytest.fixture
def handed_on(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Keyword arguments of the Trainer that flags lead to."""
    monkeypatch.setattr(fit_module, "Trainer", lambda **arguments: arguments)
    monkeypatch.setattr(fit_module, "take_over_signals", lambda trainer: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    def build(extra: str) -> Any:
        planned = cli.planned(extra)
        return trainer_module.build_trainer(
            planned.config, planned.hardware, cli.folder, "name", True
        )

    return build


@pytest.mark.parametrize("flag", TRAINER)
def test_trainer_flags_reach_the_trainer(handed_on: Callable[[str], Any], flag: str) -> None:
    text, expected = TRAINER[flag]
    found = handed_on(f"--{flag} {text}").get(flag)
    assert found == expected and type(found) is type(expected)
    if expected is True:
        assert handed_on(f"--no-{flag}" if text == "" else "")[flag] is False


@pytest.mark.parametrize(("theirs", "ours"), SYNONYMS.items())
def test_synonyms(
    cli: CommandLine,
    handed_on: Callable[[str], Any],
    capsys: pytest.CaptureFixture[str],
    theirs: str,
    ours: str,
) -> None:
    assert handed_on(f"--{ours} 3")[theirs] == handed_on(f"--{theirs} 3")[theirs] == 3
    assert handed_on("").get(theirs) in (None, 1)
    assert main(cli.argv(f"--{ours} 3 --{theirs} 3")) == 2
    assert f"--{ours} and --{theirs} mean the same" in capsys.readouterr().err


def test_accumulation_counts_in_the_plan(cli: CommandLine) -> None:
    for flag in ("accumulate_grad_batches", "gradient_accumulation_steps"):
        planned = cli.planned(f"--{flag} 3")
        assert planned.effective_batch == 12 and "3 optimiser steps" in describe_plan(planned)


@pytest.mark.parametrize(
    "extra",
    [
        "--fast_dev_run",
        "--fast_dev_run 2",
        "--barebones",
        pytest.param(
            "--overfit_batches 1",
            # Lightning says so; it is what the flag is for.
            marks=pytest.mark.filterwarnings("ignore:.*turning off the train dataloader shuffl"),
        ),
        "--limit_train_batches 2 --limit_val_batches 0.5 --limit_test_batches 1",
        "--val_check_interval 0.5",
        "--check_val_every_n_epoch 2 --max_epochs 3",
        "--num_sanity_val_steps 2",
        "--max_epochs -1 --max_steps 3",
        "--max_time 00:00:10:00",
        "--precision bf16",
        "--precision 64",
        "--deterministic --detect_anomaly --no-inference_mode --enable_model_summary",
        "--gradient_clip_val 0.5 --gradient_clip_algorithm value",
        "--reload_dataloaders_every_n_epochs 1 --max_epochs 2",
    ],
)
def test_trainer_flags_in_a_real_run(cli: CommandLine, extra: str) -> None:
    done = cli.run(extra)
    assert {row["subject"] for row in predictions(done)} <= set(cli.data().subjects["test"][0])
    if "barebones" not in extra:  # which logs nothing
        assert np.isfinite(done.written["train/loss"])
        assert np.isfinite(done.written["test/loss"])


@pytest.mark.parametrize(
    ("extra", "steps"),
    [("--limit_train_batches 0.5", 4), ("--max_steps 7", 7), ("--fast_dev_run 2", 2)],
)
def test_steps_of_the_schedule_are_those_taken(cli: CommandLine, extra: str, steps: int) -> None:
    assert cli.run(extra).metrics["train/steps"] == steps
    if "fast" not in extra:
        assert f"{steps} optimiser steps" in describe_plan(cli.planned(extra))
