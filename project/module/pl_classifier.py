"""The LightningModules: ``neuromamba/fmamba/module.py``."""

from neuromamba.fmamba.module import DownstreamModule, FMambaModule, PretrainModule

__all__ = ["DownstreamModule", "FMambaModule", "PretrainModule"]
