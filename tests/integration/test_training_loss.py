"""The logged training loss is that of a step, however the step is divided."""

from __future__ import annotations

import pytest

from tests.helpers.ranks import ZERO, needs_deepspeed
from tests.helpers.tiny_runs import DDP, NEXT, SEX, Runs, rows


def curve(runs: Runs, extra: str, ranks: int) -> list[float]:
    folder = runs.new()
    ended = runs.go(folder, f"{extra} --max_steps 4 --dropout 0", ranks=ranks)
    assert ended.statuses == (0,) * ranks, ended.text
    return [float(row["train/loss"]) for row in rows(folder) if "train/loss" in row]


@pytest.mark.parametrize("objective", [NEXT, pytest.param(SEX, marks=pytest.mark.slow)])
def test_it_does_not_depend_on_ranks_and_accumulation(runs: Runs, objective: str) -> None:
    alone = curve(runs, f"{objective} --batch_size 4", 1)
    assert len(alone) == 4
    for extra, ranks in ((DDP, 2), ("--gradient_accumulation_steps 2", 1)):
        assert curve(runs, f"{objective} {extra}", ranks) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("strategy", ZERO)
def test_nor_on_the_strategy(runs: Runs, strategy: str) -> None:
    line = f"{NEXT} --gradient_accumulation_steps 2 --batch_size 1"
    found = curve(runs, f"{line} --strategy {strategy}", 2)
    assert found == pytest.approx(curve(runs, f"{NEXT} --batch_size 4", 1), rel=1e-5)
