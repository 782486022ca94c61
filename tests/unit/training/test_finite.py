"""Weights that are not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from neuromamba.training.finite import bad_weights


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_weight_is_noticed(value: float) -> None:
    module = nn.Linear(3, 2)
    assert not bad_weights(module)
    with torch.no_grad():
        module.weight[1, 2] = value
    assert bad_weights(module)


@pytest.mark.parametrize("rank", range(4))
def test_what_fills_up_a_piece_of_zero_3_does_not_count(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Five weights on four ranks: pieces of two, the third one's half full, the fourth's empty."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: rank)
    module = nn.Module()
    parameter: Any = nn.Parameter(torch.empty(0))
    flat = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, math.nan, math.nan, math.inf])
    parameter.ds_tensor = flat[2 * rank : 2 * rank + 2].clone()
    parameter.ds_numel, parameter.ds_process_group = 5, None
    module.weight = parameter
    assert not bad_weights(module)
    if rank < 3:
        parameter.ds_tensor[0] = math.nan
        assert bad_weights(module)
