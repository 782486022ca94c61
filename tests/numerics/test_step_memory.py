"""The predicted memory of a training step against what its tensors really take.

On the CPU every tensor of a step is followed from its making to its end. What a block keeps on the
`triton` backend is compared with mamba_ssm's own code, its kernels interpreted (slow).
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neuromamba.common.seeds import seed_run
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.training import DownstreamConfig, OptimConfig, PretrainConfig
from neuromamba.fmamba.downstream import DownstreamModule
from neuromamba.fmamba.module import FMambaModule
from neuromamba.fmamba.optimizer import build_optimizer
from neuromamba.fmamba.pretrain import PretrainModule
from neuromamba.layers.ssd import buffers as memory
from neuromamba.layers.ssd import native
from neuromamba.planning.layer_memory import layer_by_layer
from neuromamba.planning.step_memory import Step, step_memory
from tests.helpers.paths import ROOT

MODEL = ModelConfig(embed_dim=64, depth=3, img_size=(36, 36, 36, 16))


def half_of_the_grid(model: ModelConfig) -> int:
    """Voxels of the brain."""
    return math.prod(model.img_size[:3]) // 2


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, until they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def test_live_bytes() -> None:
    with LiveBytes() as live:
        a = torch.zeros(250)
        b = a.view(5, 50) + 1
        a = a.add_(1)
        assert live.now == live.peak == 2000
        del a
        assert live.now == 1000
        b = torch.zeros(10) + b[0, 0]
        assert live.now == 40 and live.peak == 2000


def batch_of(windows: int, model: ModelConfig) -> dict[str, Any]:
    """Windows whose brain is the lower half of the grid."""
    anatomy, voxels = model.anatomy, half_of_the_grid(model)
    vox = torch.arange(voxels, dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)

    def bold() -> Tensor:
        shape = (model.img_size[3], voxels)
        return torch.randint(-999, 999, shape, dtype=torch.int16, generator=generator)

    images = {"anatomy": [bold()[0].clone() for _ in range(windows)]} if anatomy else {}
    return images | {
        "bold": [bold() for _ in range(windows)],
        "vox": [vox] * windows,
        "gain": [1e-3] * windows,
        "shift": [0.0] * windows,
        "background": [-2.0] * windows,
        "subject": ["a"] * windows,
        "sample_id": ["a"] * windows,
        "dataset": torch.zeros(windows, dtype=torch.long),
        "window": torch.arange(windows),
    }


def live_peak(
    module: FMambaModule, loss_of: Callable[[dict[str, Any]], Tensor], windows: int, mixed: bool
) -> int:
    """Bytes at the peak of the second of two steps, gradients and optimiser included."""
    optimizer = build_optimizer(module, OptimConfig())
    batch = batch_of(windows, module.model.config)

    def step() -> None:
        planned = module.on_before_batch_transfer(dict(batch), 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = loss_of(planned)
        del planned
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    memory.forget()
    gc.collect()
    live = LiveBytes()
    with live:
        step()
        live.peak = live.now
        step()
    return live.peak


# Name -> changes of the model, of the step, and what is trained: "next", "same_place", "masked", or
# a head.
HEAD = {"head": HeadConfig(name="linear")}
SWIFT = {
    "model": "swift",
    "img_size": (24, 24, 24, 8),
    "patch_size": (3, 3, 3, 1),
    "embed_dim": 16,
    "swin_depths": (2, 2),
    "swin_heads": (2, 4),
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "fp32": ({}, {}, "next"),
    "bf16": ({}, {"operand": 2}, "next"),
    "checkpointing": ({}, {"checkpointing": True}, "next"),
    "two channels": ({"anatomy": True}, {}, "next"),
    "two channels, bf16": ({"anatomy": True}, {"operand": 2}, "next"),
    "dropout": ({"dropout": 0.1}, {}, "next"),
    "dropout, checkpointing": ({"dropout": 0.1}, {"checkpointing": True}, "next"),
    "dropout, bf16": ({"dropout": 0.1}, {"operand": 2}, "next"),
    "masked": ({}, {"masked": 0.75}, "masked"),
    "masked, bf16": ({}, {"masked": 0.5, "operand": 2}, "masked"),
    "same place": ({}, {"masked": 6 / 8}, "same_place"),
    "same place, bf16": ({}, {"masked": 6 / 8, "operand": 2}, "same_place"),
    "linear head": ({}, {"head": HeadConfig(name="linear")}, "head"),
    "mamba head": ({}, {"head": HeadConfig(name="mamba")}, "head"),
    "mamba head, frozen": ({}, {"head": HeadConfig(name="mamba"), "frozen": True}, "head"),
    "SwiFT": (SWIFT, HEAD, "head"),
    "SwiFT, padded windows": (SWIFT | {"img_size": (30, 30, 24, 9)}, HEAD, "head"),
    "SwiFT, three stages": (
        SWIFT | {"swin_depths": (2, 2, 2), "swin_heads": (2, 4, 8)},
        HEAD,
        "head",
    ),
    "SwiFT, bf16": (SWIFT, HEAD | {"operand": 2}, "head"),
    "SwiFT, checkpointing": (SWIFT, HEAD | {"checkpointing": True}, "head"),
    "SwiFT, frozen": (SWIFT, HEAD | {"frozen": True}, "head"),
    "SwiFT, mean_sd": (SWIFT, {"head": HeadConfig(name="linear", pool="mean_sd")}, "head"),
    "mamba head, bf16": ({}, {"head": HeadConfig(name="mamba"), "operand": 2}, "head"),
}


@pytest.mark.skipif(native.status()[0] is None, reason="the torch passes make more tensors")
@pytest.mark.parametrize("name", CASES)
def test_peak_of_a_step_on_the_cpu(name: str) -> None:
    """Within a tenth, for three windows; a step as it is trained, by its own modules."""
    changes, how, kind = CASES[name]
    torch.set_num_threads(1)
    seed_run(0)
    model = dataclasses.replace(MODEL, **changes)
    tokens = model.num_tokens if model.keep_background else model.num_tokens // 2
    step = Step(model=model, lengths=(tokens,) * 3, voxels=(half_of_the_grid(model),) * 3, **how)
    shared: dict[str, Any] = {
        "model": model,
        "optim": OptimConfig(),
        "total_steps": 10,
        "activation_checkpointing": step.checkpointing,
    }
    module: FMambaModule
    if step.head is None:
        objective = PretrainConfig(
            objective="mim" if kind == "masked" else "autoregressive",
            mask_ratio=step.masked or 0.75,
            predict="same_place" if kind == "same_place" else "next_token",
            predict_ahead=2 if kind == "same_place" else 1,
        )
        assert objective.predicted_share(model.token_grid[3]) == step.masked
        module = PretrainModule(objective=objective, **shared)
        pretrain = module

        def loss_of(batch: dict[str, Any]) -> Tensor:
            return pretrain.predict_tokens(batch)[1].sum()

    else:
        task = DownstreamConfig(freeze_feature_extractor=step.frozen)
        module = DownstreamModule(head=step.head, task=task, **shared)
        downstream = module

        def loss_of(batch: dict[str, Any]) -> Tensor:
            return downstream(batch)[0].float().square().sum()

    module.train()
    measured = live_peak(module, loss_of, 3, mixed=step.operand == 2)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    predicted = step_memory(step).total + 3 * 4 * trained  # gradients, two moments
    assert predicted == pytest.approx(measured, rel=0.1), (predicted / 1e6, measured / 1e6)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", ["split", "fused"])
@pytest.mark.parametrize("lengths", [(300, 200), (257,)])
def test_what_a_block_keeps_on_the_triton_backend(way: str, lengths: tuple[int, ...]) -> None:
    """By mamba_ssm's own autograd functions."""
    for package in ("triton", "mamba_ssm"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (`bash setup_env.sh --kernels-test`)")
    program = ROOT / "tests" / "helpers" / "triton_memory.py"
    done = subprocess.run(
        [sys.executable, str(program), way, "32", *map(str, lengths)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=350,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    step = Step(
        model=ModelConfig(embed_dim=32),
        lengths=lengths,
        voxels=(1,),
        backend="triton",
        device="cuda",
        fused=way == "fused",
    )
    predicted = layer_by_layer(step, 8, 0.0).kept + 4 * sum(lengths) * 32  # and its input
    assert predicted == pytest.approx(int(done.stdout.splitlines()[-1]), rel=0.02)
