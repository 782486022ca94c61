"""A run whose flags are checked and whose hardware is resolved; Lightning is not needed for it."""

from __future__ import annotations

from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.steps import effective_batch, scale_learning_rate
from neuromamba.fmamba.stores import check_cohorts_have_target
from neuromamba.training.allocator import choose_allocator
from neuromamba.training.strategies import Hardware, resolve_hardware


class PlannedRun:
    """What is known of a run before anything is loaded for it.

    Args:
        config: from ``run_config``.

    Attributes:
        hardware: what the run asks for, and what of it is missing here.
        allocator: what the C library does with freed memory.
        config: with ``--lr_scaling`` applied.

    Raises:
        UserInputError: what cannot be right on any machine.
    """

    def __init__(self, config: RunConfig) -> None:
        self.hardware: Hardware = resolve_hardware(
            config.trainer, config.flags["deepspeed_autocast"]
        )
        self.allocator = choose_allocator(config.flags["allocator"], self.hardware.accelerator)
        check_cohorts_have_target(config)
        self.config = scale_learning_rate(config, self.hardware.ranks)

    @property
    def effective_batch(self) -> int:
        """Windows of an optimiser step."""
        return effective_batch(self.config, self.hardware.ranks)
