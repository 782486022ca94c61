"""FMamba written a second time: loops over numbers in float64, numpy only, from the specification.

The program is the independent witness of the model in ``project/module/models``. It was written
from the description of the released model (sizes, key names, token order, block equations) and
shares no code with the framework. Every equation is spelled out for one token, one channel or one
state entry at a time; the only vector operation is ``numpy.dot``.

Notation: D embedding width, N state size, P head width, H heads (H * P = 2 D), V values in a
token, L tokens that are kept.

Sources: NeuroMamba README (patch embedding, token order, background removal, heads); Dao and Gu
2024, "Transformers are SSMs" (Mamba-2 block, norm_before_gate=False); Mildenhall et al. 2020
(NeRF encoding).

``make_golden.py`` beside this file draws a small case and stores its results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
EPS = 1e-5


# -------------------------------------------------------------------------------- scalar functions


def sigmoid(value: float) -> float:
    if value >= 0.0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))


def silu(value: float) -> float:
    return value * sigmoid(value)


def softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


# --------------------------------------------------------------------------- tokens and positions


def extract_tokens(volume: Array, patch_size: tuple[int, ...]) -> Array:
    """Patches of ``volume`` (C, X, Y, Z, T) as (tokens, V).

    Tokens in C order of the patch grid (t fastest, then z, y, x); the values of a token in the
    order (x, y, z, t, channel), the channel fastest.
    """
    channels, *size = volume.shape
    px, py, pz, pt = patch_size
    tokens = []
    for x0 in range(0, size[0], px):
        for y0 in range(0, size[1], py):
            for z0 in range(0, size[2], pz):
                for t0 in range(0, size[3], pt):
                    token = []
                    for x in range(x0, x0 + px):
                        for y in range(y0, y0 + py):
                            for z in range(z0, z0 + pz):
                                for t in range(t0, t0 + pt):
                                    for c in range(channels):
                                        token.append(volume[c, x, y, z, t])
                    tokens.append(token)
    return np.array(tokens, dtype=np.float64)


def kept_tokens(tokens: Array, background: str) -> list[int]:
    """Indices of the tokens with at least one brain voxel.

    A voxel is background if it equals the window's minimum (``background="min"``) or 0 ("zero").
    """
    empty = min(float(v) for token in tokens for v in token) if background == "min" else 0.0
    kept = []
    for index, token in enumerate(tokens):
        if any(float(value) != empty for value in token):
            kept.append(index)
    return kept


def nerf_features(grid: tuple[int, ...], frequencies: int = 10) -> Array:
    """NeRF encoding of the token grid: (tokens, 4 + 4 * 2 * frequencies) = (tokens, 84).

    Each axis of n tokens has the coordinates linspace(0, 1, n). Order of the features: x, y, z, t;
    then for f = 1, 2, 4, ... the sines of f * (x, y, z, t), then the cosines of the same.
    """
    rows = []
    for i in range(grid[0]):
        for j in range(grid[1]):
            for k in range(grid[2]):
                for m in range(grid[3]):
                    place = zip((i, j, k, m), grid, strict=True)
                    point = [q / (n - 1) if n > 1 else 0.0 for q, n in place]
                    row = list(point)
                    for power in range(frequencies):
                        row += [math.sin(2.0**power * q) for q in point]
                        row += [math.cos(2.0**power * q) for q in point]
                    rows.append(row)
    return np.array(rows, dtype=np.float64)


# -------------------------------------------------------------------------------------- the layers


def rms_norm(row: Array, weight: Array) -> Array:
    mean_square = 0.0
    for value in row:
        mean_square += float(value) ** 2 / len(row)
    scale = 1.0 / math.sqrt(mean_square + EPS)
    return np.array([float(v) * scale * float(w) for v, w in zip(row, weight, strict=True)])


def linear(row: Array, weight: Array, bias: Array | None = None) -> Array:
    """``weight`` (out, in) times ``row`` (in,), plus ``bias``."""
    out = np.array([float(np.dot(weight[o], row)) for o in range(weight.shape[0])])
    return out if bias is None else out + bias


def mamba2(sequence: Array, weights: Weights, d_state: int, headdim: int) -> dict[str, Array]:
    """One Mamba-2 layer over one sequence (L, D); returns all intermediate results.

    Keys of the result: ``zxbcdt`` (L, 4D+2N+H), ``xbc`` (L, 2D+2N) after convolution and SiLU,
    ``dt`` (L, H), ``scan`` (L, 2D) = C h + D x, ``gated`` (L, 2D), ``out`` (L, D).
    """
    heads = weights["A_log"].shape[0]
    inner = heads * headdim
    zxbcdt = np.array([linear(row, weights["in_proj.weight"]) for row in sequence])

    channels = inner + 2 * d_state
    width = weights["conv1d.weight"].shape[2]
    xbc = np.zeros((len(sequence), channels))
    for t in range(len(sequence)):
        for c in range(channels):
            total = float(weights["conv1d.bias"][c])
            for tap in range(width):  # the last tap meets the present token
                past = t - (width - 1) + tap
                if past >= 0:
                    total += float(weights["conv1d.weight"][c, 0, tap]) * zxbcdt[past, inner + c]
            xbc[t, c] = silu(total)

    dt = np.zeros((len(sequence), heads))
    scan = np.zeros((len(sequence), inner))
    for head in range(heads):
        a = -math.exp(float(weights["A_log"][head]))
        state = np.zeros((headdim, d_state))
        for t in range(len(sequence)):
            raw = zxbcdt[t, inner + channels + head] + weights["dt_bias"][head]
            dt[t, head] = softplus(float(raw))
            decay = math.exp(dt[t, head] * a)
            for p in range(headdim):
                x = xbc[t, head * headdim + p]
                y = float(weights["D"][head]) * x
                for n in range(d_state):
                    b, c = xbc[t, inner + n], xbc[t, inner + d_state + n]
                    state[p, n] = decay * state[p, n] + dt[t, head] * b * x
                    y += c * state[p, n]
                scan[t, head * headdim + p] = y

    gated = np.zeros_like(scan)
    for t in range(len(sequence)):
        row = np.array([scan[t, i] * silu(float(zxbcdt[t, i])) for i in range(inner)])
        gated[t] = rms_norm(row, weights["norm.weight"])
    out = np.array([linear(row, weights["out_proj.weight"]) for row in gated])
    return {"zxbcdt": zxbcdt, "xbc": xbc, "dt": dt, "scan": scan, "gated": gated, "out": out}


def part(weights: Weights, prefix: str) -> dict[str, Array]:
    """The weights whose names begin with ``prefix``, the prefix removed."""
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def backbone(
    volume: Array,
    weights: Weights,
    *,
    patch_size: tuple[int, ...],
    depth: int,
    d_state: int,
    headdim: int,
    background: str = "min",
    keep_background: bool = False,
) -> dict[str, Array]:
    """The whole model for one sample (C, X, Y, Z, T), background tokens dropped.

    Keys of the result: ``token_index`` (L,), ``tokens`` (L, V), ``embedded`` (L, D),
    ``block{i}.*`` (the results of ``mamba2`` and ``residual`` (L, D)), ``features`` (L, D),
    ``prediction`` (L, V).
    """
    every = extract_tokens(volume, patch_size)
    kept = list(range(len(every))) if keep_background else kept_tokens(every, background)
    tokens = np.array([every[index] for index in kept])
    x = np.zeros((len(kept), weights["embedder.projection"].shape[1]))
    for row, index in enumerate(kept):
        for d in range(x.shape[1]):
            projected = float(np.dot(tokens[row], weights["embedder.projection"][:, d]))
            x[row, d] = projected + weights["embedder.pos"][0, index, d]
    result = {"token_index": np.array(kept), "tokens": tokens, "embedded": x.copy()}
    for i in range(depth):
        normed = np.array([rms_norm(row, weights[f"mamba_layers.{i}.0.weight"]) for row in x])
        layer = mamba2(normed, part(weights, f"mamba_layers.{i}.1."), d_state, headdim)
        x = x + layer["out"]
        result.update({f"block{i}.{name}": value for name, value in layer.items()})
        result[f"block{i}.residual"] = x.copy()
    features = np.array([rms_norm(row, weights["norm.weight"]) for row in x])
    weight, bias = weights["output_layer.weight"], weights["output_layer.bias"]
    result["features"] = features
    result["prediction"] = np.array([linear(row, weight, bias) for row in features])
    return result


def next_token_loss(samples: list[tuple[Array, Array]]) -> float:
    """Mean squared error of predicting each next kept token; pairs never cross a sample.

    ``samples`` holds (prediction, tokens), each (L, V). The mean is over all values of all pairs.
    """
    total, count = 0.0, 0
    for prediction, tokens in samples:
        for t in range(len(tokens) - 1):
            for v in range(tokens.shape[1]):
                total += (float(prediction[t, v]) - float(tokens[t + 1, v])) ** 2
                count += 1
    return total / count


def linear_head(features: Array, weights: Weights) -> Array:
    """Mean over the tokens (L, D), then the classifier: (classes,)."""
    mean = np.array([sum(float(row[d]) for row in features) for d in range(features.shape[1])])
    return linear(mean / len(features), weights["classifier.weight"], weights["classifier.bias"])


def mamba_head(features: Array, weights: Weights, d_state: int, headdim: int, depth: int) -> Array:
    """Residual Mamba-2 blocks, each followed by an RMSNorm; the last token is classified.

    x = rmsnorm(x + mamba2(x)): the README's "block, dropout, RMSNorm", the block being residual.
    """
    x = features
    for i in range(depth):
        layer = mamba2(x, part(weights, f"blocks.{i}.0."), d_state, headdim)
        summed = x + layer["out"]
        x = np.array([rms_norm(row, weights[f"blocks.{i}.2.weight"]) for row in summed])
    return linear(x[-1], weights["classifier.weight"], weights["classifier.bias"])
