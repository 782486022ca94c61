"""The LightningModules: ``neuromamba/fmamba/module.py``."""

from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.pretrain import PretrainModule

__all__ = ["DownstreamModule", "FMambaModule", "PretrainModule"]
