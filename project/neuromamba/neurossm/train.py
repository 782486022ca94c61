"""One fit of a model of regional time series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from neuromamba.common.seeds import seed_run
from neuromamba.data.regions.batches import ScanDataset, ScanLoader
from neuromamba.data.regions.scan import Scan
from neuromamba.evaluation.target_scaling import TargetScaling
from neuromamba.neurossm.config import FitConfig
from neuromamba.neurossm.module import ROIModule
from neuromamba.training.curves import curve_logger
from neuromamba.training.fault_tolerance import FaultTolerance
from neuromamba.training.fit import assemble_trainer, fit_once
from neuromamba.training.strategies import Hardware


def train(
    *,
    build: Callable[[], nn.Module],
    scans: Sequence[Scan],
    fit: FitConfig,
    hardware: Hardware,
    seed: int,
    folder: Path,
    parts: np.ndarray | None = None,
    scaling: TargetScaling | None = None,
) -> nn.Module:
    """Train a model from scratch; its curve goes to ``<folder>/logs/metrics.csv``.

    Args:
        build: makes the model, called after seeding.
        scans: to train on.
        fit: how.
        hardware: one device.
        seed: of weights, order, crops and dropout.
        folder: of this fit.
        parts: int [scans], the member that is trained without each of them; None: none is.
        scaling: of the target of a regression.

    Raises:
        StoppedRun, UserInputError: see ``training.fault_tolerance``.
    """
    seed_run(seed)
    loader = ScanLoader(ScanDataset(scans, fit.crop, seed), fit.batch_size, shuffle=True)
    module = ROIModule(build(), fit, fit.epochs * len(loader), parts, scaling)
    fault_tolerance = FaultTolerance()
    trainer = assemble_trainer(
        folder=folder,
        hardware=hardware,
        seed=seed,
        arguments={
            "max_epochs": fit.epochs,
            "log_every_n_steps": 1,
            "enable_checkpointing": False,  # a fit takes minutes and is done again if it was ended
        },
        loggers=[curve_logger(folder)],
        fault_tolerance=fault_tolerance,
        epochs_per_line=max(1, fit.epochs // 4),
    )
    fit_once(trainer, module, loader, fault_tolerance)
    return module.model
