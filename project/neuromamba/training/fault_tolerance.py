"""What a run does about signals, time limits and losses that are not numbers, on all ranks alike.

At every optimiser step the ranks exchange three numbers (``agreement.py``): why to stop, if one of
them has to; the rank whose loss was not finite; and whether the gradient was not. So all stop
behind the same step, or pass over the same one.

Without ``--skip_bad_batches`` the answer is read a step later, when it has long been there: no host
waits for its device. What that step changed is never saved, since every checkpoint waits for the
answer first. With it the answer is needed before the optimiser moves the weights: one wait a step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.training.finite import Step, bad_gradient, bad_weights, skip_step
from neuromamba.training.rank_sync import RankSync, Siblings, where
from neuromamba.training.resume_state import RUN_KEY, note_position, restore_position
from neuromamba.training.run_lock import RunLock
from neuromamba.training.stopping import (
    STOPPED,
    EndedElsewhereError,
    Reason,
    SaidHereError,
    Signals,
    StoppedRun,
    requeue,
    under_slurm,
)
from neuromamba.training.zero_strategy import ZeroStrategy


class FaultTolerance(Callback):
    """Stops a run in good order, and keeps numbers that are none out of its checkpoints.

    Args:
        max_seconds: from now on; None for no limit.
        skip: steps with a loss or gradient that is not finite that may be passed over.

    Attributes:
        run_dir: where the run writes.
        lock: of the run folder, if there is one.
        folder: of the checkpoints; None when none are written.
        again: flags that continue the run.
        resumes: whether the command line as it is continues the run.
        start: the checkpoint that the run goes on from, for a message.
        batch, doing: what is in work, for messages about memory.
        skipped: steps passed over.
        settings: ``resume.step_settings`` of the run, for its checkpoints.
    """

    def __init__(self, max_seconds: float | None = None, skip: int = 0) -> None:
        self.allowed, self.skipped = skip, 0
        self.run_dir = Path()
        self.lock: RunLock | None = None
        self.folder: Path | None = None
        self.again, self.resumes, self.start = "--resume_ckpt_path last", False, "the beginning"
        self.batch: dict[str, Any] = {}
        self.doing = "start"
        self.settings: Mapping[str, Any] = {}
        self.signals, self.siblings = Signals(), Siblings()
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._began = time.monotonic()
        self._rank_sync = RankSync()
        self._reason = Reason.NONE
        self._left_out = False
        self._step, self._proposed = Step(), Step()

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
            resumes: whether the same command goes on by itself.
            names_folder: whether the command names the run folder, so that it need not be added.
        """
        self.settings = settings
        self.run_dir = run_dir
        self.folder = run_dir / "checkpoints" if keeps_checkpoints else None
        self.resumes = resumes
        if not (names_folder or resumes):
            self.again = f"--output_dir {run_dir} {self.again}"

    @property
    def advice(self) -> str:
        """How to go on with a run that has ended before its time."""
        return "Start it again" if self.folder is None else f"Continue with {self.again}"

    def start_clock(self, before: float) -> None:
        """The training begins, or goes on after so many seconds."""
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resumption included."""
        return time.monotonic() - self._began

    def end(self) -> None:
        """Leave signals, other ranks and the run folder alone again."""
        self.signals.restore()
        self.siblings.end()
        if self.lock is not None:
            self.lock.release()

    # ------------------------------------------------------------------ where to listen

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The ranks have found each other.

        Raises:
            UserInputError: they do not go on from one checkpoint.
        """
        self.siblings.watch()
        first = trainer.strategy.broadcast(self.start)
        if first != self.start:
            raise UserInputError(
                f"--resume_ckpt_path: the first rank goes on from {first}, this one from "
                f"{self.start}. The folder looks different from here; try again, or name the "
                f"checkpoint."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save."""
        self.signals.install()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also in the evaluation at the end of a run."""
        self.signals.install()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As in validation."""
        self.signals.install()

    # ------------------------------------------------------------------ a step of training

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which windows are in work."""
        self._note(batch, "training")
        self._step.windows.append((batch["subject"], batch["window"]))

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Note the loss; nothing is read from the device."""
        self._step.losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Read what became of the step before, and ask about this one."""
        self._settle(trainer)
        step, self._step = self._step, Step()
        step.number, step.epoch = trainer.global_step + 1, trainer.current_epoch + 1
        step.rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._proposed = step
        bad = ~torch.isfinite(torch.stack(step.losses)).all()
        self._propose(trainer, pl_module, bad, bad_gradient(trainer, optimizer))
        self._left_out = bool(self.allowed) and self._settle(trainer)
        if self._left_out:
            skip_step(trainer, optimizer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Between two steps, act on what was agreed."""
        if trainer.fit_loop._should_accumulate():
            return
        refused = isinstance(trainer.strategy, ZeroStrategy) and trainer.strategy.refused_step
        if refused and not self._left_out and not self._settle(trainer):
            # DeepSpeed leaves out a step whose gradient is not finite, on all ranks, and is silent.
            self._pass_over(trainer, 0, gradient=True)
        if self._reason:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last step is asked about, too."""
        self._settle(trainer)

    # ------------------------------------------------------------------ evaluation

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """A long validation may be left as well."""
        self._between(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        """As in validation."""
        self._between(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Note what is in work."""
        self._note(batch, "evaluation")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Note what is in work."""
        self._note(batch, "evaluation")

    def _between(self, trainer: Trainer, module: LightningModule) -> None:
        self._settle(trainer)
        if self._reason and not trainer.sanity_checking:
            self._stop(trainer)
        self._propose(trainer, module)

    def _note(self, batch: Any, doing: str) -> None:
        self.batch = {name: batch[name] for name in ("subject", "plans") if name in batch}
        self.doing = doing

    # ------------------------------------------------------------------ agreement

    def _propose(
        self,
        trainer: Trainer,
        module: LightningModule,
        loss: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> None:
        """Tell the others: why to stop, whose loss was bad (ranks - rank), a bad gradient."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        reason = max(self.signals.received, Reason.TIME_LIMIT if late else Reason.NONE)
        numbers = torch.tensor([reason, 0, 0], dtype=torch.int32)
        numbers = numbers.to(module.device, non_blocking=True)
        if loss is not None:
            numbers[1] = loss * (trainer.world_size - trainer.global_rank)
        if gradient is not None:
            numbers[2] = gradient
        self._rank_sync.propose(numbers)

    def _settle(self, trainer: Trainer) -> bool:
        """Read the last answer, if there is one; whether its step has to be passed over.

        Raises:
            UserInputError: the step cannot be passed over; on the rank that has to say so.
            EndedElsewhereError: on the others.
        """
        answer = self._rank_sync.read()
        if answer is None:
            return False
        reason, loss, gradient = answer
        self._reason = max(self._reason, Reason(reason))
        if not loss and not gradient:
            return False
        self._pass_over(trainer, trainer.world_size - loss if loss else 0, gradient=not loss)
        return True

    def _pass_over(self, trainer: Trainer, rank: int, gradient: bool) -> None:
        """Count a bad step, which ``rank`` tells of; too many end the run."""
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
            logging.getLogger(__name__).warning(
                "warning: passed over %s: the %s is %s (%d of --skip_bad_batches %d), windows: %s",
                *(place, subject, what or "not finite", self.skipped, self.allowed, windows),
            )

    # ------------------------------------------------------------------ the end

    def _stop(self, trainer: Trainer) -> None:
        """Save, put the job into the queue again if that was asked for, and end on every rank."""
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        done = f"stopped in step {trainer.global_step}" if training else "stopped in the evaluation"
        done += f" ({self._reason.words})"
        if training and self.folder is not None:
            path = self.folder / "last.ckpt"
            trainer.save_checkpoint(path)
            done += f"; wrote {path}"
        status = 0 if self._reason is Reason.TIME_LIMIT else STOPPED
        note = self.advice
        if self._reason is Reason.REQUEUE and under_slurm():
            refusal = (
                "" if self.resumes else "its command line has no --resume_ckpt_path last to go on"
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
        """Let no weights through that are not numbers, and note where in the run this is."""
        self._settle(trainer)
        self._propose(trainer, pl_module, bad_weights(pl_module))
        answer = self._rank_sync.read()
        if answer is not None and answer[1]:
            if trainer.global_rank != trainer.world_size - answer[1]:
                raise EndedElsewhereError
            raise SaidHereError(
                f"--learning_rate: weights are not finite behind step {trainer.global_step}; no "
                f"checkpoint is written of them. Lower the rate or add --grad_clip 1."
            )
        note_position(trainer, checkpoint)
        checkpoint[RUN_KEY] |= {"settings": dict(self.settings), "seconds": self.seconds}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up what was noted."""
        restore_position(trainer, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Steps passed over: a resumed run may not pass over as many again."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]


def take_over_signals(trainer: Trainer) -> None:
    """Keep Lightning's hands off the signals.

    Its handler for SIGTERM broadcasts where it stands, and so several ranks wait for each other for
    ever; under Slurm it would requeue a job whose ranks have not all saved. Before every batch it
    asks whether the first rank was told to end, too, and waits for the device: the exchange above
    is enough.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    loop: Any = trainer.fit_loop.epoch_loop
    if hasattr(loop, "_broadcast_sigterm_tensor"):  # from Lightning 2.6 on
        loop._broadcast_sigterm_tensor = lambda: None
