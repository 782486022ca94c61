"""Learning-rate schedule of the paper (Appendix B)."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class CosineAnnealingWarmUpRestarts(LRScheduler):
    """Cosine cycles, each with a linear warm-up; to be stepped after every optimiser step.

    The rate starts a cycle at the floor, reaches the peak after ``warmup_steps``, and returns to
    the floor at the end of the cycle; then the next cycle starts with its peak times ``gamma``.

    Args:
        optimizer: its groups' learning rates are the peaks.
        cycle_steps: optimiser steps of a cycle, warm-up included.
        warmup_steps: optimiser steps of the warm-up, fewer than ``cycle_steps``.
        min_ratio: floor as a fraction of the peak of the first cycle.
        gamma: factor on the peak from one cycle to the next.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        cycle_steps: int,
        warmup_steps: int,
        min_ratio: float = 0.01,
        gamma: float = 1.0,
    ) -> None:
        if not 0 <= warmup_steps < cycle_steps:
            raise ValueError(
                f"warmup_steps must be at least 0 and less than cycle_steps, got {warmup_steps} "
                f"and {cycle_steps}"
            )
        self.cycle_steps, self.warmup_steps = cycle_steps, warmup_steps
        self.min_ratio, self.gamma = min_ratio, gamma
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Rates of all groups for the optimiser step about to come."""
        cycle, step = divmod(self.last_epoch, self.cycle_steps)
        if step < self.warmup_steps:
            share = step / self.warmup_steps
        else:
            progress = (step - self.warmup_steps) / (self.cycle_steps - self.warmup_steps)
            share = (1 + math.cos(math.pi * progress)) / 2
        rates = []
        for peak in map(float, self.base_lrs):
            floor = peak * self.min_ratio
            rates.append(floor + max(0.0, peak * self.gamma**cycle - floor) * share)
        return rates
