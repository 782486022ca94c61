"""Backbones by name: ``neuromamba/fmamba/build.py``."""

from neuromamba.fmamba.build import BACKBONES as MODELS
from neuromamba.fmamba.build import build_model, load_model_config

__all__ = ["MODELS", "build_model", "load_model_config"]
