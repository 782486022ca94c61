"""Which flags of a training belong to one backbone only, and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config import names
from neuromamba.config.model import MODEL_DEFAULTS

# Flags that only one backbone uses.
FLAGS_OF_MODEL: Mapping[str, tuple[str, ...]] = {
    "fmamba": (
        "pretraining",
        "depth",
        "d_state",
        "headdim",
        "dropout",
        "mamba_pe_method",
        "token_order",
        "union_mask",
        "calc_loss_without_background",
        "ssd_backend",
        "lora_rank",
        "layer_decay",
    ),
    "swift": ("swin_depths", "swin_heads", "swin_window"),
}
assert set(FLAGS_OF_MODEL) == set(MODEL_DEFAULTS) == set(names.MODEL_NAMES)


def fill_defaults_of_model(values: dict[str, Any], given: frozenset[str]) -> None:
    """Set the flags that were not given to the defaults of the backbone, and refuse what it lacks.

    Raises:
        UserInputError: a flag contradicts the backbone.
    """
    look_up(values["model"], names.MODEL_NAMES, "--model")
    for name, value in MODEL_DEFAULTS[values["model"]].items():
        if name not in given:
            values[name] = list(value) if isinstance(value, tuple) else value
    # Before other checks, which would give reasons that are FMamba's.
    for model, flags in FLAGS_OF_MODEL.items():
        for name in flags:
            if values["model"] != model and name in given and values[name] is not False:
                raise UserInputError(f"--{name}: only used with --model {model}.")
    if values["model"] != "swift":
        return
    if not values["keep_background"]:
        raise UserInputError(
            "--no-keep_background: --model swift reads the whole grid, background included; leave "
            "the flag out."
        )
    if names.canonical_head_name(values["clf_head_version"]) != "linear":
        raise UserInputError(
            "--clf_head_version: mamba reads the tokens in the order of FMamba's scan, and --model "
            "swift has none; use linear."
        )
