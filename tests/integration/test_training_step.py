"""The profiler of a training step: time is booked on the part in which it is spent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import training_step
from benchmarks._measure import resident
from neuromamba.data.windows.dataset import WindowDataset
from neuromamba.fmamba import module as shared_module
from neuromamba.fmamba import pretrain
from neuromamba.fmamba.backbone import Embedder
from neuromamba.fmamba.pretrain import PretrainModule
from neuromamba.layers.mamba2 import Mamba2, ResidualBlock
from tests.helpers.clock import OwnClock
from tests.helpers.tiny import CommandLine

DELAY = 0.05
DEPTH = 2
FLAGS = (
    f"--pretraining --use_autoregressive --depth {DEPTH} --batch_size 1 --allocator default "
    "--limit_val_batches 0"
)


CLOCK = OwnClock()  # of the profiler; what takes time lets it pass


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "time", CLOCK)


def late(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        CLOCK.sleep(DELAY)
        return function(*args, **kwargs)

    return called


class LateGradient(torch.autograd.Function):
    """x, whose gradient takes its time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        CLOCK.sleep(DELAY)
        return gradient


def with_late_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: LateGradient.apply(function(*args, **kwargs))


@pytest.mark.filterwarnings("ignore:.*overridden .transfer_batch_to_device.")  # as meant here
@pytest.mark.parametrize(
    ("owner", "name", "slower", "part", "times"),
    [
        (WindowDataset, "read_into", late, "read the window", 1),
        (shared_module, "plan_compact", late, "plan the scatter", 1),
        (PretrainModule, "transfer_batch_to_device", late, "to the device", 1),
        (PretrainModule, "pack", late, "scale, scatter, patchify", 1),
        (Embedder, "forward", late, "embed", 1),
        (Embedder, "forward", with_late_gradient, "embed backward", 1),
        (ResidualBlock, "forward", late, "blocks forward", DEPTH),
        (ResidualBlock, "forward", with_late_gradient, "blocks backward", DEPTH),
        (pretrain, "next_token_errors", late, "output layer, loss", 1),
        (
            pretrain,
            "next_token_errors",
            with_late_gradient,
            "output layer, loss backward",
            1,
        ),
        (PretrainModule, "log_training_loss", late, "log", 1),
        (PretrainModule, "configure_gradient_clipping", late, "clip", 1),
        (torch.optim.AdamW, "_init_group", late, "optimiser", 2),
        (PretrainModule, "lr_scheduler_step", late, "loops and callbacks", 1),
    ],
)
def test_time_is_booked_where_it_is_spent(
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    slower: Callable[..., Any],
    part: str,
    times: int,
) -> None:
    monkeypatch.setattr(owner, name, slower(getattr(owner, name)))
    found = training_step.profile(cli.argv(FLAGS), steps=2)
    assert found["steps"] == 2 and found["tokens"] == 10
    assert 0.1 < found["peak_gb"] <= resident("VmHWM") / 1e9
    assert set(found["parts"]) == set(training_step.PARTS)
    expected = DELAY * times
    assert found["parts"].pop(part) == pytest.approx(expected)
    assert set(found["parts"].values()) == {0.0}
    assert [*found["step"].values()] == pytest.approx([expected] * 3)
    assert found["share_of_blocks"] == pytest.approx(float(part.startswith("blocks")))


def test_blocks_that_run_again_are_booked_on_the_backward_pass(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backend that leaves it to torch's checkpointing."""
    monkeypatch.setattr(Mamba2, "forward", late(Mamba2.forward))
    flags = f"{FLAGS} --activation_checkpointing --ssd_backend reference"
    parts = training_step.profile(cli.argv(flags), steps=1)["parts"]
    assert parts["blocks forward"] == parts["blocks backward"] == pytest.approx(DELAY * DEPTH)
    assert not any(parts[part] for part in parts if not part.startswith("blocks"))


def test_quick_run(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--quick --threads 1 --precision bf16 --allocator default --json"
    assert training_step.main([*flags.split(), str(tmp_path / "step.json")]) == 0
    table = capsys.readouterr().out
    assert all(f"| {part} " in table for part in training_step.PARTS)
    assert "| in the 2 blocks " in table and (tmp_path / "step.md").exists()
