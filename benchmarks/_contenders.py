"""What the benchmarks compare with: other ways to compute the same Mamba2 layers and backbone.

``plain`` is the textbook chunked scan in torch operations with gradients from autograd: what one
writes after reading section 6 of Dao & Gu 2024, and what this repository ran before it had a scan
of its own. ``transformers`` is the torch path of Hugging Face's ``Mamba2Mixer``. Every contender
takes over the weights of our layer, so that all compute the same function.

Shapes: L tokens, D width, I inner width, K chunks of Q tokens, H heads, P head width, N state size,
V values of a token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.layers.mamba2 import Mamba2, ResidualBlock
from neuromamba.layers.rms_norm import RMSNorm
from neuromamba.layers.ssd import mixer_core

Lengths = tuple[int, ...]
Mixer = Callable[[Tensor, Lengths], Tensor]
PLAIN_CHUNK = 64
EPS = 1e-5


def our_layer(config: ModelConfig, backend: str) -> Mamba2:
    """One layer of the backbone, freshly initialised."""
    return Mamba2(
        config.embed_dim,
        config.d_state,
        config.headdim,
        config.d_conv,
        config.expand,
        ssd_backend=backend,
    )


def our_block(config: ModelConfig, backend: str) -> ResidualBlock:
    """One block of the backbone as it is trained: norm, layer and residual, [L, D] -> [L, D]."""
    layer = our_layer(config, backend)
    return ResidualBlock(RMSNorm(config.embed_dim), layer, nn.Dropout(config.dropout))


class OurCore(nn.Module):
    """Our mixer between its projections: [L, 2I + 2N + H] -> [L, I]."""

    def __init__(self, layer: Mamba2) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, zxbcdt: Tensor, lengths: Lengths) -> Tensor:
        params = self.layer.mixer_params()
        return mixer_core(zxbcdt, params, lengths, self.layer.ssd_backend)


# ------------------------------------------------------------------------- plain chunked scan


def plain_scan(x_LHP: Tensor, b_LN: Tensor, c_LN: Tensor, dt_LH: Tensor, a_H: Tensor) -> Tensor:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t^T, y_t = C_t h_t -> [L, H, P].

    Inside a chunk one masked matrix product; across chunks only the states [N, P] are carried.
    Under autocast the products take bf16 operands, decays and states stay fp32.
    """
    length = x_LHP.shape[0]

    def chunked(values: Tensor) -> Tensor:
        # dt = 0 in the padding neither decays the state nor adds to it.
        padding = (0, 0) * (values.dim() - 1) + (0, -length % PLAIN_CHUNK)
        return F.pad(values, padding).unflatten(0, (-1, PLAIN_CHUNK))

    b_KQN, c_KQN = chunked(b_LN), chunked(c_LN)
    x_KHQP = chunked(x_LHP).transpose(1, 2)
    dt_KHQ = chunked(dt_LH).transpose(1, 2)
    total_KHQ = (dt_KHQ * a_H[:, None]).cumsum(-1)

    upper = torch.ones(PLAIN_CHUNK, PLAIN_CHUNK, dtype=torch.bool, device=x_LHP.device).triu(1)
    difference = total_KHQ[..., :, None] - total_KHQ[..., None, :]
    decay_KHQQ = torch.exp(difference.masked_fill(upper, -torch.inf))
    scores_KQQ = c_KQN @ b_KQN.transpose(1, 2)
    y_KHQP = (scores_KQQ[:, None] * decay_KHQQ * dt_KHQ[:, :, None]) @ x_KHQP

    to_end_KHQ = torch.exp(total_KHQ[..., -1:] - total_KHQ) * dt_KHQ
    added_KHNP = (b_KQN[:, None] * to_end_KHQ[..., None]).transpose(2, 3) @ x_KHQP
    state = torch.zeros_like(added_KHNP[0], dtype=dt_LH.dtype)
    before = []
    for decay, added in zip(torch.exp(total_KHQ[..., -1]), added_KHNP, strict=True):
        before.append(state)
        state = decay[:, None, None] * state + added
    reads_KHQN = c_KQN[:, None] * torch.exp(total_KHQ)[..., None]
    y_KHQP = y_KHQP + reads_KHQN @ torch.stack(before)
    return y_KHQP.transpose(1, 2).flatten(0, 1)[:length]


def _remove_projections(layer: nn.Module) -> None:
    layer.in_proj, layer.out_proj = nn.Identity(), nn.Identity()


class PlainMixer(nn.Module):
    """The layer [L, D] -> [L, D] with ``plain_scan``, on a copy of our layer's weights.

    With ``core``, only what lies between the projections: [L, 2I + 2N + H] -> [L, I].
    """

    def __init__(self, layer: Mamba2, core: bool = False) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer)
        if core:
            _remove_projections(self.layer)

    def forward(self, x_LD: Tensor, lengths: Lengths) -> Tensor:
        zxbcdt = self.layer.in_proj(x_LD)
        mixed = torch.cat([self.mix(piece) for piece in zxbcdt.split(lengths)])
        return self.layer.out_proj(mixed.to(zxbcdt.dtype))

    def mix(self, zxbcdt: Tensor) -> Tensor:
        """One sequence [L, 2I + 2N + H] -> [L, I], fp32."""
        layer, inner, n = self.layer, self.layer.norm.weight.numel(), self.layer.d_state
        length, taps = zxbcdt.shape[0], layer.conv1d.weight.shape[-1]
        z, xbc, dt = zxbcdt.float().split([inner, inner + 2 * n, layer.D.numel()], dim=-1)
        padded = F.pad(xbc, (0, 0, taps - 1, 0))
        assert layer.conv1d.bias is not None
        convolved = layer.conv1d.bias
        for tap in range(taps):
            convolved = convolved + padded[tap : tap + length] * layer.conv1d.weight[:, 0, tap]
        x, b, c = F.silu(convolved).split([inner, n, n], dim=-1)
        x_LHP = x.unflatten(-1, (-1, layer.headdim))
        y_LHP = plain_scan(
            x_LHP, b, c, F.softplus(dt + layer.dt_bias), -torch.exp(layer.A_log.float())
        )
        gated = (y_LHP + layer.D[:, None] * x_LHP).flatten(1) * F.silu(z)
        scale = torch.rsqrt(gated.square().mean(-1, keepdim=True) + EPS)
        return gated * scale * layer.norm.weight


