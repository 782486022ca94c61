"""Tokens from windows of a store: scaled, put on the grid, background dropped.

Nothing here needs Lightning, so a trained model can be used without importing it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from neuromamba.config.model import ModelConfig
from neuromamba.data.store.voxel_scaling import ANATOMY_STEP
from neuromamba.data.windows.dataset import collate_windows
from neuromamba.fmamba.tokenizer import PackedTokens, pack_anatomy, pack_compact, plan_compact


def pack_batch(
    batch: Mapping[str, Any], config: ModelConfig, dtype: torch.dtype = torch.float32
) -> PackedTokens:
    """Make the tokens of a batch from its ``plans``, scaled, on the batch's device."""
    packed = pack_compact(
        batch["bold"],
        batch["plans"],
        batch["gain"],
        batch["shift"],
        batch["background"],
        config,
        dtype,
    )
    if not config.anatomy:
        return packed
    anatomy = pack_anatomy(batch["anatomy"], batch["plans"], ANATOMY_STEP, config, dtype)
    return packed._replace(anatomy=anatomy)


def pack_windows(
    items: Sequence[Mapping[str, Any]], config: ModelConfig, device: torch.device
) -> PackedTokens:
    """Make the tokens of windows, scaled as in training, on the device.

    Args:
        items: as ``WindowDataset.__getitem__`` gives them.
        config: of the model.
        device: where the tokens are made.

    Raises:
        UserInputError: a window has no brain voxel.
    """
    batch = collate_windows(items)
    plans = plan_compact(batch["vox"], config, batch["subject"])
    moved = [type(plan)(*(tensor.to(device) for tensor in plan)) for plan in plans]
    for name in {"bold", "anatomy"} & batch.keys():
        batch[name] = [image.to(device) for image in batch[name]]
    return pack_batch(batch | {"plans": moved}, config)
