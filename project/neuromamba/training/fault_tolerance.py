"""Signals, time limits and losses that are not finite: what a run does about them on all ranks.

At every optimiser step the ranks agree on whether to stop or to skip it (``step_agreement``).

Without ``--skip_bad_batches`` the answer is read a step later, when it has already arrived, so that
no host waits for its device. What that step changed is never saved, since every checkpoint waits
for the answer first. With it the answer is needed before the optimiser changes the weights, which
costs one wait a step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.training.finite import skip_step
from neuromamba.training.rank_sync import Siblings
from neuromamba.training.resume_state import RUN_KEY, note_position, restore_position
from neuromamba.training.run_lock import RunLock
from neuromamba.training.step_agreement import StepAgreement
from neuromamba.training.stopping import (
    STOPPED,
    Reason,
    StoppedRun,
    requeue,
    under_slurm,
)
from neuromamba.training.zero_strategy import ZeroStrategy


class FaultTolerance(Callback):
    """Stop a run in good order, and keep values that are not finite out of its checkpoints.

    Args:
        max_seconds: time limit, from now on; None for no limit.
        allowed: steps with a loss or gradient that is not finite that may be skipped.

    Attributes:
        agreement: what the ranks agree on at every step.
        siblings: ends all ranks when one has failed.
        run_dir: the folder of the run.
        lock: the lock of the run folder, if there is one.
        folder: the folder of the checkpoints; None when none are written.
        resume_flags: flags that continue the run.
        resumes: whether the same command line continues the run.
        start: the checkpoint that the run resumes from, for a message.
        batch, doing: the batch and activity in progress, for messages about memory.
        settings: ``resume.step_settings`` of the run, for its checkpoints.
    """

    def __init__(self, max_seconds: float | None = None, allowed: int = 0) -> None:
        self.agreement = StepAgreement(max_seconds, allowed)
        self.siblings = Siblings()
        self.run_dir = Path()
        self.lock: RunLock | None = None
        self.folder: Path | None = None
        self.resume_flags, self.resumes = "--resume_ckpt_path last", False
        self.start = "the beginning"
        self.batch: dict[str, Any] = {}
        self.doing = "start"
        self.settings: Mapping[str, Any] = {}
        self._began = time.monotonic()
        self._skipped_now = False

    def describe_run(
        self,
        run_dir: Path,
        settings: Mapping[str, Any],
        *,
        keeps_checkpoints: bool,
        resumes: bool,
        names_folder: bool,
    ) -> None:
        """Say where the checkpoints of a run are, how it is continued, and what must be the same.

        Args:
            run_dir: the run folder.
            settings: ``step_settings`` of the run, for its checkpoints.
            keeps_checkpoints: whether the run writes any.
            resumes: whether the same command continues by itself.
            names_folder: whether the command names the run folder, so that it need not be added.
        """
        self.settings = settings
        self.run_dir = run_dir
        self.folder = run_dir / "checkpoints" if keeps_checkpoints else None
        self.resumes = resumes
        if not (names_folder or resumes):
            self.resume_flags = f"--output_dir {run_dir} {self.resume_flags}"

    @property
    def advice(self) -> str:
        """How to continue a run that has ended early."""
        return "Start it again" if self.folder is None else f"Continue with {self.resume_flags}"

    def start_clock(self, before: float) -> None:
        """Begin to count, after ``before`` seconds of training that came before a resumption."""
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resumption included."""
        return time.monotonic() - self._began

    def end(self) -> None:
        """Release signals, other ranks and the run folder."""
        self.agreement.signals.restore()
        self.siblings.end()
        if self.lock is not None:
            self.lock.release()

    # ------------------------------------------------------------------ where to listen

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make sure that all ranks, which now know each other, resume from the same checkpoint.

        Raises:
            UserInputError: they do not.
        """
        self.siblings.watch()
        first = trainer.strategy.broadcast(self.start)
        if first != self.start:
            raise UserInputError(
                f"--resume_ckpt_path: the first rank resumes from {first}, this one from "
                f"{self.start}. The folder looks different from here; try again, or name the "
                f"checkpoint."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals from here on, since there is something to save."""
        self.agreement.signals.install()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals in the evaluation at the end of a run."""
        self.agreement.signals.install()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals in the test."""
        self.agreement.signals.install()

    # ------------------------------------------------------------------ a step of training

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record which windows are being computed."""
        self._note(batch, "training")
        self.agreement.step.windows.append((batch["subject"], batch["window"]))

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Record the loss; nothing is read from the device."""
        self.agreement.step.losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Read the answer about the step before, and propose this one."""
        self.agreement.settle(trainer)
        self.agreement.propose_step(trainer, pl_module, optimizer)
        self._skipped_now = bool(self.agreement.allowed) and self.agreement.settle(trainer)
        if self._skipped_now:
            skip_step(trainer, optimizer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Act between two steps on what was agreed."""
        if trainer.fit_loop._should_accumulate():
            return
        refused = isinstance(trainer.strategy, ZeroStrategy) and trainer.strategy.refused_step
        if refused and not self._skipped_now and not self.agreement.settle(trainer):
            # DeepSpeed silently skips a step whose gradient is not finite, on all ranks.
            self.agreement.skip(trainer, 0, gradient=True)
        if self.agreement.reason:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the answer about the last step."""
        self.agreement.settle(trainer)

    # ------------------------------------------------------------------ evaluation

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Stop between two batches of a long validation, too."""
        self._between(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """Stop between two batches of a long test, too."""
        self._between(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Record the batch that is being computed."""
        self._note(batch, "evaluation")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Record the batch that is being computed."""
        self._note(batch, "evaluation")

    def _between(self, trainer: Trainer, module: LightningModule) -> None:
        self.agreement.settle(trainer)
        if self.agreement.reason and not trainer.sanity_checking:
            self._stop(trainer)
        self.agreement.propose(trainer, module)

    def _note(self, batch: Any, doing: str) -> None:
        self.batch = {name: batch[name] for name in ("subject", "plans") if name in batch}
        self.doing = doing

    # ------------------------------------------------------------------ the end

    def _stop(self, trainer: Trainer) -> None:
        """Save, requeue the job if that was asked for, and end on every rank.

        Raises:
            StoppedRun: always; the first rank says what was done.
        """
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        done = f"stopped in step {trainer.global_step}" if training else "stopped in the evaluation"
        done += f" ({self.agreement.reason.words})"
        if training and self.folder is not None:
            path = self.folder / "last.ckpt"
            trainer.save_checkpoint(path)
            done += f"; wrote {path}"
        status = 0 if self.agreement.reason is Reason.TIME_LIMIT else STOPPED
        note = self.advice
        if self.agreement.reason is Reason.REQUEUE and under_slurm():
            refusal = (
                ""
                if self.resumes
                else "its command line has no --resume_ckpt_path last to continue"
            )
            if not refusal and trainer.is_global_zero:
                refusal = requeue()
            refusal = trainer.strategy.broadcast(refusal)
            status = STOPPED if refusal else 0
            note = (
                f"The job was not requeued: {refusal}. {note}"
                if refusal
                else "The job was put into the queue again"
            )
        raise StoppedRun(f"{done}. {note}." if trainer.is_global_zero else "", status)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse weights that are not finite, and add the position in the run."""
        self.agreement.refuse_bad_weights(trainer, pl_module)
        note_position(trainer, checkpoint)
        checkpoint[RUN_KEY] |= {"settings": dict(self.settings), "seconds": self.seconds}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the position in the run."""
        restore_position(trainer, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of skipped steps, which count in a resumed run."""
        return {"skipped": self.agreement.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of skipped steps."""
        self.agreement.skipped = state_dict["skipped"]


def take_over_signals(trainer: Trainer) -> None:
    """Replace Lightning's handling of signals by that of ``FaultTolerance``.

    Lightning's handler for SIGTERM broadcasts wherever the process is, so that several ranks can
    wait for each other indefinitely; under Slurm it would requeue a job whose ranks have not all
    saved. Before every batch it also asks whether the first rank received SIGTERM, and waits for
    the device; the agreement of the ranks makes this unnecessary.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    loop: Any = trainer.fit_loop.epoch_loop
    if hasattr(loop, "_broadcast_sigterm_tensor"):  # from Lightning 2.6 on
        loop._broadcast_sigterm_tensor = lambda: None
