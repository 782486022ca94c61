"""The one function through which every Mamba2 layer runs, and the registry of its backends.

A backend computes the mixer between the two projections: from the in-projection's output to the
gated, normalised input of the out-projection,

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

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from neuromamba.common.errors import UserInputError, look_up
from neuromamba.config.names import SSD_BACKENDS
from neuromamba.layers.ssd.flop_count import counted_mixer, counting_flops

logger = logging.getLogger(__name__)

# Tokens of a chunk, inside which the scan is a matrix product: fewer waste the products, more raise
# their number (it grows with the chunk).
CHUNK = 64


class MixerParams(NamedTuple):
    """Parameters of one layer between its projections.

    Attributes:
        conv_weight: [I + 2N, K] depthwise filters over (x, B, C), the last tap on the newest token.
        conv_bias: [I + 2N].
        dt_bias, A_log, D: [H].
        norm_weight: [I].
        d_state: N.
        headdim: P.
    """

    conv_weight: Tensor
    conv_bias: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    norm_weight: Tensor
    d_state: int
    headdim: int


class BlockParams(NamedTuple):
    """Parameters of a residual block.

    Attributes:
        norm_weight: [D] of the RMSNorm before the layer.
        in_proj: [2I + 2N + H, D].
        out_proj: [D, I].
        mixer: what lies between the projections.
    """

    norm_weight: Tensor
    in_proj: Tensor
    out_proj: Tensor
    mixer: MixerParams


MixerFunction = Callable[[Tensor, MixerParams, tuple[int, ...]], Tensor]
BlockFunction = Callable[[Tensor, BlockParams, tuple[int, ...], bool], Tensor]


class Backend(NamedTuple):
    """A way to compute the mixer.

    Attributes:
        name: value of ``--ssd_backend``.
        run: (zxbcdt [L, 2I + 2N + H], parameters, lengths) -> [L, I].
        why_not: given a device, None if the backend works there, else the reason and the remedy.
        block: (x [L, D], parameters, lengths, sparing) -> [L, D], a whole residual block
            ``x + out_proj(mixer(in_proj(rmsnorm(x))))`` in one go, for backends that gain by it;
            ``sparing`` asks to keep no more for the backward pass than activation checkpointing.
        detail: a word on how it will run here, for the log.
    """

    name: str
    run: MixerFunction
    why_not: Callable[[torch.device], str | None]
    block: BlockFunction | None
    detail: Callable[[], str] | None


BACKENDS: dict[str, Backend] = {}
_announced: set[tuple[str, str]] = set()


def register_backend(
    name: str,
    why_not: Callable[[torch.device], str | None] = lambda device: None,
    block: BlockFunction | None = None,
    detail: Callable[[], str] | None = None,
) -> Callable[[MixerFunction], MixerFunction]:
    """Decorator that enters a mixer function into ``BACKENDS`` under ``name``."""
    assert name in SSD_BACKENDS and name not in BACKENDS, name

    def enter(run: MixerFunction) -> MixerFunction:
        BACKENDS[name] = Backend(name, run, why_not, block, detail)
        return run

    return enter


def select_backend(requested: str, device: torch.device) -> Backend:
    """Choose the backend for a device; ``auto`` takes the first of triton, cpu that works.

    The choice and its reason are logged once for each kind of device.

    Raises:
        UserInputError: the request names a backend that does not exist or does not work here.
    """
    look_up(requested, SSD_BACKENDS, "--ssd_backend")
    if requested == "auto":
        refused = []
        for name in ("triton", "cpu") if device.type == "cuda" else ("cpu",):
            chosen = BACKENDS[name]
            reason = chosen.why_not(device)
            if reason is None:
                break
            refused.append(f"{name}: {reason}")
        else:  # pragma: no cover - the portable backend works on every device
            raise AssertionError(refused)
        why = "; ".join([f"auto on {device.type}", *refused])
    else:
        chosen, why = BACKENDS[requested], "requested"
        reason = chosen.why_not(device)
        if reason is not None:
            raise UserInputError(f"--ssd_backend: '{requested}' cannot run on {device}: {reason}")
    if (chosen.name, device.type) not in _announced:
        _announced.add((chosen.name, device.type))
        how = f"{why}; {chosen.detail()}" if chosen.detail else why
        logger.info("state-space backend: %s (%s)", chosen.name, how)
    return chosen


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


# ----------------------------------------------------------------- shared by the torch backends


class MixerInputs(NamedTuple):
    """What enters the scan of one sequence, in the widest type asked for.

    Attributes:
        z: [L, I] gate.
        x: [L, H, P].
        B, C: [L, N].
        dt: [L, H] after bias and softplus.
        A: [H], negative.
    """

    z: Tensor
    x: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor
    A: Tensor


def prepare_inputs(zxbcdt: Tensor, params: MixerParams) -> MixerInputs:
    """Split, convolve and activate one sequence [L, 2I + 2N + H]; fp32 or wider throughout."""
    zxbcdt = zxbcdt.to(torch.promote_types(zxbcdt.dtype, torch.float32))
    d_inner, n = params.norm_weight.numel(), params.d_state
    z, xbc, dt = zxbcdt.split([d_inner, d_inner + 2 * n, params.dt_bias.numel()], dim=-1)
    length, taps = xbc.shape[0], params.conv_weight.shape[1]
    padded = torch.nn.functional.pad(xbc, (0, 0, taps - 1, 0))
    convolved = params.conv_bias
    for tap in range(taps):
        convolved = convolved + padded[tap : tap + length] * params.conv_weight[:, tap]
    x, b, c = torch.nn.functional.silu(convolved).split([d_inner, n, n], dim=-1)
    return MixerInputs(
        z=z,
        x=x.unflatten(-1, (-1, params.headdim)),
        B=b,
        C=c,
        dt=torch.nn.functional.softplus(dt + params.dt_bias),
        A=-torch.exp(params.A_log),
    )
