"""Floating-point operations (FLOPs) of a backbone: torch's counter beside the formula; brain masks.

The formula, ``models.flop_formula``, is offered here as well. The counter sees its matrix products;
what it cannot see are convolution, norms, decays and other pointwise work.
"""

from __future__ import annotations

import base64
import bisect
import contextlib
import functools
import importlib.metadata
import math
import zlib

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neuromamba.common.user_cache import keep_fact, read_facts
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.names import SSD_BACKENDS
from neuromamba.fmamba.backbone import Backbone
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.flop_formula import (
    Term,
    block_terms,
    forward_terms,
    head_terms,
    total,
    training_total,
)
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.tokenizer import PackedTokens, plan_compact
from neuromamba.layers.ssd import BACKENDS

__all__ = [
    "Term",
    "block_terms",
    "counted_by_backend",
    "forward_terms",
    "head_parameter_count",
    "head_terms",
    "kept_tokens",
    "mni_mask",
    "parameter_count",
    "profiled_flops",
    "tokens_for_share",
    "total",
    "training_total",
    "untrained_window",
]

# Longest side of the MNI152 brain relative to the field of view: 2 mm voxels on a 96^3 grid.
_FIELD_OF_VIEW = 192.0 / 180.0
_MASKS = "brain_masks"  # in the user's cache


def untrained_window(
    config: ModelConfig, tokens: int, backend: str = "auto", device: str = "meta"
) -> tuple[Backbone, PackedTokens]:
    """An untrained backbone and the packed tokens of one window, on the meta device by default."""
    with torch.device(device):
        model = build_model(config, config.model == "fmamba", ssd_backend=backend)
        packed = PackedTokens(
            torch.zeros(tokens, config.token_dim),
            torch.zeros(tokens, dtype=torch.long),
            (tokens,),
            torch.zeros(math.ceil(tokens / config.token_grid[3]), config.place_dim)
            if config.anatomy
            else None,
        )
    return model, packed


def profiled_flops(
    config: ModelConfig,
    tokens: int,
    training: bool = False,
    backend: str = "auto",
    device: str = "meta",
) -> int:
    """What ``FlopCounterMode`` counts for one window: matrix products, the scan's by its formula.

    Args:
        config: the model.
        tokens: kept tokens.
        training: forward and backward instead of forward only.
        backend: of the scan; the count does not depend on it (``ssd.flop_count``).
        device: where to run; the meta device needs no memory, no time and no kernels.
    """
    model, packed = untrained_window(config, tokens, backend, device)
    with (
        sdpa_kernel(SDPBackend.MATH),  # attention as products: its kernels compute them again
        FlopCounterMode(display=False) as counter,
        torch.set_grad_enabled(training),
    ):
        found = model.forward_tokens(packed)
        if training:
            last = found.features if found.prediction is None else found.prediction
            last.sum().backward()
    return int(counter.get_total_flops())


def counted_by_backend(config: ModelConfig, tokens: int) -> dict[str, int | str]:
    """Training FLOPs that ``FlopCounterMode`` counts while each backend really runs on the CPU.

    Returns:
        The count, or why the backend cannot run here, under the name of every backend.
    """
    results: dict[str, int | str] = {}
    for name in SSD_BACKENDS:
        if name == "auto":
            continue
        if why_not := BACKENDS[name].why_not(torch.device("cpu")):
            results[name] = why_not.split(";")[0].rstrip(".")
        else:
            results[name] = profiled_flops(config, tokens, True, name, "cpu")
    return results


def tokens_for_share(config: ModelConfig, share: float) -> int:
    """The number of tokens whose forward pass comes nearest to a share of that of all tokens."""

    def cost(tokens: int) -> int:
        return total(forward_terms(config, tokens))

    wanted = share * cost(config.num_tokens)
    above = bisect.bisect_left(range(config.num_tokens), wanted, key=cost)
    return min((above - 1, above), key=lambda tokens: abs(cost(tokens) - wanted))


def parameter_count(config: ModelConfig) -> int:
    """Trainable parameters of the backbone, of FMamba with the output layer of pre-training."""
    with torch.device("meta"):
        backbone = build_model(config, config.model == "fmamba")
        return sum(p.numel() for p in backbone.parameters())


def head_parameter_count(head: HeadConfig, config: ModelConfig) -> int:
    """Trainable parameters of a downstream head."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_head(head, config).parameters())


# -------------------------------------------------------------------------------- tokens to keep


def kept_tokens(voxels: np.ndarray, config: ModelConfig) -> int:
    """Tokens of a window whose brain mask is ``voxels`` (flat C-order indices, [n])."""
    plan = plan_compact([torch.from_numpy(np.asarray(voxels, dtype=np.int64))], config)[0]
    return plan.spatial_index.numel() * config.token_grid[3]


@functools.lru_cache(maxsize=4)
def mni_mask(grid: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """The MNI152 brain mask that nilearn ships, centred in a grid it fills.

    Args:
        grid: voxels along X, Y, Z.

    Returns:
        bool [X, Y, Z], and the voxel size in mm: 2 for 96 x 96 x 96, proportionally larger for
        coarser grids, so that the brain keeps the same margin.
    """
    resolution = 2
    template = _mni_template(resolution)
    inside = np.argwhere(template)
    low, high = inside.min(axis=0), inside.max(axis=0)
    extent = (high - low + 1) * resolution
    voxel = float(max(_FIELD_OF_VIEW * mm / n for mm, n in zip(extent, grid, strict=True)))
    mask = np.ones(grid, dtype=bool)
    nearest = []
    for axis, (n, size) in enumerate(zip(grid, template.shape, strict=True)):
        middle = (low[axis] + high[axis]) / 2
        at = middle + (np.arange(n) - (n - 1) / 2) * voxel / resolution
        index = np.floor(at + 0.5).astype(int)
        shape = [-1 if other == axis else 1 for other in range(3)]
        mask &= ((index >= 0) & (index < size)).reshape(shape)
        nearest.append(index.clip(0, size - 1))
    return mask & template[np.ix_(*nearest)], voxel


def _mni_template(resolution: int) -> np.ndarray:
    """nilearn's MNI152 brain mask, bool [X, Y, Z]; kept in the user's cache by nilearn's version.

    Importing nilearn and resampling its mask takes seconds.
    """
    key = f"nilearn {importlib.metadata.version('nilearn')}, {resolution} mm"
    kept = read_facts(_MASKS).get(key, {})
    with contextlib.suppress(TypeError, ValueError, KeyError, zlib.error):
        shape = tuple(int(n) for n in kept["shape"])
        bits = zlib.decompress(base64.b64decode(kept["bits"]))
        flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=math.prod(shape))
        return flat.reshape(shape).astype(bool)
    from nilearn.datasets import load_mni152_brain_mask

    found = np.asarray(load_mni152_brain_mask(resolution=resolution).dataobj) > 0
    bits = zlib.compress(np.packbits(found).tobytes())
    packed = {"shape": list(found.shape), "bits": base64.b64encode(bits).decode()}
    keep_fact(_MASKS, key, packed)
    return found
