"""Which tokens masked-token reconstruction hides.

The backbone is causal: a hidden token is reconstructed from its position and from the tokens
before it. The first token of a sample has nothing before it and is never hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuromamba.config.names import MASKING_TYPES


def hidden_tokens(
    token_index: Tensor,
    lengths: tuple[int, ...],
    time_patches: int,
    mask_ratio: float,
    masking_type: str,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Draw the tokens to hide, for each sample by itself.

    Args:
        token_index: (L,) position of each token in the full grid, T fastest; on the CPU.
        lengths: tokens of each sample.
        time_patches: tokens of the grid along T.
        mask_ratio: share to hide of the tokens ("random"), of the spatial patches, each with all
            its frames ("tube"), or of the time patches, each over the whole brain ("temporal").
        masking_type: one of ``config.MASKING_TYPES``.
        generators: one a sample, so that a draw does not depend on the rest of the batch.

    Returns:
        (L,) bool; at least one token of every sample that has two.
    """
    assert masking_type in MASKING_TYPES, masking_type
    parts = []
    for index, generator in zip(token_index.split(lengths), generators, strict=True):
        if masking_type == "tube":
            unit = index // time_patches
        elif masking_type == "temporal":
            unit = index % time_patches
        else:
            unit = index
        units = unit.unique()
        order = torch.randperm(units.numel(), generator=generator)
        count = min(max(1, round(mask_ratio * units.numel())), max(1, units.numel() - 1))
        hidden = torch.isin(unit, units[order[:count]])
        hidden[0] = False
        if not hidden.any():
            hidden[1:2] = True  # only the first token was drawn: hide the next in its place
        parts.append(hidden)
    return torch.cat(parts)
