"""One Mamba2 layer against Hugging Face transformers' Mamba2Mixer (torch path), same weights."""

from __future__ import annotations

import types

import pytest
import torch

from neuromamba.layers.mamba2 import Mamba2
from neuromamba.layers.ssd import BACKENDS

CPU_BACKENDS = sorted(n for n, b in BACKENDS.items() if b.why_not(torch.device("cpu")) is None)
D_MODEL, D_STATE, HEADDIM, D_CONV, EXPAND = 24, 6, 24, 4, 2
# Largest difference over the largest magnitude of the same tensor. float32: output and input
# gradient agree to rounding; the gradients of dt_bias and A_log sum differences of cumulative sums
# over all tokens and lose one to two digits in a chunked scan.
BOUND = {torch.float64: 1e-11, torch.float32: 1e-4}
OUTPUT_BOUND = {torch.float64: 1e-12, torch.float32: 3e-6}


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """float32: the peer as it is. float64: the peer with its "wide" type set to float64.

    Its source widens to float32 by name (``.float()``, ``.to(torch.float32)``), which would narrow
    float64 inputs; with these two names pointing at float64 the same lines run in float64.
    """
    if request.param == torch.float64:
        modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
        wide = types.SimpleNamespace(**{**vars(torch), "float32": torch.float64})
        monkeypatch.setattr(modeling, "torch", wide)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return request.param


def peer_layer(chunk_size: int) -> torch.nn.Module:
    configuration = pytest.importorskip("transformers.models.mamba2.configuration_mamba2")
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    config = configuration.Mamba2Config(
        hidden_size=D_MODEL,
        num_heads=EXPAND * D_MODEL // HEADDIM,
        head_dim=HEADDIM,
        state_size=D_STATE,
        n_groups=1,
        expand=EXPAND,
        conv_kernel=D_CONV,
        chunk_size=chunk_size,
        rms_norm=True,
        use_bias=False,
        use_conv_bias=True,
        layer_norm_epsilon=1e-5,
        time_step_limit=(0.0, float("inf")),
        hidden_act="silu",
    )
    return modeling.Mamba2Mixer(config, layer_idx=0)


def layer_pair(backend: str, chunk_size: int, dtype: torch.dtype) -> tuple[Mamba2, torch.nn.Module]:
    """Ours and the peer with the same weights, none of them at a value that hides a mistake."""
    torch.manual_seed(0)
    ours = Mamba2(
        d_model=D_MODEL,
        d_state=D_STATE,
        headdim=HEADDIM,
        d_conv=D_CONV,
        expand=EXPAND,
        ssd_backend=backend,
    )
    with torch.no_grad():
        ours.D.copy_(torch.tensor([0.7, -1.3]))
        ours.A_log.copy_(torch.tensor([-1.0, 1.5]))
        ours.dt_bias.copy_(torch.tensor([-2.0, 0.5]))
        ours.norm.weight.uniform_(0.5, 1.5)
    peer = peer_layer(chunk_size)
    assert ours.state_dict().keys() == peer.state_dict().keys()
    peer.load_state_dict(ours.state_dict(), strict=True)
    return ours.to(dtype), peer.to(dtype)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    ("length", "chunk_size"), [(1, 64), (2, 64), (3, 64), (63, 64), (64, 64), (65, 64), (201, 32)]
)
def test_layer_equals_transformers(
    backend: str, length: int, chunk_size: int, dtype: torch.dtype
) -> None:
    ours, peer = layer_pair(backend, chunk_size, dtype)
    x = torch.randn(length, D_MODEL, dtype=dtype, requires_grad=True)
    x_peer = x.detach().clone().requires_grad_()
    weight = torch.randn(length, D_MODEL, dtype=dtype)

    y = ours(x, (length,))
    y_peer = peer(x_peer[None])[0]
    assert y_peer.dtype == dtype
    assert relative_error(y, y_peer) <= OUTPUT_BOUND[dtype]
    (y * weight).sum().backward()
    (y_peer * weight).sum().backward()
    assert x.grad is not None and x_peer.grad is not None
    errors = {"input": relative_error(x.grad, x_peer.grad)}
    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = theirs[name].grad
        assert parameter.grad is not None and expected is not None, name
        if length > 1 or name != "A_log":  # one token: nothing decays, both gradients are 0
            assert expected.abs().max() > 0, name
        errors[name] = relative_error(parameter.grad, expected)
    assert max(errors.values()) <= BOUND[dtype], errors


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_packed_layer_equals_transformers_on_each_sequence(
    backend: str, dtype: torch.dtype
) -> None:
    """Samples of 5, 70 and 1 tokens packed: what the peer gives for each by itself."""
    ours, peer = layer_pair(backend, 16, dtype)
    lengths = (5, 70, 1)
    x = torch.randn(sum(lengths), D_MODEL, dtype=dtype)
    with torch.no_grad():
        packed = ours(x, lengths)
        separate = torch.cat([peer(piece[None])[0] for piece in x.split(lengths)])
    assert relative_error(packed, separate) <= OUTPUT_BOUND[dtype]
