"""Weights that are not finite, and tensors that claim more than they hold, are refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from neuromamba.checkpoints.io import load_strictly, read_checkpoint
from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.export import DTYPES, released_state

CONFIG = ModelConfig(
    img_size=(4, 4, 4, 4), patch_size=(2, 2, 2, 2), embed_dim=16, depth=1, background="zero"
)
NAME = "mamba_layers.0.1.out_proj.weight"


def backbone() -> FMamba:
    torch.manual_seed(0)
    return build_model(CONFIG)


def with_value(value: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    state = {k: v.clone().to(dtype) for k, v in backbone().state_dict().items()}
    state[NAME][0, 0] = value
    return state


def save_torch(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path)


def save_lightning(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, path)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "x.pt": save_torch,
    "x.ckpt": save_lightning,
    "x.safetensors": save_file,
}


@pytest.mark.parametrize("name", sorted(WRITERS))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_files_with_such_weights_are_refused(tmp_path: Path, name: str, value: float) -> None:
    WRITERS[name](with_value(value), tmp_path / name)
    with pytest.raises(UserInputError, match=rf"not finite in 1 of .*'{NAME}'"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_in_low_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(with_value(math.inf, dtype), tmp_path / "x.pt")
    with pytest.raises(UserInputError, match="not finite"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_number_too_large_for_the_model(tmp_path: Path) -> None:
    state = with_value(1e300, torch.float64)
    torch.save(state, tmp_path / "x.pt")
    state = read_checkpoint(tmp_path / "x.pt").state_dict  # finite as it is stored
    with pytest.raises(UserInputError, match=rf"'{NAME}'"):
        load_strictly(backbone(), state, tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("dtype", "value"), [("bf16", 3.4e38), ("fp32", 1e39), ("bf16", -1e300), ("fp32", math.nan)]
)
def test_export_in_a_precision_that_overflows(dtype: str, value: float) -> None:
    with pytest.raises(UserInputError, match=rf"--dtype: '{NAME}' of 'x'"):
        released_state(with_value(value, torch.float64), "x", "conv1d", DTYPES[dtype])


CLAIMS: dict[str, Callable[[], Tensor]] = {
    "repeated": lambda: torch.zeros(1).expand(1 << 40),
    "sparse": lambda: torch.zeros(3, 3).to_sparse(),
    "without memory": lambda: torch.zeros(1 << 40, device="meta"),
}


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_a_tensor_holds_what_it_says(tmp_path: Path, name: str) -> None:
    torch.save(with_value(0.0) | {"norm.weight": CLAIMS[name]()}, tmp_path / "x.pt")
    with pytest.raises(UserInputError, match=r"'norm.weight'"):
        read_checkpoint(tmp_path / "x.pt")
