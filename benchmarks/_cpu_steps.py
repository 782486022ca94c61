"""Child of ``cpu_steps.py``: steps of one case, with whatever ``neuromamba`` PYTHONPATH leads to.

    python benchmarks/_cpu_steps.py CASE THREADS REPEATS

Prints JSON: ``seconds``, the CPU seconds (all threads) of each step, none where the checkout has no
such case; ``flops`` of a step's matrix products as torch's ``FlopCounterMode`` counts them, null
for a whole epoch; ``rate``, FLOP per CPU second of products of 2,048 squared alone. Only what all
checkouts since 1d599ae have is used here: of NeuroSSM, that one has the paper's recipe alone, as
its defaults, and some names stand in other modules.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neuromamba.config import model as model_configs
from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.layers.mamba2 import Mamba2, ResidualBlock
from neuromamba.layers.packing import Packed
from neuromamba.layers.rms_norm import RMSNorm
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.training.strategies import resolve_hardware

try:
    from neuromamba.data.regions.scan import Scan
    from neuromamba.neurossm.config import RECIPES, FitConfig, NeuroSSMConfig
    from neuromamba.neurossm.train import train
except ImportError:  # as it was in 1d599ae
    from neuromamba.data.regions.dataset import Scan  # type: ignore[no-redef]
    from neuromamba.neurossm.model import NeuroSSMConfig  # type: ignore[no-redef]
    from neuromamba.neurossm.module import FitConfig, train  # type: ignore[no-redef]

    RECIPES = {}  # type: ignore[misc]


try:
    from neuromamba.common.denormals import denormals_as_zeros
except ImportError:  # before it existed

    def denormals_as_zeros() -> Callable[[Any], Any]:  # type: ignore[misc]
        return lambda step: step


class NoSuchCaseError(Exception):
    """The checkout does not have what is to be measured."""


ENOUGH = 4.0  # CPU seconds of steps after which no further one is done
REGIONS, OF_FIT = 200, ("learning_rate", "max_learning_rate", "weight_decay", "label_smoothing")


def blocks(width: int, depth: int, windows: int, tokens: int) -> Callable[[], None]:
    """Blocks of FMamba alone, with the sizes that follow from their width."""
    config = ModelConfig(embed_dim=width)
    lengths = (tokens,) * windows
    layers = nn.ModuleList(
        ResidualBlock(
            RMSNorm(width), Mamba2(width, config.d_state, config.headdim), nn.Dropout(0.0)
        )
        for _ in range(depth)
    )
    features = torch.randn(sum(lengths), width)

    def step() -> None:
        x = features
        for layer in layers:
            x = layer(x, lengths)
        x.square().mean().backward()

    return step


def backbone(model: str, tokens: int, forward_only: bool = False) -> Callable[[], None]:
    """One window through the whole backbone; SwiFT reads the whole grid, whatever ``tokens``."""
    defaults = getattr(model_configs, "MODEL_DEFAULTS", {"fmamba": {}})
    if model not in defaults and model != "fmamba":
        raise NoSuchCaseError
    config = ModelConfig(model=model, **defaults.get(model, {}))  # type: ignore[arg-type]
    if model == "swift":
        tokens = config.num_tokens
    module = build_model(config, output_layer=model != "swift")
    places = torch.randperm(config.num_tokens)[:tokens].sort().values
    window = PackedTokens(torch.randn(tokens, config.token_dim), places, (tokens,))

    def step() -> None:
        out = module.forward_tokens(window)
        found = out.features if out.prediction is None else out.prediction
        found.square().mean().backward()

    def forward() -> None:
        with torch.inference_mode():
            module.forward_tokens(window)

    if forward_only:
        module.eval()
    return forward if forward_only else step


def fine_tuning(head: str, tokens: int) -> Callable[[], None]:
    """One window through backbone and head."""
    config = ModelConfig()
    module = build_model(config, output_layer=False)
    classifier = build_head(model_configs.HeadConfig(name=head), config)  # type: ignore[arg-type]
    places = torch.randperm(config.num_tokens)[:tokens].sort().values
    window = PackedTokens(torch.randn(tokens, config.token_dim), places, (tokens,))
    takes_window = "packed" in inspect.signature(classifier.forward).parameters
    shape = window if takes_window else window.lengths  # the lengths alone in 1d599ae

    def step() -> None:
        features = module.forward_tokens(window).features
        nn.functional.cross_entropy(classifier(features, shape), torch.tensor([1])).backward()

    return denormals_as_zeros()(step)


def recipe_of(recipe: str) -> tuple[NeuroSSMConfig, FitConfig]:
    """The network and its training, without the second-order pathway, which no step trains."""
    if not RECIPES:
        if recipe != "paper":
            raise NoSuchCaseError
        return NeuroSSMConfig(rois=REGIONS, classes=2), FitConfig(crop=100, epochs=1)
    chosen = dict(RECIPES[recipe])
    fit = {name: chosen.pop(name) for name in OF_FIT}
    chosen["second_order"] = False
    return NeuroSSMConfig(rois=REGIONS, classes=2, **chosen), FitConfig(crop=100, epochs=1, **fit)


def neurossm(recipe: str, scans: int) -> Callable[[], None]:
    """Loss, gradients and AdamW of one batch of crops."""
    module = NeuroSSM(recipe_of(recipe)[0]).train()
    optimizer = torch.optim.AdamW(module.parameters())
    batch = Packed(torch.randn(100 * scans, REGIONS), (100,) * scans)
    labels = torch.arange(scans) % 2

    def step() -> None:
        optimizer.zero_grad()
        logits = module.each(batch) if hasattr(module, "each") else module(batch)[None]
        repeated = labels.repeat(len(logits))
        nn.functional.cross_entropy(logits.flatten(0, 1), repeated).backward()
        optimizer.step()

    return step


def in_bf16(kind: str, *sizes: Any) -> Callable[[], None]:
    """A case as ``--precision bf16`` computes it on this processor."""
    if kind == "epoch":
        return epoch(*sizes, precision="bf16")
    step = KINDS[kind](*sizes)
    hardware = resolve_hardware({"accelerator": "cpu", "devices": 1, "precision": "bf16"})
    narrow = getattr(hardware, "computed", "bf16-mixed") == "bf16-mixed"

    def narrower() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            step()

    return narrower


def epoch(recipe: str, count: int, precision: str = "32") -> Callable[[], None]:
    """One epoch of ``neuromamba regions train``: z-scores, crops, loader, Trainer, steps."""
    config, fit = recipe_of(recipe)
    series = np.random.default_rng(0).standard_normal((count, REGIONS, 196), dtype=np.float32)
    scans = [Scan(str(i), str(i), i % 2, one, str(i)) for i, one in enumerate(series)]
    hardware = resolve_hardware({"accelerator": "cpu", "devices": 1, "precision": precision})

    def step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(
                build=lambda: NeuroSSM(config),
                scans=scans,
                fit=fit,
                hardware=hardware,
                seed=0,
                folder=Path(folder),
            )

    return step


KINDS: dict[str, Callable[..., Callable[[], None]]] = {
    "blocks": blocks,
    "backbone": backbone,
    "fine_tuning": fine_tuning,
    "neurossm": neurossm,
    "epoch": epoch,
    "in_bf16": in_bf16,
}


def product_rate() -> float:
    """FLOP per CPU second of fp32 products of 2,048 squared, the best of six."""
    side, best = 2048, float("inf")
    left, right = torch.randn(side, side), torch.randn(side, side)
    for _ in range(6):
        start = time.process_time()
        left @ right
        best = min(best, time.process_time() - start)
    return 2 * side**3 / best


def main() -> None:
    """Entry point."""
    kind, *sizes = json.loads(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    try:
        step, seconds = KINDS[kind](*sizes), []
    except NoSuchCaseError:
        print("\n" + json.dumps({"seconds": [], "flops": None, "rate": None}), flush=True)
        return
    for _ in range(int(sys.argv[3]) + 1):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
        if seconds[0] > ENOUGH or sum(seconds[1:]) > ENOUGH:
            break
    # The first one warms up, unless it is so long that this does not matter.
    found: dict[str, object] = {"seconds": seconds[1:] or seconds, "rate": product_rate()}
    with FlopCounterMode(display=False) as counter:
        if "epoch" not in (kind, *sizes):
            step()
    found["flops"] = counter.get_total_flops() or None
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
