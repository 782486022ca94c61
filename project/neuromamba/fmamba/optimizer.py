"""The optimiser: weight decay of matrices, learning rates that fall with depth, AdamW or SGD."""

from __future__ import annotations

import re

import torch
from torch.optim import SGD, AdamW, Optimizer

from neuromamba.config.names import OPTIMIZER_NAMES
from neuromamba.config.training import OptimConfig


def matrices_of(module: torch.nn.Module) -> frozenset[str]:
    """Return the names of the parameters with more than one axis, which weight decay applies to."""
    return frozenset(name for name, p in module.named_parameters() if p.dim() > 1)


_LAYER = re.compile(r"(?:^|\.)mamba_layers\.(\d+)\.")


def _layer(name: str) -> int | None:
    """Return the number of the Mamba2 layer that a parameter is in; None outside the layers."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def layers_from_head(name: str, depth: int) -> int:
    """Count the layers from the head down to a parameter (Bao et al. 2022, BEiT).

    The head and the backbone's final norm are 0, the last Mamba2 layer is 1, the first ``depth``,
    and the embedding ``depth`` + 1.
    """
    layer = _layer(name)
    if layer is not None:
        return depth - layer
    return depth + 1 if "embedder." in name else 0


def build_optimizer(
    module: torch.nn.Module, config: OptimConfig, matrices: frozenset[str] | None = None
) -> Optimizer:
    """Build the optimiser over the trainable parameters of ``module``.

    Vectors (biases, norms, A_log, D, dt_bias) get no weight decay, since 0 is no neutral value of
    theirs. With ``layer_decay`` the learning rate falls from the head down, by this factor for
    every layer (see ``layers_from_head``).

    Args:
        module: the module to train.
        config: optimiser and learning rates.
        matrices: names of the parameters to decay; None derives them from their shapes, which
            FSDP flattens.
    """
    matrices = matrices_of(module) if matrices is None else matrices
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    depth = 1 + max((_layer(name) or 0 for name, _ in module.named_parameters()), default=0)
    distances = {name: layers_from_head(name, depth) for name, _ in trainable}
    groups = []
    # The head first: the learning rate of the first group is the one that is logged.
    for distance in sorted({0, *distances.values()} if config.layer_decay < 1 else {0}):
        own = [(n, p) for n, p in trainable if config.layer_decay == 1 or distances[n] == distance]
        rate = config.learning_rate * config.layer_decay**distance
        for decayed, factor in ((True, config.weight_decay), (False, 0.0)):
            if chosen := [p for name, p in own if (name in matrices) == decayed]:
                groups.append({"params": chosen, "weight_decay": factor, "lr": rate})
    assert config.optimizer in OPTIMIZER_NAMES
    if config.optimizer == "SGD":
        return SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    # One pass over the parameters instead of one for each operation of the update.
    optimizer = AdamW(groups, lr=config.learning_rate, fused=True)
    # A fused step could undo a loss scaling by itself, and Lightning then refuses --grad_clip, with
    # and without scaling. It is left to the scaler, as for every other optimiser.
    optimizer._step_supports_amp_scaling = False
    return optimizer
