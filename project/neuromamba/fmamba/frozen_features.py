"""Frozen features of backbones: layers pooled over the tokens of each window.

Shapes: B windows, L tokens of all windows together, D width of the backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neuromamba.config.model import ModelConfig
from neuromamba.data.windows.run_data import RunData
from neuromamba.evaluation.probe_rows import Samples
from neuromamba.fmamba.backbone import Backbone
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.layer_outputs import module_of
from neuromamba.fmamba.pooling import POOLS
from neuromamba.fmamba.sample_rows import Rows, SampleMeans, windows_of
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.fmamba.window_tokens import pack_windows


@contextmanager
def _outputs(
    model: Backbone, layers: Sequence[str], packed: PackedTokens, pools: Sequence[str], rows: Rows
) -> Iterator[None]:
    """Within it, a forward pass fills ``rows`` with pooled outputs, while each is in memory."""

    def hook(layer: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            for pool in pools:
                pooled = POOLS[pool](output, packed, model.config)
                rows[layer, pool] = pooled.float().cpu().numpy()

        return keep

    handles = [module_of(model, layer).register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pooled_layers(
    model: Backbone, packed: PackedTokens, layers: Sequence[str], pools: Sequence[str]
) -> Rows:
    """Run a backbone on packed tokens and pool the output of some layers.

    Args:
        model: in evaluation mode.
        packed: tokens of B windows, on its device.
        layers: of ``layer_names``.
        pools: of ``fmamba.pooling.POOLS``.

    Returns:
        (layer, pool) -> float32 [B, D], [B, 2 D] for "mean_sd", [B, cells * 2 D] for "regions",
        [B, places of the grid * D] for "places".
    """
    rows: Rows = {}
    with torch.inference_mode(), _outputs(model, layers, packed, pools, rows):
        model.forward_tokens(packed)
    return rows


def untrained_backbone(config: ModelConfig, seed: int, ssd_backend: str = "auto") -> Backbone:
    """A backbone with the random weights that a training of this seed could begin with.

    The state of torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(config, output_layer=False, ssd_backend=ssd_backend)


def frozen_features(
    models: Mapping[str, Backbone],
    data: RunData,
    parts: Sequence[str],
    *,
    layers: Sequence[str],
    pools: Sequence[str],
    device: torch.device,
) -> tuple[Samples, dict[str, Rows]]:
    """Average pooled features over the windows of each sample; every window is read once.

    Args:
        models: name -> backbone of one architecture; put into evaluation mode and on the device.
        data: made for a downstream task; ``eval_batch_size`` windows are computed at once.
        parts: of "train", "val", "test".
        layers, pools: as in ``pooled_layers``.
        device: to compute on.

    Returns:
        The samples, and for each model (layer, pool) -> float32 [S, D].

    Raises:
        UserInputError: a run cannot be read.
    """
    means = {name: SampleMeans() for name in models}
    for model in models.values():
        model.to(device).eval()
    config = next(iter(models.values())).config
    for part in parts:
        for origins, items in windows_of(data, part, data.config.eval_batch_size, "features"):
            packed = pack_windows(items, config, device)
            for name, model in models.items():
                means[name].add(origins, pooled_layers(model, packed, layers, pools))
    first = next(iter(means.values()))
    return first.samples, {name: one.rows for name, one in means.items()}
