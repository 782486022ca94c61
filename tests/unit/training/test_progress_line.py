"""What a line of progress shows of an epoch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from neuromamba.training.callbacks import PlainProgress, names_to_show


def test_a_pre_training_shows_what_matters() -> None:
    facts = [f"val/watch_{n}{e}" for n in ("sex", "age") for e in ("", "_chance", "_limit")]
    others = ["val/anatomy_share", "val/jump_loss", "val/step_loss", "val/knn_subject_chance"]
    there = ["train/loss", "val/skill", "val/dynamic_skill", "val/loss", "val/feature_rank"]
    assert names_to_show([*others, *facts, *there]) == [
        *("train/loss", "val/loss", "val/skill", "val/dynamic_skill", "val/feature_rank"),
        *("val/watch_age", "val/watch_sex"),
    ]


def test_a_task_shows_its_losses_and_its_main_metric(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"val/accuracy": 0.5, "val/auroc": 0.75, "val/loss": 0.6, "train/loss": 0.7}
    trainer: Any = SimpleNamespace(
        current_epoch=1,
        max_epochs=3,
        is_global_zero=True,
        global_step=10,
        callback_metrics=metrics | {"val/balanced_accuracy": 0.5, "train/learning_rate": 1e-3},
    )
    PlainProgress().on_train_epoch_end(trainer, trainer)
    line = capsys.readouterr().out
    assert line.startswith(
        "epoch 2 of 3, step 10: train/loss 0.7000, val/loss 0.6000, val/auroc 0.7500 ("
    )
    assert names_to_show(["val/mae", "val/pearson_r", "val/loss"]) == ["val/loss", "val/pearson_r"]
