"""Random numbers: one seed for a run, independent streams for its parts."""

from __future__ import annotations

import numpy as np
import torch


def seed_run(seed: int) -> None:
    """Seed Python, NumPy and torch; call it before anything random, model building included."""
    from pytorch_lightning import seed_everything  # seconds, which the use of a model need not wait

    seed_everything(seed, workers=True, verbose=False)


def stream(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator that depends on the seed and the keys alone, e.g. (seed, epoch, batch)."""
    state = np.random.SeedSequence([seed, *keys]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
