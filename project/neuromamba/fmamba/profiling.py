"""Where the time of training goes: clocks at the joints of the training loop, over all ranks.

``StepClock`` hears from Lightning what begins and ends, and assigns every moment of a batch to a
phase; the phases add up to the batch. On a GPU the marks are events in its queue, so that nothing
waits for them and a phase is the device's own time. ``ThroughputCheck`` measures some batches after
a warm-up, traces some more for the time that ranks spend exchanging data
(``communication``), and passes the figures of all ranks to the caller:
``--scalability_check`` and ``neuromamba profile``. It changes nothing that is computed.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.profilers import Profiler

from neuromamba.config.training import WARM_UP_BATCHES
from neuromamba.fmamba.module import FMambaModule
from neuromamba.training.communication import Communication, Trace
from neuromamba.training.peak_memory import peak_memory

BATCHES = 50  # that are measured
MOST_TRACED = 32  # batches of an optimiser step that are worth tracing

# In the order of a batch.
PHASES = ("data wait", "to the device", "forward", "backward", "optimiser", "loops and callbacks")
# End of what Lightning calls an action -> its phase; an action inside another takes its time away.
_PHASE_OF = {
    ".train_dataloader_next": "data wait",
    ".on_before_batch_transfer": "to the device",
    ".batch_to_device": "to the device",
    ".training_step": "forward",
    ".backward": "backward",
    ".optimizer_step": "optimiser",
    ".configure_gradient_clipping": "optimiser",
    ".optimizer_zero_grad": "optimiser",
    "run_training_batch": "loops and callbacks",
}
# Where one of these begins, the batch is over: what they do is not part of it.
_ENDS_BATCH = ("_EvaluationLoop]", "validation", "save_checkpoint", "on_train_epoch_end")


class _HostMarks:
    """Moments by the host's clock."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


class _DeviceMarks:
    """Moments in the queue of a device.

    Args:
        backend: ``torch.cuda`` or ``torch.xpu``.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def mark(self) -> Any:
        event = self._backend.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


@dataclass
class BatchRecord:
    """A batch that was trained on.

    Attributes:
        lengths: kept tokens of its windows.
        spans: phase, its first and its last moment.
    """

    lengths: tuple[int, ...] = ()
    spans: list[tuple[str, Any, Any]] = field(default_factory=list)


class StepClock(Profiler):
    """Assigns the time of training batches to phases; a profiler in Lightning's sense."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[BatchRecord] = []
        self.running = False
        self._marks: _HostMarks | _DeviceMarks = _HostMarks()
        self._inside: list[str] = []  # phases of the actions that go on
        self._open = False  # within a batch
        self._phase: str | None = None
        self._since: Any = None

    def use(self, device: torch.device) -> None:
        """Measure on this device."""
        if device.type != "cpu":
            self._marks = _DeviceMarks(getattr(torch, device.type))

    def start(self, action_name: str) -> None:
        """Called where an action begins."""
        enclosing = self._inside[-1] if self._inside else PHASES[-1]
        found = (phase for end, phase in _PHASE_OF.items() if action_name.endswith(end))
        self._inside.append(next(found, enclosing))
        if any(part in action_name for part in _ENDS_BATCH):
            self._open = False
        if self.running and action_name.endswith(".train_dataloader_next"):
            now = self._marks.mark()
            self._book(now)
            self.batches.append(BatchRecord())
            self._open, self._phase, self._since = True, self._inside[-1], now
        else:
            self._switch()

    def stop(self, action_name: str) -> None:
        """Called where it ends."""
        if self._inside:  # else it began before this clock was there
            self._inside.pop()
        if action_name == "run_training_epoch":
            self._open = False
        self._switch()

    def _switch(self) -> None:
        """Assign the time until now to the phase that ends, if another one begins."""
        phase = (self._inside[-1] if self._inside else PHASES[-1]) if self._open else None
        if phase == self._phase:
            return
        now = self._marks.mark()
        self._book(now)
        self._phase, self._since = phase, now

    def _book(self, now: Any) -> None:
        if self._phase is not None:
            self.batches[-1].spans.append((self._phase, self._since, now))

    def end(self) -> None:
        """Stop measuring; a batch that was not trained on is forgotten."""
        self._open = self.running = False
        self._switch()
        self.batches = [batch for batch in self.batches if batch.lengths]

    def summary(self) -> str:
        """Nothing that Lightning should print."""
        return ""

    def seconds(self, batch: BatchRecord) -> dict[str, float]:
        """Seconds of each phase of a batch."""
        spent = dict.fromkeys(PHASES, 0.0)
        for phase, begin, end in batch.spans:
            spent[phase] += self._marks.seconds(begin, end)
        return spent


Finish = Callable[[dict[str, Any]], None]


