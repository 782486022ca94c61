"""Bytes that a block on the `triton` backend keeps for its backward pass, kernels interpreted.

    TRITON_INTERPRET=1 python tests/helpers/triton_memory.py {fused,split} WIDTH LENGTH ...

Prints what one block more keeps: storages that autograd saves, each once, parameters left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "project"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.helpers.triton_on_cpu import pretend_causal_conv1d, pretend_cuda


def kept(depth: int, width: int, lengths: tuple[int, ...]) -> int:
    """Bytes saved by a backbone's blocks."""
    from neuromamba.config.model import ModelConfig
    from neuromamba.fmamba.build import build_model

    torch.manual_seed(0)
    model = build_model(ModelConfig(embed_dim=width, depth=depth), ssd_backend="triton")
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(sum(lengths), width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        for block in model.mamba_layers:
            x = block(x, lengths)
    x.sum().backward()
    return sum(saved.values())


def main(way: str, width: str, *lengths: str) -> None:
    """Entry point."""
    pretend_cuda()
    if way == "fused":
        pretend_causal_conv1d()
    else:
        sys.modules["causal_conv1d"] = None  # type: ignore[assignment]
    from neuromamba.layers.ssd import triton as backend

    sizes = tuple(map(int, lengths))
    print(kept(3, int(width), sizes) - kept(2, int(width), sizes))
    assert {mix.__name__ for mix in backend._working.values()} == {f"_mix_{way}"}


if __name__ == "__main__":
    main(*sys.argv[1:])
