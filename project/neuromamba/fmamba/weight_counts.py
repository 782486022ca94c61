"""Numbers of weights of a run's model, without Lightning and without building all of its blocks."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.layers.lora import add_lora

_BLOCKS = "mamba_layers."  # in names of the backbone's parameters


class Weights(NamedTuple):
    """Numbers of weights of a model, by what is done with them.

    Attributes:
        trained, frozen: parameters.
        buffers: numbers in buffers (the positional encoding).
    """

    trained: int
    frozen: int
    buffers: int

    @property
    def parameters(self) -> int:
        """Trained or not."""
        return self.trained + self.frozen


def count_weights(config: RunConfig) -> Weights:
    """Count the parameters and buffers of the model that ``builders.build_module`` builds.

    Of FMamba one block is built, on the CPU, for all blocks have the same shapes; SwiFT is built
    as a whole. On the meta device torch
    would import its compiler for the initial values, which takes seconds.
    """
    model = config.model
    small = dataclasses.replace(model, depth=1, mamba_pe_method="none")
    trained = frozen = 0
    with torch.random.fork_rng(devices=[]):
        backbone = build_model(small, output_layer=config.pretrain is not None)
        task = config.downstream
        if task is not None and task.freeze_feature_extractor:
            backbone.requires_grad_(False)
        if task is not None and task.lora_rank:
            add_lora(backbone, task.lora_rank, task.lora_alpha)
        counted = [
            (model.depth if name.startswith(_BLOCKS) else 1, parameter)
            for name, parameter in backbone.named_parameters()
        ]
        if config.head is not None:
            counted += [(1, parameter) for parameter in build_head(config.head, model).parameters()]
    for times, parameter in counted:
        if parameter.requires_grad:
            trained += times * parameter.numel()
        else:
            frozen += times * parameter.numel()
    # Numbers only: which tokens of a window attend to each other (SwiFT) is small.
    buffers = sum(one.numel() for one in backbone.buffers() if one.is_floating_point())
    if model.mamba_pe_method != "none":
        buffers += model.num_tokens * model.embed_dim
    return Weights(trained, frozen, buffers)
