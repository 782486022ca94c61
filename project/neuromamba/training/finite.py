"""Losses, gradients and weights that are not finite, and leaving a step out because of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from neuromamba.common.text import some_of
from neuromamba.training.zero_strategy import ZeroStrategy

_SHOWN = 12  # windows named in a message


@dataclass
class Step:
    """What is kept of an optimiser step until the ranks have agreed on it.

    Attributes:
        losses: of its batches on this rank, on the device.
        windows: of its batches, (subjects, numbers).
        number: of the step, from 1.
        epoch: from 1.
        rate: learning rate.
    """

    losses: list[Tensor] = field(default_factory=list)
    windows: list[tuple[list[str], Tensor]] = field(default_factory=list)
    number: int = 0
    epoch: int = 0
    rate: float = 0.0

    def bad_windows(self) -> tuple[str, str]:
        """What a loss of this rank was instead of a number, and the windows of such batches.

        Without such a loss "" and all windows of the step.
        """
        values = [float(loss) for loss in self.losses]
        bad = [i for i, value in enumerate(values) if not math.isfinite(value)]
        nan = any(math.isnan(values[i]) for i in bad)
        what = ("not a number" if nan else "infinite") if bad else ""
        names = []
        for subjects, numbers in (self.windows[i] for i in bad or range(len(values))):
            names += [
                f"{subject} window {int(n)}" for subject, n in zip(subjects, numbers, strict=True)
            ]
        return what, some_of(names, _SHOWN)


def bad_gradient(trainer: Trainer, optimizer: Any) -> Tensor | None:
    """Whether a gradient is not finite, on the device; None where somebody else looks after it.

    DeepSpeed has it in pieces of its own; a gradient scaler expects such steps and leaves them out.
    """
    if isinstance(trainer.strategy, ZeroStrategy):
        return None
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return None
    grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    return ~torch.isfinite(torch.stack(torch._foreach_norm(grads))).all() if grads else None


def bad_weights(module: nn.Module) -> Tensor:
    """Whether a weight is not finite; of ZeRO-3 in this rank's share."""
    shares = [_share(p) for p in module.parameters()]
    filled = [share for share in shares if share.numel()]
    if not filled:  # the last ranks of a small model
        return shares[0].new_zeros((), dtype=torch.bool)
    norms = torch._foreach_norm(filled)
    return ~torch.isfinite(torch.stack([norm.float() for norm in norms])).all()


def _share(parameter: Any) -> Tensor:
    """A parameter, or of one that ZeRO-3 has cut up this rank's piece."""
    piece = getattr(parameter, "ds_tensor", None)
    if piece is None:
        return parameter.detach()
    # Pieces are of one length; behind the parameter's end lies whatever was in memory.
    start = len(piece) * torch.distributed.get_rank(parameter.ds_process_group)
    return piece.detach()[: max(0, parameter.ds_numel - start)]


def skip_step(trainer: Trainer, optimizer: Any) -> None:
    """Have the optimiser do nothing this time."""
    if isinstance(trainer.strategy, ZeroStrategy):
        trainer.strategy.refuse_step()
    else:
        optimizer.zero_grad(set_to_none=True)  # no gradient, no update: not even weight decay
