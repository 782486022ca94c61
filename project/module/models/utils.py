"""The normalisation layer: ``neuromamba/layers/rms_norm.py``."""

from neuromamba.layers.rms_norm import RMSNorm, rms_norm

__all__ = ["RMSNorm", "rms_norm"]
