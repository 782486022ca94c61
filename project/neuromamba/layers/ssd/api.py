"""The one function through which every Mamba2 layer runs, ``mixer_core``.

A backend (``registry``) computes the mixer between the two projections: from the in-projection's
output to the gated, normalised input of the out-projection,

    z, xBC, dt = split(zxbcdt)                     z (I), x (I), B (N), C (N), dt (H)
    xBC        = silu(causal depthwise conv(xBC))
    dt         = softplus(dt + dt_bias);  A = -exp(A_log)
    h_t        = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T        (one state [N, P] a head)
    y_t        = C_t h_t + D x_t
    out        = RMSNorm(y * silu(z))                        (norm_before_gate=False)

after Dao & Gu 2024, "Transformers are SSMs", with one group of B and C shared by all heads.

Sequences come packed: tokens of all sequences one after another, and their lengths. Neither the
convolution nor the state may reach across a border.

Shapes: L packed tokens, I inner width, N state size, H heads, P head width (I = H P).
"""

from __future__ import annotations

from torch import Tensor

from neuromamba.layers.ssd.flop_count import counted_mixer, counting_flops
from neuromamba.layers.ssd.registry import select_backend
from neuromamba.layers.ssd.types import CHUNK, MixerParams


def mixer_core(
    zxbcdt: Tensor, params: MixerParams, lengths: tuple[int, ...], backend: str = "auto"
) -> Tensor:
    """Run the mixer of one layer on packed sequences.

    Args:
        zxbcdt: [L, 2I + 2N + H], output of the in-projection.
        params: the layer's parameters.
        lengths: tokens of each sequence; they add up to L and none is 0.
        backend: name of a backend, or "auto".

    Returns:
        [L, I], input of the out-projection, in the type of ``zxbcdt``.
    """
    assert sum(lengths) == zxbcdt.shape[0] and all(lengths), (lengths, zxbcdt.shape)
    run = None if zxbcdt.is_meta else select_backend(backend, zxbcdt.device).run
    if run is None or counting_flops():
        return counted_mixer(run, zxbcdt, params, lengths, CHUNK)
    return run(zxbcdt, params, lengths)
