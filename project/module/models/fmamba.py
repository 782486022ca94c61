"""The backbone: ``neuromamba/fmamba/backbone.py``."""

from neuromamba.fmamba.backbone import BackboneOutput, Embedder, FMamba

__all__ = ["BackboneOutput", "Embedder", "FMamba"]