class PlainBlock(nn.Module):
    """``x + mixer(norm(x))`` around ``PlainMixer``, on a copy of our block's weights."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        norm, layer, _ = block
        self.norm, self.mixer = copy.deepcopy(norm), PlainMixer(layer)  # type: ignore[arg-type]

    def forward(self, x_LD: Tensor, lengths: Lengths) -> Tensor:
        return x_LD + self.mixer(self.norm(x_LD), lengths)


# ------------------------------------------------------------------------------- transformers


def _peer_modules() -> tuple[Any, Any]:
    try:
        from transformers.models.mamba2 import configuration_mamba2, modeling_mamba2
    except ImportError as error:
        raise UserInputError(
            f"benchmarks: transformers, which they compare with, is missing ({error}); run "
            f"'make setup-dev'."
        ) from None
    return configuration_mamba2, modeling_mamba2


def _peer_config(config: ModelConfig, chunk: int) -> Any:
    return _peer_modules()[0].Mamba2Config(
        hidden_size=config.embed_dim,
        num_heads=config.nheads,
        head_dim=config.headdim,
        state_size=config.d_state,
        n_groups=1,
        expand=config.expand,
        conv_kernel=config.d_conv,
        chunk_size=chunk,
        rms_norm=True,
        use_bias=False,
        use_conv_bias=True,
        layer_norm_epsilon=EPS,
        time_step_limit=(0.0, float("inf")),
        hidden_act="silu",
    )


class TransformersMixer(nn.Module):
    """``Mamba2Mixer`` with the weights of our layer; it knows no packing: a call per sequence.

    With ``core``, only what lies between the projections: [L, 2I + 2N + H] -> [L, I].
    """

    def __init__(self, layer: Mamba2, config: ModelConfig, chunk: int, core: bool = False) -> None:
        super().__init__()
        self.mixer = _peer_modules()[1].Mamba2Mixer(_peer_config(config, chunk), layer_idx=0)
        self.mixer.load_state_dict(layer.state_dict(), strict=True)
        if core:
            _remove_projections(self.mixer)
            # In training mode it first offers both projections to a fused CUDA kernel. The mode
            # decides nothing else: there is no dropout.
            self.mixer.eval()

    def forward(self, x_LD: Tensor, lengths: Lengths) -> Tensor:
        return torch.cat([self.mixer(piece[None])[0] for piece in x_LD.split(lengths)])


def _peer_block(block: nn.Module, config: ModelConfig, chunk: int) -> Any:
    """``Mamba2Block`` (norm, mixer, residual in fp32) with the weights of our block."""
    peer = _peer_modules()[1].Mamba2Block(_peer_config(config, chunk), layer_idx=0)
    names = {"0": "norm", "1": "mixer"}
    weights = {}
    for key, value in block.state_dict().items():
        part, name = key.split(".", 1)
        weights[f"{names[part]}.{name}"] = value
    peer.load_state_dict(weights, strict=True)
    return peer


class TransformersBlock(nn.Module):
    """``Mamba2Block`` with the weights of our block, a call per sequence."""

    def __init__(self, block: ResidualBlock, config: ModelConfig, chunk: int) -> None:
        super().__init__()
        self.block = _peer_block(block, config, chunk)

    def forward(self, x_LD: Tensor, lengths: Lengths) -> Tensor:
        return torch.cat([self.block(piece[None])[0] for piece in x_LD.split(lengths)])


# -------------------------------------------------------------------------------- backbones


class OurBackbone(nn.Module):
    """FMamba from packed tokens to the predicted next tokens [L, V]."""

    def __init__(self, model: FMamba) -> None:
        super().__init__()
        self.model = model
        self.embedder = model.embedder

    def forward(self, packed: PackedTokens) -> Tensor:
        prediction = self.model.forward_tokens(packed).prediction
        assert prediction is not None
        return prediction


class TransformersBackbone(nn.Module):
    """FMamba whose blocks are transformers' ``Mamba2Block`` (norm, mixer, residual in fp32)."""

    def __init__(self, model: FMamba, chunk: int) -> None:
        super().__init__()
        self.embedder = copy.deepcopy(model.embedder)
        self.norm = copy.deepcopy(model.norm)
        self.output_layer = copy.deepcopy(model.output_layer)
        self.blocks = nn.ModuleList(
            _peer_block(block, model.config, chunk) for block in model.mamba_layers
        )

    def forward(self, packed: PackedTokens) -> Tensor:
        """[L, V] predicted next tokens of one window."""
        assert len(packed.lengths) == 1 and self.output_layer is not None
        x = self.embedder(packed.tokens, packed.token_index)[None]
        for block in self.blocks:
            x = block(x)
        return self.output_layer(self.norm(x[0]))
