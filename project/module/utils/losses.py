"""Training losses, in fp32 or wider. Token losses are one error a token, for exact weighting.

Shapes: L packed tokens, V values a token, B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from project.module.config import TASK_TYPES


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def next_token_targets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Rows of the tokens to predict: all but the first of each sample, [sum(lengths) - B]."""
    keep = torch.ones(sum(lengths), dtype=torch.bool)
    starts = torch.tensor((0, *lengths[:-1])).cumsum(0)
    keep[starts] = False
    return keep.nonzero()[:, 0].to(device)


def next_token_errors(prediction: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
    """Squared error of each target token, averaged over its V values: [len(targets)].

    ``prediction[i - 1]`` is compared with ``tokens[i]`` (paper, section 3.3); since no target is
    the first token of its sample, no pair crosses a border.
    """
    return _widened(prediction[targets - 1] - tokens[targets]).square().mean(-1)


def masked_token_errors(prediction: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
    """Squared error of each hidden token at its own place, averaged over V: [len(targets)]."""
    return _widened(prediction[targets] - tokens[targets]).square().mean(-1)


def cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross entropy of (B, classes) logits against (B,) class indices."""
    return torch.nn.functional.cross_entropy(
        _widened(logits), target, label_smoothing=label_smoothing
    )


def mse(logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
    """Mean squared error of (B, 1) outputs against (B,) scaled targets; nothing to smooth."""
    wide = _widened(logits)[:, 0]
    return torch.nn.functional.mse_loss(wide, target.to(wide.dtype))


LOSSES: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
}
assert {task.loss for task in TASK_TYPES.values()} <= set(LOSSES)
