"""Outputs of the layers of a backbone, by the names under which users know them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neuromamba.config.names import LAST_LAYER
from neuromamba.fmamba.backbone import Backbone, FMamba
from neuromamba.fmamba.tokenizer import PackedTokens

EMBEDDING = "embedding"


def layer_names(depth: int, blocks: int) -> list[str]:
    """Layers to probe: the embedding, some blocks evenly spaced, the features after the norm.

    The features are the output of the last block, normalised, so this block is not named twice.

    Args:
        depth: blocks of the backbone with a row per token (``ModelConfig.token_blocks``).
        blocks: how many of those before the last to take; all if there are fewer.
    """
    count = max(0, min(blocks, depth - 1))
    chosen = [round((i + 1) * depth / (count + 1)) for i in range(count)]
    return [EMBEDDING, *(f"block {number}" for number in chosen), LAST_LAYER]


def module_of(model: Backbone, layer: str) -> nn.Module:
    """The module whose output a layer is; ``layer`` of ``layer_names``, or any "block N"."""
    if layer == EMBEDDING:
        return model.embedder
    if layer == LAST_LAYER:
        return model.norm
    assert isinstance(model, FMamba), layer
    return model.mamba_layers[int(layer.removeprefix("block ")) - 1]


def layer_output(model: Backbone, layer: str, packed: PackedTokens) -> Tensor:
    """Run a backbone in evaluation mode on packed tokens and return the output of a layer (L, D).

    Args:
        model: the backbone.
        layer: of ``layer_names``, or any "block N".
        packed: tokens, on its device.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output)

    handle = module_of(model, layer).register_forward_hook(keep)
    try:
        with torch.inference_mode():
            model.forward_tokens(packed)
    finally:
        handle.remove()
    return found[0]
