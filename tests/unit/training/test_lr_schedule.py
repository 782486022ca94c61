"""The learning-rate curve against its formula, number by number."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer

from neuromamba.config.model import ModelConfig
from neuromamba.config.training import OptimConfig, PretrainConfig
from neuromamba.fmamba.pretrain import PretrainModule
from neuromamba.training.lr_schedule import CosineAnnealingWarmUpRestarts

PEAK = 1e-4


def optimizer(*rates: float) -> Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return SGD(groups, lr=1.0)


def curve(optim: Optimizer, schedule: Any, steps: int, group: int = 0) -> list[float]:
    """The rates with which the next ``steps`` optimiser steps are taken."""
    rates = []
    for _ in range(steps):
        rates.append(optim.param_groups[group]["lr"])
        optim.step()
        schedule.step()
    return rates


def expected(
    cycle_steps: int, warmup: int, steps: int, ratio: float, gamma: float, peak: float = PEAK
) -> list[float]:
    rates, floor = [], peak * ratio
    for step in range(steps):
        top = peak * gamma ** (step // cycle_steps)
        at = step % cycle_steps
        if at < warmup:
            rates.append(floor + (top - floor) * at / warmup)
        else:
            angle = math.pi * (at - warmup) / (cycle_steps - warmup)
            rates.append(floor + (top - floor) * 0.5 * (1 + math.cos(angle)))
    return rates


@pytest.mark.parametrize(
    ("cycle_steps", "warmup", "ratio", "gamma"),
    [(100, 5, 0.01, 1.0), (40, 0, 0.01, 1.0), (20, 4, 0.1, 0.5), (7, 6, 0.0, 0.9), (1, 0, 0.01, 1)],
)
def test_curve(cycle_steps: int, warmup: int, ratio: float, gamma: float) -> None:
    optim = optimizer(PEAK)
    schedule = CosineAnnealingWarmUpRestarts(optim, cycle_steps, warmup, ratio, gamma)
    steps = 3 * cycle_steps + 2
    wanted = expected(cycle_steps, warmup, steps, ratio, gamma)
    assert curve(optim, schedule, steps) == pytest.approx(wanted, rel=1e-12)


def test_landmarks() -> None:
    """Numbers from the paper's settings: 5 % warm-up to 1e-4, floor 1e-6, over 200 steps."""
    optim = optimizer(PEAK)
    schedule = CosineAnnealingWarmUpRestarts(optim, 200, 10, 0.01)
    rates = curve(optim, schedule, 200)
    assert rates[0] == pytest.approx(1e-6)
    assert rates[5] == pytest.approx((1e-4 + 1e-6) / 2)  # half-way up
    assert rates[10] == pytest.approx(1e-4)  # after ten steps of warm-up
    assert rates[105] == pytest.approx((1e-4 + 1e-6) / 2)  # half-way down
    assert 1e-6 < rates[199] < 1.01e-6
    assert max(rates) == rates[10] and min(rates) == rates[0]
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert optim.param_groups[0]["lr"] == pytest.approx(1e-6)  # the end of the cycle


def test_restarts_and_gamma() -> None:
    optim = optimizer(PEAK)
    schedule = CosineAnnealingWarmUpRestarts(optim, 10, 2, 0.01, gamma=0.5)
    rates = curve(optim, schedule, 40)
    assert [rates[start + 2] for start in (0, 10, 20, 30)] == pytest.approx(
        [1e-4, 5e-5, 2.5e-5, 1.25e-5]
    )
    assert [rates[start] for start in (0, 10, 20, 30)] == pytest.approx([1e-6] * 4)


def test_peak_never_sinks_below_the_floor() -> None:
    optim = optimizer(PEAK)
    schedule = CosineAnnealingWarmUpRestarts(optim, 4, 1, 0.1, gamma=0.01)
    assert min(curve(optim, schedule, 20)) == pytest.approx(1e-5)


def test_each_group_has_its_own_peak() -> None:
    optim = optimizer(1.0, 0.1)
    schedule = CosineAnnealingWarmUpRestarts(optim, 10, 2, 0.01)
    wanted = expected(10, 2, 10, 0.01, 1.0, peak=0.1)
    assert curve(optim, schedule, 10, group=1) == pytest.approx(wanted)


@pytest.mark.parametrize("stop", [1, 3, 10, 17])
def test_resume_continues_the_curve(stop: int) -> None:
    """Also when the optimiser that is resumed was built with another rate."""
    whole_optim = optimizer(PEAK)
    whole = CosineAnnealingWarmUpRestarts(whole_optim, 10, 3, 0.01, gamma=0.7)
    wanted = curve(whole_optim, whole, 30)

    first_optim = optimizer(PEAK)
    first = CosineAnnealingWarmUpRestarts(first_optim, 10, 3, 0.01, gamma=0.7)
    begun = curve(first_optim, first, stop)
    saved = {"optimizer": first_optim.state_dict(), "schedule": first.state_dict()}

    resumed_optim = optimizer(0.5)
    resumed = CosineAnnealingWarmUpRestarts(resumed_optim, 99, 1, 0.5)
    resumed_optim.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["schedule"])
    assert begun + curve(resumed_optim, resumed, 30 - stop) == wanted


@pytest.mark.parametrize(("cycle_steps", "warmup"), [(10, 10), (10, 11), (10, -1), (0, 0)])
def test_refuses(cycle_steps: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=f"got {warmup} and {cycle_steps}"):
        CosineAnnealingWarmUpRestarts(optimizer(PEAK), cycle_steps, warmup)


@pytest.mark.parametrize(
    ("total", "values", "cycle_steps", "warmup"),
    [
        (200, {}, 200, 10),
        (200, {"cycle": 0.25}, 50, 2),
        (200, {"warmup": 0.0}, 200, 0),
        (10, {}, 10, 0),  # 5 % of ten steps is less than one
        (1, {"cycle": 0.1}, 1, 0),
    ],
)
def test_module_turns_fractions_into_steps(
    total: int, values: dict[str, float], cycle_steps: int, warmup: int
) -> None:
    model = ModelConfig(img_size=(2, 2, 2, 2), patch_size=(1, 1, 1, 1), embed_dim=8, depth=1)
    optim = OptimConfig(learning_rate=PEAK, gamma=0.5, min_lr_ratio=0.02, **values)  # type: ignore[arg-type]
    configured = PretrainModule(
        model=model, objective=PretrainConfig(), optim=optim, total_steps=total
    ).configure_optimizers()
    assert configured["lr_scheduler"]["interval"] == "step"
    schedule = configured["lr_scheduler"]["scheduler"]
    steps = 2 * cycle_steps
    wanted = expected(cycle_steps, warmup, steps, 0.02, 0.5)
    assert curve(configured["optimizer"], schedule, steps) == pytest.approx(wanted)


def test_module_without_schedule() -> None:
    model = ModelConfig(img_size=(2, 2, 2, 2), patch_size=(1, 1, 1, 1), embed_dim=8, depth=1)
    optim = OptimConfig(learning_rate=0.3, use_scheduler=False)
    configured = PretrainModule(
        model=model, objective=PretrainConfig(), optim=optim, total_steps=10
    ).configure_optimizers()
    assert isinstance(configured, Optimizer)
    assert {group["lr"] for group in configured.param_groups} == {0.3}
