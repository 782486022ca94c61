"""The layouts that checkpoints are exported in: the released one, and safetensors with metadata.

A state dict comes in under canonical names (``checkpoint_io``) and goes out with the released
prefix, in the released order, every tensor in memory of its own.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from neuromamba.checkpoints.io import CHECKPOINT_KEY, EXPORT_KEY, load_strictly
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.names import CONV_NAMES, EXPORT_DTYPES
from neuromamba.config.serialise import from_dict
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.heads import build_head

PREFIX = "_forward_module."
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
assert tuple(DTYPES) == EXPORT_DTYPES
# Parts of the metadata that describe a head and its task.
HEAD_PARTS = ("head", "downstream", "target_scaling")

# Names of each backbone in the order of its modules: before its layers, in a layer, after them.
_FIRST = ("embedder.projection", "embedder.pos", "embedder.anatomy", "embedder.bias")
_LAYER = re.compile(r"mamba_layers\.(\d+)\.(.+)")
_IN_LAYER = (
    "0.weight",
    "1.in_proj.weight",
    "1.conv1d.weight",
    "1.conv1d.bias",
    "1.dt_bias",
    "1.A_log",
    "1.D",
    "1.norm.weight",
    "1.out_proj.weight",
)
_SWIFT_LAYER = re.compile(r"stages\.(\d+)\.(?:blocks\.(\d+)\.)?(.+)")
_BEFORE_BLOCKS = ("place_encoding", "time_encoding")
_AFTER_BLOCKS = ("merging.norm.weight", "merging.norm.bias", "merging.reduction.weight")
_IN_BLOCK = tuple(
    f"{module}.{name}"
    for module in ("norm1", "norm2", "attention.qkv", "attention.proj", "mlp.0", "mlp.2")
    for name in ("weight", "bias")
)
_LAST = ("norm.weight", "norm.bias", "output_layer.weight", "output_layer.bias")
_Place = tuple[int, int, int, int]


def _place(name: str) -> _Place:
    """Where a name stands; the parts of a head keep their order, at the end."""
    layer = _LAYER.fullmatch(name)
    if layer and layer[2] in _IN_LAYER:
        return 1, int(layer[1]), 0, _IN_LAYER.index(layer[2])
    swift = _SWIFT_LAYER.fullmatch(name)
    if swift:
        return _place_in_stage(name, int(swift[1]), swift[2], swift[3])
    for position, group in ((0, _FIRST), (2, _LAST)):
        if name in group:
            return position, 0, 0, group.index(name)
    if name.startswith("head."):
        return 3, 0, 0, 0
    raise KeyError(name)


def _place_in_stage(name: str, stage: int, block: str | None, part: str) -> _Place:
    if block is not None and part in _IN_BLOCK:
        return 1, stage, 1 + int(block), _IN_BLOCK.index(part)
    if block is None and part in _BEFORE_BLOCKS:
        return 1, stage, 0, _BEFORE_BLOCKS.index(part)
    if block is None and part in _AFTER_BLOCKS:
        return 1, stage, sys.maxsize, _AFTER_BLOCKS.index(part)
    raise KeyError(name)


def released_order(names: Iterable[str], source: str) -> list[str]:
    """Canonical names in the order of the released files; those of SwiFT in that of its modules.

    Raises:
        UserInputError: a name that no FMamba and no SwiFT has.
    """
    listed = list(names)
    strange = [name for name in listed if not _is_known(name)]
    if strange:
        raise UserInputError(
            f"'{source}' holds {len(strange)} tensor(s) that neither FMamba nor SwiFT has, such as "
            f"'{strange[0]}'; only checkpoints of this project's models can be exported."
        )
    return sorted(listed, key=_place)


def _is_known(name: str) -> bool:
    try:
        _place(name)
    except KeyError:
        return False
    return True


def released_state(
    state: Mapping[str, Tensor], source: str, conv_name: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A state dict in the released layout.

    Args:
        state: canonical names.
        source: where it comes from, for messages.
        conv_name: of ``CONV_NAMES``.
        dtype: of everything that is not an integer.

    Raises:
        UserInputError: as ``released_order``; or a value is not finite in the precision.
    """
    released = {}
    ordered = released_order(state, source)
    if conv_name != CONV_NAMES[0] and not any(".conv1d." in name for name in ordered):
        raise UserInputError(
            f"--conv_name: '{source}' has no convolution (SwiFT has none); leave the flag out."
        )
    for name in ordered:
        tensor = state[name].to(dtype) if state[name].is_floating_point() else state[name]
        if not tensor.isfinite().all():
            raise UserInputError(
                f"--dtype: '{name}' of '{source}' has values that are not finite as {dtype}; the "
                f"largest is {state[name].abs().max():.3g}. Export it in another precision."
            )
        key = PREFIX + (name if name.startswith("head.") else f"model.{name}")
        # A view would take the whole memory it looks at along into the file.
        released[key.replace(".conv1d.", f".{conv_name}.")] = tensor.detach().clone().contiguous()
    return released


def check_weights(state: Mapping[str, Tensor], metadata: Mapping[str, Any], source: str) -> None:
    """Make sure that weights fit the model that their metadata describe.

    Raises:
        UserInputError: they do not.
    """
    model = from_dict(ModelConfig, metadata["model"], source)
    backbone = build_model(model, output_layer="output_layer.weight" in state)
    own = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    load_strictly(backbone, own, source, flag="CHECKPOINT")
    if "head" not in metadata:
        return
    head = build_head(from_dict(HeadConfig, metadata["head"], source), model)
    rest = {k.removeprefix("head."): w for k, w in state.items() if k.startswith("head.")}
    load_strictly(head, rest, source, flag="CHECKPOINT")


def safetensors_entries(metadata: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, str]:
    """Return what a safetensors file holds beside its tensors; text only, so JSON."""
    entries = {"format": "pt", EXPORT_KEY: json.dumps(origin)}
    return entries | ({CHECKPOINT_KEY: json.dumps(metadata)} if metadata else {})
