"""Backbones by name, and architectures from YAML files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.model import ModelConfig
from neuromamba.config.names import MODEL_NAMES
from neuromamba.config.serialise import from_dict, read_yaml
from neuromamba.fmamba.backbone import Backbone, FMamba
from neuromamba.fmamba.swift import SwiFT

BACKBONES: dict[str, type[FMamba] | type[SwiFT]] = {"fmamba": FMamba, "swift": SwiFT}
assert set(BACKBONES) == set(MODEL_NAMES)


def build_model(
    config: ModelConfig,
    output_layer: bool = True,
    ssd_backend: str = "auto",
    activation_checkpointing: bool = False,
) -> Backbone:
    """The backbone named in ``config.model``, freshly initialised from torch's global generator.

    Args:
        config: the architecture.
        output_layer: with the next-token prediction layer.
        ssd_backend: see ``ssd.select_backend``.
        activation_checkpointing: compute the blocks again in the backward pass.
    """
    look_up(config.model, BACKBONES, "--model")
    return BACKBONES[config.model](
        config,
        output_layer=output_layer,
        ssd_backend=ssd_backend,
        activation_checkpointing=activation_checkpointing,
    )


def load_model_config(path: str | Path) -> ModelConfig:
    """Read the architecture from a file as given to ``--config``.

    Such a file may also hold training flags; here only the fields of ``ModelConfig`` are used.

    Raises:
        UserInputError: the file cannot be read, holds none of the fields, or wrong values.
    """
    values = read_yaml(path, "--config")
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    chosen = {key: value for key, value in values.items() if key in known}
    if not chosen:
        raise UserInputError(
            f"--config: '{path}' says nothing about the model; expected at least one of "
            f"{', '.join(sorted(known))}."
        )
    return from_dict(ModelConfig, chosen, f"--config {path}")
