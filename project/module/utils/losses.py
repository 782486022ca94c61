"""Training losses: ``neuromamba/fmamba/losses.py``."""

from neuromamba.fmamba.losses import (
    cross_entropy,
    masked_token_errors,
    mse,
    next_token_errors,
    next_token_targets,
)

__all__ = ["cross_entropy", "masked_token_errors", "mse", "next_token_errors", "next_token_targets"]
