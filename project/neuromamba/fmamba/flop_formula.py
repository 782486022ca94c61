"""Floating-point operations (FLOPs) of FMamba by formula, term by term.

A multiplication and an addition are two FLOPs. Matrix products are counted exactly as the chunked
scan carries them out, and beside them convolution, norms, decays and other pointwise work, where a
function such as exp or SiLU is one FLOP. Work that a backend does twice to save memory is not
counted (model FLOPs, not hardware FLOPs). ``analysis.flops`` compares with torch's counter.

Letters: L tokens, D width, I = expand D, N state size, H heads, P = I / H, V values of a token,
k taps of the convolution, Q tokens of a chunk, K = ceil(L / Q) chunks, A voxels of a spatial patch,
S places (spatial patches).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.fmamba.run_config import RunConfig
from neuromamba.fmamba.swift import MLP_RATIO, attended_tokens, grid_of_stage
from neuromamba.layers.ssd.flop_count import scan_products
from neuromamba.layers.ssd.types import CHUNK


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

    Patch extraction and background detection copy and compare and are not counted. SwiFT reads all
    tokens, and has no output layer.
    """
    if config.model == "swift":
        return swift_terms(config)
    length, d, v = tokens, config.embed_dim, config.token_dim
    anatomy = []
    if config.anatomy:
        places = math.ceil(length / config.token_grid[3])
        product = 2 * places * config.place_dim * d
        anatomy = [
            Term("embedding of the anatomy", "2 S A D", product, True),
            Term("anatomy: sum", "L D", length * d),
        ]
    return [
        Term("embedding", "2 L V D", 2 * length * v * d, True),
        *anatomy,
        Term("position", "L D", length * d if config.mamba_pe_method != "none" else 0),
        *block_terms(config, tokens, config.d_state, config.depth),
        Term("final norm", "4 L D", 4 * length * d),
        Term("output layer", "2 L D V", 2 * length * d * v, True),
        Term("output layer: bias", "L V", length * v),
    ]


def swift_terms(config: ModelConfig) -> list[Term]:
    """Forward pass of SwiFT on one window; L tokens and width C of a stage, N of an attention."""
    length, d, v = config.num_tokens, config.embed_dim, config.token_dim
    terms = [Term("embedding", "2 L V C", 2 * length * v * d, True)]
    for stage, blocks in enumerate(config.swin_depths):
        width, name = config.swin_widths[stage], f"block of stage {stage + 1}"
        length = math.prod(grid_of_stage(config.token_grid, stage))
        attended = attended_tokens(config, stage)
        linear = 2 * (4 + 2 * MLP_RATIO) * length * width * width
        terms += [
            Term(f"position of stage {stage + 1}", "2 L C", 2 * length * width),
            Term(f"{name}: projections, MLP", "24 L C^2", blocks * linear, True),
            Term(f"{name}: attention", "4 L N C", blocks * 4 * length * attended * width, True),
            Term(
                f"{name}: softmax",
                "3 L N heads",
                blocks * 3 * length * attended * config.swin_heads[stage],
            ),
            Term(f"{name}: norms, GELU, residuals", "14 L C", blocks * 14 * length * width),
        ]
        if stage + 1 < len(config.swin_depths):
            merged = math.prod(grid_of_stage(config.token_grid, stage + 1))
            terms += [
                Term(f"merging {stage + 1}", "2 L (8 C) (2 C)", 32 * merged * width**2, True),
                Term(f"merging {stage + 1}: norm", "4 L (8 C)", 32 * merged * width),
            ]
    return [*terms, Term("final norm", "4 L D", 4 * length * config.feature_dim)]


def head_terms(head: HeadConfig, config: ModelConfig, tokens: int) -> list[Term]:
    """Forward pass of a downstream head on the features of one window."""
    d = config.feature_dim
    width = head.pooled_features(config)  # F
    terms = [Term("classifier", "(2 F + 1) outputs", (2 * width + 1) * head.out_features)]
    if head.name == "linear":
        pools = {"mean": [], "attention": [Term("scores of tokens", "3 L D", 3 * tokens * d)]}
        deviation = [Term("deviation over time", "4 L D", 4 * tokens * d)]
        pool = [Term("mean over tokens", "L D", tokens * d), *pools.get(head.pool, deviation)]
        return [*pool, *terms]
    return [*block_terms(config, tokens, d // 16, head.mamba_depth), *terms]


def total(terms: Sequence[Term], products_only: bool = False) -> int:
    """Sum of the terms."""
    return sum(term.flops for term in terms if term.product or not products_only)


def training_total(terms: Sequence[Term], products_only: bool = False) -> int:
    """Forward and backward: each term three times, the embeddings twice.

    A product's backward is two products of its size; the tokens themselves need no gradient.
    """
    embedding = sum(term.flops for term in terms if term.name.startswith("embedding"))
    return 3 * total(terms, products_only) - embedding


def window_flops(
    config: ModelConfig,
    tokens: int,
    masked: float | None = None,
    head: HeadConfig | None = None,
    frozen: bool = False,
) -> int:
    """Forward and backward of one window in a run.

    Args:
        config: the backbone.
        tokens: kept tokens of the window.
        masked: share of the tokens that masked-token reconstruction predicts; None for all.
        head: of a downstream task, in place of the output layer.
        frozen: the backbone is run forward only.
    """
    terms = forward_terms(config, tokens)
    last = ("final norm", "output layer", "output layer: bias")
    if head is None:
        share = 1.0 if masked is None else masked
        # Only rows that are compared with a token are normed and predicted.
        return training_total(
            [t._replace(flops=round(t.flops * share)) if t.name in last else t for t in terms]
        )
    backbone = [term for term in terms if not term.name.startswith("output layer")]
    own = 3 * total(head_terms(head, config, tokens))
    return own + (total(backbone) if frozen else training_total(backbone))


def flops_of(config: RunConfig) -> Callable[[int], int]:
    """FLOPs of training on a window, by its tokens."""
    masked = None
    if config.pretrain is not None:
        masked = config.pretrain.predicted_share(config.model.token_grid[3])
    frozen = config.downstream is not None and config.downstream.freeze_feature_extractor
    return functools.partial(
        window_flops, config.model, masked=masked, head=config.head, frozen=frozen
    )
