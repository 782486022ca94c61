"""A run that trains for some batches only, to measure its step."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from neuromamba.common.errors import UserInputError
from neuromamba.fmamba.flop_formula import flops_of
from neuromamba.fmamba.profiling import ThroughputCheck
from neuromamba.fmamba.run import Run
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.scalability import facts_of, summary
from neuromamba.fmamba.steps import accumulation
from neuromamba.layers.ssd_native.build import build_for_run
from neuromamba.planning.schedule import windows_each

logger = logging.getLogger(__name__)
# What a profile leaves out of the run that the flags describe.
_WITHOUT = {
    "max_epochs": -1,
    "limit_val_batches": 0,
    "limit_test_batches": 0,
    "enable_checkpointing": False,
    "min_epochs": None,
    "min_steps": None,
}


_WITHOUT_FLAGS = {"loggername": "csv", "use_early_stopping": False, "save_embedding": False}


class ProfiledRun(Run):
    """A run that only trains, for so many batches, and hands its figures on."""

    def __init__(self, config: RunConfig) -> None:
        flags, steps = config.flags, accumulation(config)
        self.batches = flags["profile_batches"]
        # Two optimiser steps more, for the exchange of data.
        whole = flags["warm_up_batches"] + self.batches + 2 * max(2, steps)
        limits = {**_WITHOUT, "max_steps": math.ceil(whole / steps)}
        super().__init__(dataclasses.replace(config, trainer={**config.trainer, **limits}))
        self.found: dict[str, Any] = {}

    def _fit(
        self, trainer: Any, module: Any, loaders: Any, point: Any, fault_tolerance: Any
    ) -> dict[str, float]:
        size = self.config.data.batch_size
        each = windows_each(loaders.data.windows_in("train"), self.hardware.ranks)
        if each < size:  # the figures would be of smaller batches
            raise UserInputError(
                f"--batch_size: no batch has {size} windows, since a rank has {each} in an epoch; "
                f"give at most {each}, or profile on more data."
            )

        def finish(gathered: dict[str, Any]) -> None:
            self.found = summary(gathered, facts_of(self.config))

        warm_up = self.config.flags["warm_up_batches"]
        check = ThroughputCheck(
            flops_of(self.config), finish, warm_up=warm_up, batches=self.batches, then_stop=True
        )
        trainer.callbacks.append(check)
        trainer.fit(module, datamodule=loaders)
        return {}


def profile(config: RunConfig) -> dict[str, Any]:
    """Figures of a run (``scalability.summary``); {} on all ranks but the first.

    Raises:
        UserInputError: as the run would raise it.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = {**config.flags, **_WITHOUT_FLAGS, "output_dir": str(Path(folder) / "run")}
        planned = ProfiledRun(dataclasses.replace(config, flags=flags))
        planned.allocator.apply()
        build_for_run(planned.hardware.accelerator, flags["ssd_backend"], logger.info)
        with contextlib.redirect_stdout(sys.stderr):
            planned.execute()
    return planned.found
