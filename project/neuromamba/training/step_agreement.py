"""What all ranks agree on at every optimiser step: why to stop, and whether the step was bad.

The ranks exchange three numbers (``rank_sync``): the reason to stop, if one of them has one; the
rank whose loss was not finite; and whether the gradient was not. So all stop after the same step,
or skip the same one.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from neuromamba.training.finite import Step, bad_gradient, bad_weights
from neuromamba.training.rank_sync import RankSync, where
from neuromamba.training.stopping import EndedElsewhereError, Reason, SaidHereError, Signals

logger = logging.getLogger(__name__)


class StepAgreement:
    """Proposals of this rank, and the answers in which all ranks agree.

    Args:
        max_seconds: time until all ranks stop, from now on; None for no limit.
        allowed: steps with a loss or gradient that is not finite that may be skipped.

    Attributes:
        skipped: steps that were skipped.
        reason: why to stop, once a rank has a reason.
        signals: the signals that this process has received.
        step: the optimiser step whose batches are being computed.
    """

    def __init__(self, max_seconds: float | None = None, allowed: int = 0) -> None:
        self.allowed, self.skipped = allowed, 0
        self.reason = Reason.NONE
        self.signals = Signals()
        self.step, self._proposed = Step(), Step()
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._rank_sync = RankSync()

    def propose_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        """Propose this rank's losses and gradient, once the batches of a step are computed."""
        step, self.step = self.step, Step()
        step.number, step.epoch = trainer.global_step + 1, trainer.current_epoch + 1
        step.rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._proposed = step
        bad = ~torch.isfinite(torch.stack(step.losses)).all()
        self.propose(trainer, module, bad, bad_gradient(trainer, optimizer))

    def propose(
        self,
        trainer: Trainer,
        module: LightningModule,
        loss: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> None:
        """Send this rank's reason to stop, and whether its loss or gradient is bad, to the others.

        The number of a bad loss is ranks - rank, so that the largest is that of the first rank.
        """
        late = self._deadline is not None and time.monotonic() >= self._deadline
        reason = max(self.signals.received, Reason.TIME_LIMIT if late else Reason.NONE)
        numbers = torch.tensor([reason, 0, 0], dtype=torch.int32)
        numbers = numbers.to(module.device, non_blocking=True)
        if loss is not None:
            numbers[1] = loss * (trainer.world_size - trainer.global_rank)
        if gradient is not None:
            numbers[2] = gradient
        self._rank_sync.propose(numbers)

    def read(self) -> list[int] | None:
        """Return the last answer: reason, bad loss, bad gradient; None if it has been read."""
        return self._rank_sync.read()

    def settle(self, trainer: Trainer) -> bool:
        """Read the last answer, if there is one; return whether its step has to be skipped.

        Raises:
            SaidHereError: the step may not be skipped; on the rank that reports it.
            EndedElsewhereError: the same, on the other ranks.
        """
        answer = self.read()
        if answer is None:
            return False
        reason, loss, gradient = answer
        self.reason = max(self.reason, Reason(reason))
        if not loss and not gradient:
            return False
        self.skip(trainer, trainer.world_size - loss if loss else 0, gradient=not loss)
        return True

    def skip(self, trainer: Trainer, rank: int, *, gradient: bool) -> None:
        """Count a bad step, which ``rank`` reports; too many of them end the run.

        Raises:
            SaidHereError, EndedElsewhereError: as ``settle``.
        """
        step, mine = self._proposed, trainer.global_rank == rank
        what, windows = step.bad_windows()
        subject = "gradient" if gradient else "training loss"
        place = f"step {step.number} (epoch {step.epoch}, learning rate {step.rate:g})"
        if trainer.world_size > 1:
            place += f", {where()}"
        if self.skipped >= self.allowed:
            if not mine:
                raise EndedElsewhereError
            skip = (
                f"--skip_bad_batches {self.allowed} steps have been passed over"
                if self.allowed
                else "--skip_bad_batches N passes over N such steps"
            )
            raise SaidHereError(
                f"--learning_rate: the {subject} is {what or 'not finite'} in {place}, windows: "
                f"{windows}. No checkpoint holds it. Lower the rate or add --grad_clip 1; if these "
                f"runs are faulty (see neuromamba quality), leave them out with --bad_subj_path; "
                f"{skip}."
            )
        self.skipped += 1
        if mine or what:
            logger.warning(
                "warning: passed over %s: the %s is %s (%d of --skip_bad_batches %d), windows: %s",
                *(place, subject, what or "not finite", self.skipped, self.allowed, windows),
            )

    def refuse_bad_weights(self, trainer: Trainer, module: LightningModule) -> None:
        """Make sure on all ranks that no weight is infinite or not a number.

        Raises:
            SaidHereError: one is; on the rank that reports it.
            EndedElsewhereError: the same, on the other ranks.
        """
        self.settle(trainer)
        self.propose(trainer, module, bad_weights(module))
        answer = self.read()
        if answer is not None and answer[1]:
            if trainer.global_rank != trainer.world_size - answer[1]:
                raise EndedElsewhereError
            raise SaidHereError(
                f"--learning_rate: weights are not finite after step {trainer.global_step}; no "
                f"checkpoint is written of them. Lower the rate or add --grad_clip 1."
            )
