"""The mean loss over samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def keep_fp64(
    self: Metric, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any
) -> torch.nn.Module:
    """Move a metric with its module but keep its states in fp64; for use as ``Metric._apply``.

    A long sum in bf16, which ``--precision bf16-true`` would make of it, stops growing.
    """
    return Metric._apply(self, lambda tensor: fn(tensor).to(tensor.dtype), *args, **kwargs)


class MeanLoss(Metric):
    """The mean over samples, whatever their distribution over batches and ranks."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("total", "count"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(state, default=zero, dist_reduce_fx="sum")

    _apply = keep_fp64

    def update(self, errors: Tensor) -> None:
        """Add the errors of samples, (B,)."""
        self.total += errors.double().sum()
        self.count += errors.numel()

    def compute(self) -> Tensor:
        """Return the mean; NaN without samples."""
        return self.total / self.count