class ThroughputCheck(Callback):
    """Measures batches of a training and hands the figures of all ranks on, once.

    Args:
        flops: FLOPs of training on a window of so many tokens.
        finish: what rank 0 does with the figures (``scalability.summary``); called in the middle of
            the training, as soon as enough batches were measured, or at its end.
        warm_up: batches that do not count; fewer, in a training that is too short.
        batches: that are measured, at most.
        then_stop: end the training when all is measured.
    """

    def __init__(
        self,
        flops: Callable[[int], int],
        finish: Finish,
        *,
        warm_up: int = WARM_UP_BATCHES,
        batches: int = BATCHES,
        then_stop: bool = False,
    ) -> None:
        self._flops, self._finish, self._then_stop = flops, finish, then_stop
        self._warm_up, self._wanted = warm_up, batches
        self._clock = StepClock()
        self._trace: Trace | None = None
        self._traced: list[Communication] = []
        self._seen, self._done = 0, False
        self._former: Any = None
        self._memory: dict[str, int] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of the Trainer's profiler while it trains."""
        if stage == "fit":
            self._former, trainer.profiler = trainer.profiler, self._clock  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The devices are there, and how many batches are to come is known."""
        self._clock.use(pl_module.device)
        self._clock.running = True
        left = _planned_batches(trainer)
        if (traced := self._to_trace(trainer)) and left < float("inf"):
            left -= traced + trainer.accumulate_grad_batches - 1  # up to where a step begins
        self._warm_up = int(min(self._warm_up, max(0, left // 2)))
        self._wanted = int(min(self._wanted, max(1, left - self._warm_up)))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the tokens; begin to trace where a traced optimiser step begins."""
        if self._done:
            return
        assert isinstance(pl_module, FMambaModule)
        frames = pl_module.model.config.token_grid[3]
        lengths = tuple(plan.spatial_index.numel() * frames for plan in batch["plans"])
        if self._clock.running:
            self._clock.batches[-1].lengths = lengths
        elif self._traced or batch_idx % trainer.accumulate_grad_batches == 0:
            self._trace = Trace(pl_module.device)
            self._trace.start(trainer.strategy.barrier)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go over from measuring to tracing, and from that to the figures."""
        if self._done:
            return
        self._seen += 1
        if self._trace is not None:
            self._traced.append(self._trace.stop())
            self._trace = None
        if self._clock.running and self._seen == self._warm_up + self._wanted:
            self._clock.end()
            self._memory = peak_memory(pl_module.device)  # before the traces, which take some
        if not self._clock.running and len(self._traced) == self._to_trace(trainer):
            self._report(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training that was over sooner."""
        if not self._done:
            self._clock.end()
            self._report(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the profiler's place back."""
        if stage == "fit" and self._former is not None:
            trainer.profiler = self._former  # type: ignore[attr-defined]

    def _to_trace(self, trainer: Trainer) -> int:
        """Batches whose exchange of data is traced: those of a step, two where each is one."""
        together = trainer.accumulate_grad_batches
        return max(2, together) if trainer.world_size > 1 and together <= MOST_TRACED else 0

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done = True
        trainer.should_stop |= self._then_stop
        figures = self.figures(trainer, pl_module)
        ranks = gathered(figures, trainer.world_size)
        if trainer.is_global_zero:
            self._finish({"ranks": ranks, "accumulation": trainer.accumulate_grad_batches})

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return this rank's seconds of each phase, windows and tokens of each batch, memory."""
        whole, together = self._clock.batches, trainer.accumulate_grad_batches
        warm_up = min(self._warm_up, len(whole) // 2)  # it ended before its time
        counted = whole[warm_up:]
        if len(counted) > together:  # whole optimiser steps
            counted = counted[: len(counted) // together * together]
        return {
            "rank": trainer.global_rank,
            "host": platform.node(),
            "device": device_name(pl_module.device),
            "warm_up": warm_up,
            "phases": [self._clock.seconds(batch) for batch in counted],
            "windows": [len(batch.lengths) for batch in counted],
            "tokens": [sum(batch.lengths) for batch in counted],
            "flops": [sum(map(self._flops, batch.lengths)) for batch in counted],
            "traced": [batch._asdict() for batch in self._traced],
            "memory": self._memory or peak_memory(pl_module.device),
        }


def _planned_batches(trainer: Trainer) -> float:
    """Batches of the training on each rank, as far as is known when it begins."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    by_epochs = float("inf")
    if epochs is not None and epochs > 0:
        by_epochs = trainer.num_training_batches * (epochs - trainer.current_epoch)
    by_steps = steps * trainer.accumulate_grad_batches if steps > 0 else float("inf")
    return min(by_epochs, by_steps)


def gathered(figures: Mapping[str, Any], ranks: int) -> list[dict[str, Any]]:
    """The figures of every rank, on all of them."""
    if ranks == 1:
        return [dict(figures)]
    found: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(found, dict(figures))
    return found


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} thread(s)"
    return str(getattr(torch, device.type).get_device_name(device))
