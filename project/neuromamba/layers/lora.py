"""LoRA (Hu et al. 2022, ICLR): low-rank updates of the backbone's projections.

``peft`` puts them into a model that is trained; ``checkpoints.io`` adds them to the weights when a
checkpoint is read for anything but resuming the training, so nothing else knows of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from neuromamba.common.errors import UserInputError

TARGETS = ("in_proj", "out_proj")
_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def add_lora(backbone: nn.Module, rank: int, alpha: float) -> None:
    """Freeze a backbone, and put a trainable update beside the projections of each Mamba2 layer.

    The update of a weight [out, in] is alpha / rank * B [out, rank] A [rank, in], with B = 0 at
    first.

    Raises:
        UserInputError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserInputError(
            f"--lora_rank: needs the package peft, which cannot be imported ({error}). Install it: "
            f"pip install peft."
        ) from None
    backbone.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS))  # type: ignore[arg-type]
    inject_adapter_in_model(config, backbone)


def merged(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights with their updates added, under the names of a model without LoRA.

    Args:
        state: canonical names.
        metadata: metadata of the checkpoint, with rank and alpha; without them it has no updates.
    """
    task = metadata.get("downstream") or {}
    rank = task.get("lora_rank", 0)
    if not rank:
        return dict(state)
    found = {}
    for name, weight in state.items():
        if name.endswith((_A, _B)):
            continue
        if _BASE in name and name.endswith(".weight"):
            layer = name.removesuffix(f"{_BASE}weight")
            update = state[layer + _B].double() @ state[layer + _A].double()
            weight = (weight.double() + task["lora_alpha"] / rank * update).to(weight.dtype)
        found[name.replace(_BASE, ".")] = weight
    return found
