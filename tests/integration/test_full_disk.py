"""A disk that fills up during a run: one line, and nothing half written."""

from __future__ import annotations

import pytest

from tests.helpers.forked import Blow
from tests.helpers.ranks import ZERO, needs_deepspeed
from tests.helpers.tiny_runs import LAST, NEXT, Runs, weights


@pytest.mark.parametrize(
    ("strategy", "full"),
    [
        ("auto", (0,)),
        ("ddp", (0, 1)),
        pytest.param(ZERO[0], (1,), marks=needs_deepspeed),
        *(
            pytest.param(strategy, full, marks=[needs_deepspeed, pytest.mark.slow])
            for strategy in ZERO
            for full in ((0,), (0, 1))
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_written(
    runs: Runs, strategy: str, full: tuple[int, ...]
) -> None:
    ranks = 1 if strategy == "auto" else 2
    folder = runs.new()
    line = f"{NEXT} --strategy {strategy} --every_n_train_steps 3 {LAST}"
    ended = runs.go(folder, line, Blow("full", 4, full), ranks=ranks)
    assert ended.statuses == (2,) * ranks, ended.text
    assert "Traceback" not in ended.text and ended.text.count("error: ") == 1
    (message,) = (row for row in ended.text.splitlines() if row.startswith("error: "))
    target = folder / "checkpoints" / "epoch=0-step=6.ckpt"
    assert message.startswith(f"error: --output_dir: the checkpoint '{target}' cannot be written (")
    assert "Is the disk full?" in message
    assert [path.name for path in target.parent.iterdir()] == ["epoch=0-step=3.ckpt"]
    assert all(value.isfinite().all() for value in weights(folder, "epoch=0-step=3").values())
    again = runs.go(folder, line, ranks=ranks)
    assert again.statuses == (0,) * ranks, again.text
    assert "continuing after step 3," in again.said[0]


def test_curves_that_cannot_be_written(runs: Runs) -> None:
    folder = runs.new()
    line = f"{NEXT} --max_epochs 40 --every_n_train_steps 1000 --limit_val_batches 0"
    ended = runs.go(folder, line, Blow("full", 1), ranks=1)
    assert ended.statuses == (2,) and "Traceback" not in ended.text
    message = ended.text.splitlines()[-1]
    assert message.startswith("error: --output_dir: ") and "Is the disk full?" in message
