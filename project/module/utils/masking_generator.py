"""Masks of masked-token reconstruction: ``neuromamba/fmamba/masking.py``."""

from neuromamba.fmamba.masking import hidden_tokens

__all__ = ["hidden_tokens"]
