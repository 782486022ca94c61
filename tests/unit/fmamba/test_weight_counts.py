"""Weights are counted of one block; the module that is trained has as many."""

from __future__ import annotations

import inspect

import pytest
import torch
from pytorch_lightning.strategies import DeepSpeedStrategy

from neuromamba.config.flag_parser import parse_arguments
from neuromamba.fmamba.builders import build_module
from neuromamba.fmamba.flags import build_parser
from neuromamba.fmamba.run_config import run_config
from neuromamba.fmamba.weight_counts import count_weights
from neuromamba.planning.state_memory import LIGHTNING_DEFAULTS

NEXT = "--pretraining --use_autoregressive"
VOXELNORM = "--input_scaling_method voxelnorm_zeroback"


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(
    "flags",
    [
        NEXT,
        "--pretraining --use_mim --mamba_pe_method none",
        f"{NEXT} --channels anatomy dynamics {VOXELNORM}",
        "--downstream_task sex --mamba_pe_method cpe",
        "--downstream_task age --clf_head_version mamba --mamba_pe_method ff",
        "--downstream_task sex --pool mean_sd --head_norm batch",
        "--downstream_task sex --freeze_feature_extractor",
        "--downstream_task sex --lora_rank 4 --load_model_path some.ckpt",
    ],
)
def test_as_the_module_that_is_trained(flags: str, depth: int) -> None:
    words = f"--img_size 24 24 24 8 --embed_dim 16 --depth {depth} {flags}".split()
    config = run_config(*parse_arguments(build_parser(), words))
    before = torch.get_rng_state()
    found = count_weights(config)
    assert torch.equal(before, torch.get_rng_state())
    module = build_module(config, None, 1)
    parameters = list(module.parameters())
    assert found.parameters == sum(p.numel() for p in parameters)
    assert found.trained == sum(p.numel() for p in parameters if p.requires_grad)
    pos = module.model.embedder.pos
    assert found.buffers == (0 if pos is None else pos.numel())


def test_what_lightning_sets_of_deepspeed() -> None:
    known = inspect.signature(DeepSpeedStrategy.__init__).parameters
    for name, value in LIGHTNING_DEFAULTS.items():
        assert known[name].default == value
