"""The Mamba2 layer (Dao & Gu 2024) on packed sequences, with the parameter names of mamba_ssm.

The layer owns the parameters; the computation between its two projections is
``ssd.mixer_core``, so that every backend sees the same weights.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuromamba.layers.rms_norm import RMSNorm
from neuromamba.layers.ssd import (
    BlockParams,
    MixerParams,
    MixerState,
    initial_state,
    mix_piece,
    mixer_core,
    select_backend,
)
from neuromamba.layers.ssd.flop_count import counting_flops

# Initial step sizes are log-uniform in this range, decay rates uniform in that one (mamba_ssm).
DT_RANGE = (1e-3, 1e-1)
DT_FLOOR = 1e-4
A_RANGE = (1.0, 16.0)


class Mamba2(nn.Module):
    """Selective state-space layer, [L, D] -> [L, D].

    Args:
        d_model: D.
        d_state: N.
        headdim: P; divides expand * D.
        d_conv: taps of the causal depthwise convolution.
        expand: inner width I as a multiple of D.
        ssd_backend: see ``ssd.select_backend``.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int,
        headdim: int,
        d_conv: int = 4,
        expand: int = 2,
        ssd_backend: str = "auto",
    ) -> None:
        super().__init__()
        d_inner = expand * d_model
        assert d_inner % headdim == 0, (d_inner, headdim)
        nheads, conv_dim = d_inner // headdim, d_inner + 2 * d_state
        self.d_state, self.headdim, self.ssd_backend = d_state, headdim, ssd_backend
        # Rows of the in-projection: z (I), x (I), B (N), C (N), dt (H).
        self.in_proj = nn.Linear(d_model, 2 * d_inner + 2 * d_state + nheads, bias=False)
        # Holds the filters under the checkpoint's names; applied by the backends.
        self.conv1d = nn.Conv1d(conv_dim, conv_dim, d_conv, groups=conv_dim, padding=d_conv - 1)
        low, high = (math.log(bound) for bound in DT_RANGE)
        dt = torch.exp(torch.rand(nheads) * (high - low) + low).clamp(min=DT_FLOOR)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.A_log = nn.Parameter(torch.empty(nheads).uniform_(*A_RANGE).log())
        self.D = nn.Parameter(torch.ones(nheads))
        self.norm = RMSNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x_LD: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Mix the tokens of each sequence.

        Args:
            x_LD: [L, D], the sequences one after another.
            lengths: tokens of each sequence, adding up to L.
        """
        mixed_LI = mixer_core(self.in_proj(x_LD), self.mixer_params(), lengths, self.ssd_backend)
        return self.out_proj(mixed_LI)

    def start(self) -> MixerState:
        """The state before the first token of a sequence, for ``mix_next``."""
        return initial_state(self.mixer_params())

    def mix_next(self, x_lD: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Mix the next tokens of one sequence, without its past and without gradients.

        Args:
            x_lD: [l, D], one token or more.
            state: after the tokens before, or ``start()``.

        Returns:
            [l, D], as ``forward`` on the whole sequence gives for these tokens; and the new state.
        """
        with torch.no_grad():
            mixed_lI, state = mix_piece(self.in_proj(x_lD), self.mixer_params(), state)
            return self.out_proj(mixed_lI), state

    def mixer_params(self) -> MixerParams:
        """What lies between the projections, as the backends take it."""
        return MixerParams(
            conv_weight=self.conv1d.weight.squeeze(1),
            conv_bias=self.conv1d.bias,  # type: ignore[arg-type]
            dt_bias=self.dt_bias,
            A_log=self.A_log,
            D=self.D,
            norm_weight=self.norm.weight,
            d_state=self.d_state,
            headdim=self.headdim,
        )


class ResidualBlock(nn.ModuleList):
    """``x + dropout(mamba(norm(x)))``, [L, D] -> [L, D].

    A list of the three, so that parameters keep the checkpoints' names (``0.weight``, ...).

    Args:
        norm, mamba, dropout: the layers.
        checkpointing: keep the input for the backward pass and compute the block again there;
            loss and gradients stay the same.
    """

    def __init__(
        self, norm: RMSNorm, mamba: Mamba2, dropout: nn.Dropout, checkpointing: bool = False
    ) -> None:
        super().__init__([norm, mamba, dropout])
        self.checkpointing = checkpointing

    def forward(self, x_LD: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Mix the tokens of each sequence and add the result to them."""
        norm, mamba, dropout = cast(tuple[RMSNorm, Mamba2, nn.Dropout], tuple(self))
        fused = None
        if self._may_be_fused(norm, mamba, dropout) and not (x_LD.is_meta or counting_flops()):
            fused = select_backend(mamba.ssd_backend, x_LD.device).block
        if fused is not None:
            params = BlockParams(
                norm.weight, mamba.in_proj.weight, mamba.out_proj.weight, mamba.mixer_params()
            )
            return fused(x_LD, params, lengths, self.checkpointing, _mask(dropout, x_LD))
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._layer_by_layer, x_LD, lengths, use_reentrant=False)
        return self._layer_by_layer(x_LD, lengths)

    def start(self) -> MixerState:
        """The state before the first token of a sequence, for ``mix_next``."""
        return cast(Mamba2, self[1]).start()

    def mix_next(self, x_lD: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        """Like ``Mamba2.mix_next``, for the whole block; dropout is left out, as in evaluation."""
        norm, mamba, _ = cast(tuple[RMSNorm, Mamba2, nn.Dropout], tuple(self))
        with torch.no_grad():
            mixed_lD, state = mamba.mix_next(norm(x_lD), state)
            return x_lD + mixed_lD, state

    def _layer_by_layer(self, x_LD: Tensor, lengths: tuple[int, ...]) -> Tensor:
        norm, mamba, dropout = self
        return x_LD + dropout(mamba(norm(x_LD), lengths))

    def _may_be_fused(self, norm: RMSNorm, mamba: Mamba2, dropout: nn.Dropout) -> bool:
        """Whether nothing but the layers' own arithmetic is expected.

        That is: no hooks (DeepSpeed's ZeRO-3, profilers), no layer replaced by one that does more
        (LoRA), no dropout whose mask would have to be drawn a second time.
        """
        if (_drops(dropout) and self.checkpointing) or nn.modules.module._has_any_global_hook():
            return False
        plain = type(norm) is RMSNorm and type(mamba) is Mamba2 and type(mamba.norm) is RMSNorm
        plain = plain and type(dropout) is nn.Dropout and not dropout.inplace
        plain = plain and type(mamba.in_proj) is type(mamba.out_proj) is nn.Linear
        return plain and not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in (norm, *mamba.modules(), dropout)
        )


def _drops(dropout: nn.Dropout) -> bool:
    return dropout.training and dropout.p > 0


def _mask(dropout: nn.Dropout, x_LD: Tensor) -> Tensor | None:
    """What ``dropout`` would multiply the mixer's output by, drawn as it would draw it."""
    if not _drops(dropout):
        return None
    if dropout.p == 1:
        return torch.zeros_like(x_LD, requires_grad=False)
    kept = 1 - dropout.p
    return torch.empty_like(x_LD, requires_grad=False).bernoulli_(kept).div_(kept)
