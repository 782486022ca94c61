"""Floating-point operations (FLOPs) of FMamba: a formula, term by term, and torch's counter.

A multiplication and an addition are two FLOPs. The formula counts matrix products exactly as the
chunked scan carries them out, and beside them what the counter cannot see: convolution, norms,
decays and other pointwise work, where a function such as exp or SiLU is one FLOP. Work that a
backend does twice to save memory is not counted (model FLOPs, not hardware FLOPs).

Letters: L tokens, D width, I = expand D, N state size, H heads, P = I / H, V values of a token,
k taps of the convolution, Q tokens of a chunk, K = ceil(L / Q) chunks.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from project.module.config import SSD_BACKENDS, HeadConfig, ModelConfig
from project.module.models.fmamba import FMamba
from project.module.models.heads import build_head
from project.module.models.load_model import build_model
from project.module.models.ssd import BACKENDS
from project.module.models.ssd.api import CHUNK
from project.module.models.ssd.flop_count import scan_products
from project.module.models.tokenizer import PackedTokens, plan_compact

# Longest side of the MNI152 brain relative to the field of view: 2 mm voxels on a 96^3 grid.
_FIELD_OF_VIEW = 192.0 / 180.0


class Term(NamedTuple):
    """One summand of the forward pass of a window.

    Attributes:
        name: what it is.
        formula: in the letters of this module; of one block if ``name`` begins with "block".
        flops: its value, all blocks together.
        product: a matrix product, which FlopCounterMode counts too.
    """

    name: str
    formula: str
    flops: int
    product: bool = False


def block_terms(config: ModelConfig, tokens: int, d_state: int, blocks: int) -> list[Term]:
    """The residual Mamba2 blocks on one sequence.

    Args:
        config: widths.
        tokens: L.
        d_state: N (the Mamba head's differs from the backbone's).
        blocks: how many.
    """
    length, d, inner, n = tokens, config.embed_dim, config.d_inner, d_state
    heads, p, taps = config.nheads, config.headdim, config.d_conv
    products = scan_products(length, heads, p, n, CHUNK)
    q = min(CHUNK, length)
    chunks = math.ceil(length / q) if length else 0
    rows = 2 * inner + 2 * n + heads
    terms = [
        Term("block: norm", "4 L D", 4 * length * d),
        Term("block: in_proj", "2 L D (2I + 2N + H)", 2 * length * d * rows, True),
        Term("block: convolution", "2 L (I + 2N) k", 2 * length * (inner + 2 * n) * taps),
        Term("block: scan, C B^T", "2 K Q^2 N", products.scores, True),
        Term("block: scan, decays", "3 K H Q^2", 3 * chunks * heads * q * q),
        Term("block: scan, in chunks", "2 K H Q^2 P", products.in_chunks, True),
        Term("block: scan, to states", "2 K H Q N P", products.to_states, True),
        Term("block: scan, states", "2 (K-1) H N P", 2 * max(chunks - 1, 0) * heads * n * p),
        Term("block: scan, from states", "2 K H Q N P", products.from_states, True),
        Term("block: skip D x", "2 L I", 2 * length * inner),
        Term(
            "block: SiLU, softplus, gate, residual",
            "L (I + 2N + 2H + 2I + D)",
            length * (3 * inner + 2 * n + 2 * heads + d),
        ),
        Term("block: gated norm", "4 L I", 4 * length * inner),
        Term("block: out_proj", "2 L I D", 2 * length * inner * d, True),
    ]
    return [term._replace(flops=term.flops * blocks) for term in terms]


def forward_terms(config: ModelConfig, tokens: int) -> list[Term]:
    """Forward pass of one window of ``tokens`` kept tokens, output layer of pre-training included.

    Patch extraction and background detection copy and compare and are not counted.
    """
    length, d, v = tokens, config.embed_dim, config.token_dim
    return [
        Term("embedding", "2 L V D", 2 * length * v * d, True),
        Term("position", "L D", length * d if config.mamba_pe_method != "none" else 0),
        *block_terms(config, tokens, config.d_state, config.depth),
        Term("final norm", "4 L D", 4 * length * d),
        Term("output layer", "2 L D V", 2 * length * d * v, True),
        Term("output layer: bias", "L V", length * v),
    ]


def head_terms(head: HeadConfig, config: ModelConfig, tokens: int) -> list[Term]:
    """Forward pass of a downstream head on the features of one window."""
    d = config.embed_dim
    terms = [Term("classifier", "(2 D + 1) outputs", (2 * d + 1) * head.out_features)]
    if head.name == "linear":
        return [Term("mean over tokens", "L D", tokens * d), *terms]
    return [*block_terms(config, tokens, d // 16, head.mamba_depth), *terms]


def total(terms: Sequence[Term], products_only: bool = False) -> int:
    """Sum of the terms."""
    return sum(term.flops for term in terms if term.product or not products_only)


def training_total(terms: Sequence[Term], products_only: bool = False) -> int:
    """Forward and backward: each term three times, the embedding twice.

    A product's backward is two products of its size; the tokens themselves need no gradient.
    """
    embedding = sum(term.flops for term in terms if term.name == "embedding")
    return 3 * total(terms, products_only) - embedding


def untrained_window(
    config: ModelConfig, tokens: int, backend: str = "auto", device: str = "meta"
) -> tuple[FMamba, PackedTokens]:
    """An untrained backbone and the packed tokens of one window, on the meta device by default."""
    with torch.device(device):
        model = build_model(config, ssd_backend=backend)
        assert isinstance(model, FMamba)
        packed = PackedTokens(
            torch.zeros(tokens, config.token_dim),
            torch.zeros(tokens, dtype=torch.long),
            (tokens,),
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
        FlopCounterMode(display=False) as counter,
        torch.set_grad_enabled(training),
    ):
        prediction = model.forward_tokens(packed).prediction
        if training:
            assert prediction is not None
            prediction.sum().backward()
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
    """Trainable parameters of the backbone with the output layer of pre-training."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config).parameters())


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
    from nilearn.datasets import load_mni152_brain_mask  # takes seconds to import

    resolution = 2
    image = load_mni152_brain_mask(resolution=resolution)
    template = np.asarray(image.dataobj) > 0
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
