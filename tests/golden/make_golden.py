"""Draws the golden case, runs ``fmamba_numpy`` on it and writes ``fmamba_golden.npz``.

The file holds the weights, the input and every intermediate result (float64). Run from the
repository root: ``python -m tests.golden.make_golden``.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from tests.golden import fmamba_numpy as golden
from tests.golden.fmamba_numpy import Array

GOLDEN_FILE = Path(__file__).with_name("fmamba_golden.npz")

# No two axes agree in both patch size and number of patches, so that none can be exchanged
# unnoticed.
IMG_SIZE = (4, 9, 8, 8)
PATCH_SIZE = (2, 3, 4, 2)
GRID = (2, 3, 2, 4)
D, N, P, DEPTH, D_CONV = 16, 4, 16, 2, 4
HEAD_STATE, HEAD_DEPTH, CLASSES = D // 16, 3, 2


def draw(
    random: np.random.RandomState, *shape: int, scale: float = 1.0, shift: float = 0.0
) -> Array:
    """Normal numbers rounded to multiples of 2^-12: exact in float32, and small on disk."""
    values = random.standard_normal(shape) * scale + shift
    return np.asarray(np.round(values * 4096.0) / 4096.0)


def draw_mamba2(random: np.random.RandomState, prefix: str, d_state: int) -> dict[str, Array]:
    inner, heads = 2 * D, 2 * D // P
    channels = inner + 2 * d_state
    return {
        prefix + "in_proj.weight": draw(random, inner + channels + heads, D, scale=D**-0.5),
        prefix + "conv1d.weight": draw(random, channels, 1, D_CONV, scale=0.5),
        prefix + "conv1d.bias": draw(random, channels, scale=0.2),
        prefix + "dt_bias": draw(random, heads, shift=-1.0),
        prefix + "A_log": draw(random, heads, scale=0.5),
        prefix + "D": draw(random, heads, scale=0.3, shift=1.0),
        prefix + "norm.weight": draw(random, inner, scale=0.2, shift=1.0),
        prefix + "out_proj.weight": draw(random, D, inner, scale=inner**-0.5),
    }


def draw_weights(random: np.random.RandomState) -> dict[str, Array]:
    """Backbone weights under their checkpoint names; heads under ``{linear,mamba}_head.``."""
    values = math.prod(PATCH_SIZE)
    matrix = draw(random, 84, D)
    pos = [
        [float(np.dot(row, matrix[:, d])) for d in range(D)] for row in golden.nerf_features(GRID)
    ]
    weights = {
        "embedder.projection": draw(random, values, D, scale=values**-0.5),
        "embedder.pos": np.round(np.array([pos]) * 4096.0) / 4096.0,
    }
    for i in range(DEPTH):
        weights[f"mamba_layers.{i}.0.weight"] = draw(random, D, scale=0.2, shift=1.0)
        weights.update(draw_mamba2(random, f"mamba_layers.{i}.1.", N))
    weights["norm.weight"] = draw(random, D, scale=0.2, shift=1.0)
    weights["output_layer.weight"] = draw(random, values, D, scale=D**-0.5)
    weights["output_layer.bias"] = draw(random, values, scale=0.2)
    weights["linear_head.classifier.weight"] = draw(random, CLASSES, D)
    weights["linear_head.classifier.bias"] = draw(random, CLASSES)
    for i in range(HEAD_DEPTH):
        weights.update(draw_mamba2(random, f"mamba_head.blocks.{i}.0.", HEAD_STATE))
        weights[f"mamba_head.blocks.{i}.2.weight"] = draw(random, D, scale=0.2, shift=1.0)
    weights["mamba_head.classifier.weight"] = draw(random, CLASSES, D)
    weights["mamba_head.classifier.bias"] = draw(random, CLASSES)
    return weights


def draw_volume(random: np.random.RandomState, background: float) -> Array:
    """One sample (1, X, Y, Z, T) in which each patch holds a random share of brain voxels.

    Some patches are empty, some full, some hold one or two brain voxels. Brain values lie above
    ``background``, as after the ``*_minback`` scalings.
    """
    share = random.choice([0.0, 0.0, 0.0, 0.03, 0.5, 1.0], size=GRID)
    volume = np.full((1, *IMG_SIZE), background)
    for place in np.ndindex(*IMG_SIZE):  # x, y, z, t
        patch = tuple(i // p for i, p in zip(place, PATCH_SIZE, strict=True))
        value = abs(float(draw(random, 1)[0])) + 0.25
        if random.random_sample() < share[patch]:
            volume[0][place] += value
    return volume


def make_case() -> dict[str, Array]:
    """Everything in the golden file: weights, input, every intermediate result, heads, loss."""
    random = np.random.RandomState(20260101)  # RandomState: its stream is frozen by numpy
    weights = draw_weights(random)
    volumes = [draw_volume(random, -0.75), draw_volume(random, -1.5)]
    case = {f"weights/{name}": value for name, value in weights.items()}
    case["input"] = np.array(volumes)
    case["nerf_features"] = golden.nerf_features(GRID)
    samples = []
    for b, volume in enumerate(volumes):
        result = golden.backbone(
            volume, weights, patch_size=PATCH_SIZE, depth=DEPTH, d_state=N, headdim=P
        )
        samples.append((result["prediction"], result["tokens"]))
        case.update({f"sample{b}/{name}": value for name, value in result.items()})
        head = golden.part(weights, "linear_head.")
        case[f"sample{b}/linear_head"] = golden.linear_head(result["features"], head)
        head = golden.part(weights, "mamba_head.")
        logits = golden.mamba_head(result["features"], head, HEAD_STATE, P, HEAD_DEPTH)
        case[f"sample{b}/mamba_head"] = logits
    case["next_token_loss"] = np.array(golden.next_token_loss(samples))
    return case


if __name__ == "__main__":
    np.savez_compressed(GOLDEN_FILE, **make_case())  # type: ignore[arg-type]
    print(f"wrote {GOLDEN_FILE} ({GOLDEN_FILE.stat().st_size / 1024:.0f} KiB)")
