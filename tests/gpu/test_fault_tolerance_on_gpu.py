"""What is asked at every step never waits for the device; the answer comes a step later."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuromamba.training.finite import bad_gradient, bad_weights
from neuromamba.training.step_agreement import StepAgreement

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


def test_a_step_is_asked_about_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(64, 64, device="cuda")
    module(torch.ones(8, 64, device="cuda")).sum().backward()
    optimizer = torch.optim.AdamW(module.parameters())
    trainer: Any = SimpleNamespace(
        strategy=None, precision_plugin=None, world_size=4, global_rank=1, sanity_checking=False
    )
    place: Any = SimpleNamespace(device=torch.device("cuda"))
    agreement = StepAgreement()

    def ask(loss: torch.Tensor) -> None:
        bad = ~torch.isfinite(loss).all()
        agreement.propose(trainer, place, bad, bad_gradient(trainer, optimizer))

    ask(torch.ones(2, device="cuda"))  # libraries are loaded
    assert agreement.read() == [0, 0, 0]
    losses = torch.tensor([1.0, float("nan")], device="cuda")
    module.weight.grad[0, 0] = float("inf")  # type: ignore[index]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ask(losses)
        bad_weights(module)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert agreement.read() == [0, 3, 1]
