"""SwiFT, the 4D Swin transformer: its size, its windows, and what its tokens see of each other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neuromamba.common.errors import UserInputError
from neuromamba.config.model import MODEL_DEFAULTS, HeadConfig, ModelConfig
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.flop_formula import forward_terms, total
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.swift import (
    PatchMerging,
    SwiFT,
    WindowAttention,
    WindowLayout,
    partition,
    unpartition,
)
from neuromamba.fmamba.tokenizer import PackedTokens, pack_dense

Place = tuple[int, ...]


def tiny(**changes: object) -> ModelConfig:
    """Two stages; the grid of 5 x 4 x 6 x 3 patches is no multiple of windows or of merging."""
    values: dict = {
        "model": "swift",
        "img_size": (10, 8, 12, 3),
        "patch_size": (2, 2, 2, 1),
        "embed_dim": 8,
        "swin_depths": (2, 2),
        "swin_heads": (2, 4),
        "swin_window": (2, 2, 4, 2),
    }
    return ModelConfig(**(values | changes))


def swift(config: ModelConfig) -> SwiFT:
    torch.manual_seed(0)
    model = build_model(config, output_layer=False)
    assert isinstance(model, SwiFT)
    return model.eval()


def windows(config: ModelConfig, count: int = 2) -> Tensor:
    return torch.randn(count, 1, *config.img_size, generator=torch.Generator().manual_seed(1))


def test_published_size() -> None:
    config = ModelConfig(model="swift", **MODEL_DEFAULTS["swift"])
    with torch.device("meta"):
        model = build_model(config, output_layer=False)
        head = build_head(HeadConfig(), config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_315_212
    assert sum(parameter.numel() for parameter in head.parameters()) == 2 * 288 + 2
    assert config.token_grid == (16, 16, 16, 20)
    assert config.swin_widths == (36, 72, 144, 288)


def test_shapes() -> None:
    config = tiny()
    fmri = windows(config)
    out = swift(config)(fmri)
    assert out.features.shape == (2 * config.num_tokens, 16)
    assert out.tokens.shape == (2 * config.num_tokens, 8)
    assert out.lengths.tolist() == [config.num_tokens] * 2 and out.prediction is None
    for name, width in (("mean", 16), ("mean_sd", 32), ("regions", 32 * 27), ("attention", 16)):
        head = HeadConfig(pool=name, out_features=3)
        assert head.pooled_features(config) == width
        logits = build_head(head, config)(out.features, pack_dense(fmri, config))
        assert logits.shape == (2, 3)


def test_samples_do_not_depend_on_their_batch() -> None:
    config = tiny()
    model, fmri = swift(config), windows(config)
    together = model(fmri).features.split(config.num_tokens)
    for one, alone in zip(fmri, together, strict=True):
        torch.testing.assert_close(model(one[None]).features, alone)


def test_mean_over_patches_is_that_over_merged_tokens() -> None:
    config = tiny(img_size=(8, 8, 8, 3))
    model = swift(config)
    merged: list[Tensor] = []
    model.norm.register_forward_hook(lambda module, inputs, output: merged.append(inputs[0]))
    features = model(windows(config, 1)).features
    expected = torch.nn.functional.layer_norm(merged[0], (16,), model.norm.weight, model.norm.bias)
    torch.testing.assert_close(features.mean(0), expected.flatten(0, 4).mean(0))
    # A patch has the features of the token that it was merged into.
    rows = features.view(4, 4, 4, 3, 16)
    for x, y, z, t in itertools.product(range(4), range(4), range(4), range(3)):
        torch.testing.assert_close(rows[x, y, z, t], expected[0, x // 2, y // 2, z // 2, t])


# --- windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(1, 1, 1, 1), (2, 4, 3, 1), (4, 4, 6, 2)])
def test_partition_and_its_inverse(window: Place) -> None:
    grid = (4, 4, 6, 2)
    x = torch.randn(3, *grid, 5)
    cut = partition(x, window)
    assert cut.shape == (3 * math.prod(grid) // math.prod(window), math.prod(window), 5)
    assert torch.equal(unpartition(cut, window, grid), x)
    wx, wy, wz, wt = window
    assert torch.equal(cut[0].view(*window, 5), x[0, :wx, :wy, :wz, :wt])


def test_windows_are_cut_to_the_grid() -> None:
    layout = WindowLayout.of((2, 8, 5, 3), (4, 4, 4, 4), shifted=True)
    assert layout == ((2, 4, 4, 3), (0, 2, 2, 0), (2, 8, 8, 3))
    assert WindowLayout.of((8, 8, 8, 8), (4, 4, 4, 4), shifted=False).groups((8, 8, 8, 8)) is None


def attention_by_loops(layer: WindowAttention, x: Tensor, window: Place, shift: Place) -> Tensor:
    """Attention of every token of a grid (X, Y, Z, T, C), one pair after the other.

    Two tokens attend to each other if they are in one window of the shifted division: nothing is
    rolled, padded or masked.
    """
    places = list(itertools.product(*map(range, x.shape[:4])))

    def window_of(place: Place) -> Place:
        return tuple((p - s) // w for p, s, w in zip(place, shift, window, strict=True))

    q, k, v = layer.qkv(x).unflatten(-1, (3, layer.heads, -1)).unbind(-3)
    out = torch.empty_like(v)
    for here in places:
        seen = [there for there in places if window_of(there) == window_of(here)]
        for head in range(layer.heads):
            scores = torch.stack([q[here][head] @ k[there][head] for there in seen])
            weights = (scores / math.sqrt(q.shape[-1])).softmax(0)
            out[here][head] = sum(
                weight * v[there][head] for weight, there in zip(weights, seen, strict=True)
            )
    return layer.proj(out.flatten(-2))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("grid", "window"),
    [
        ((4, 4, 2, 4), (2, 2, 2, 2)),
        ((5, 3, 4, 3), (2, 2, 4, 2)),  # padded
        ((6, 1, 3, 2), (3, 4, 4, 4)),  # an odd window, and windows cut to the grid
    ],
)
def test_attention_is_that_of_loops(grid: Place, window: Place, shifted: bool) -> None:
    torch.manual_seed(2)
    layout = WindowLayout.of(grid, window, shifted)
    layer = WindowAttention(6, 2, grid, layout)
    x = torch.randn(2, *grid, 6)
    found = layer(x)
    for one, expected in zip(found, x, strict=True):
        by_loops = attention_by_loops(layer, expected, layout.window, layout.shift)
        torch.testing.assert_close(one, by_loops, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_token_sees_its_window_only(shifted: bool) -> None:
    grid, window = (4, 4, 4, 4), (2, 2, 2, 2)
    torch.manual_seed(3)
    layer = WindowAttention(4, 1, grid, WindowLayout.of(grid, window, shifted))
    x = torch.randn(1, *grid, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, 1, 1, 1, 1].sum(), x)
    seen = {tuple(place) for place in gradient[0].abs().sum(-1).nonzero().tolist()}
    first = 1 if shifted else 0
    assert seen == set(itertools.product(range(first, first + 2), repeat=4))


def test_last_stage_sees_all_tokens() -> None:
    config = tiny(swin_depths=(1, 1), img_size=(16, 8, 8, 4))
    model = swift(config)
    packed = pack_dense(windows(config, 1), config)
    tokens = packed.tokens.clone().requires_grad_()
    features = model.forward_tokens(packed._replace(tokens=tokens)).features
    (gradient,) = torch.autograd.grad(features[0, 0], tokens)
    assert (gradient.abs().sum(1) > 0).all()


def test_merging_takes_eight_neighbours_and_keeps_time() -> None:
    torch.manual_seed(4)
    layer = PatchMerging(3)
    x = torch.randn(1, 4, 3, 2, 5, 3)
    out = layer(x)
    assert out.shape == (1, 2, 2, 1, 5, 6)
    missing = torch.zeros(3)  # behind the odd axis
    for gx, gy, t in itertools.product(range(2), range(2), range(5)):
        values = [
            x[0, 2 * gx + i, 2 * gy + j, k, t] if 2 * gy + j < 3 else missing
            for i, j, k in itertools.product(range(2), repeat=3)
        ]
        expected = layer.reduction(layer.norm(torch.cat(values)))
        torch.testing.assert_close(out[0, gx, gy, 0, t], expected)


def test_encodings_tell_places_and_times_apart() -> None:
    """Without them a window of one value everywhere would have one feature everywhere."""
    config = tiny(img_size=(8, 8, 8, 4), swin_depths=(1,), swin_heads=(2,))
    model = swift(config)
    constant = torch.ones(1, 1, *config.img_size)
    assert len(model(constant).features.unique(dim=0)) == config.num_tokens
    with torch.no_grad():
        model.stages[0].place_encoding.zero_()
    rows = model(constant).features.view(*config.token_grid, -1)
    torch.testing.assert_close(rows[:1, :1, :1].expand_as(rows), rows)
    assert (rows[0, 0, 0, 0] - rows[0, 0, 0, 1]).abs().max() > 1e-4


# --- training and cost --------------------------------------------------------------------------


def test_checkpointed_activations_give_the_same_gradients() -> None:
    config = tiny()
    fmri, gradients = windows(config, 1), []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = SwiFT(config, activation_checkpointing=checkpointed)
        model(fmri).features[:, :3].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(gradient is not None for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_formula_counts_the_products_of_the_counter() -> None:
    """On a grid that nothing has to be padded for."""
    config = tiny(img_size=(16, 8, 8, 4), swin_window=(4, 2, 2, 2))
    model, packed = swift(config), pack_dense(windows(config, 1), config)
    # The counter knows no fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.forward_tokens(packed)
    counted = counter.get_total_flops()
    assert counted == total(forward_terms(config, config.num_tokens), products_only=True)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swin_depths": ()}, "--swin_depths: got 0 stages, expected 1 to 8"),
        ({"swin_depths": (1,) * 9}, "--swin_depths: got 9 stages"),
        ({"swin_depths": (2, 0)}, "--swin_depths: got 0"),
        ({"swin_heads": (2,)}, "--swin_heads: got 1 numbers, expected 2"),
        ({"swin_heads": (2, 3)}, "--swin_heads: 3 heads do not divide the width 16"),
        ({"swin_window": (2, 2)}, r"--swin_window: got \[2, 2\], expected four numbers"),
        ({"swin_window": (2, 2, 2, 0)}, "--swin_window: got 0"),
        ({"anatomy": True}, "--channels: anatomy is only used with --model fmamba"),
    ],
)
def test_refused_architectures(changes: dict, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        tiny(**changes)


def test_refused_uses() -> None:
    config = tiny()
    with pytest.raises(UserInputError, match="--model: swift predicts no tokens"):
        build_model(config, output_layer=True)
    model, packed = swift(config), pack_dense(windows(config, 1), config)
    some = PackedTokens(packed.tokens[:-1], packed.token_index[:-1], (config.num_tokens - 1,))
    with pytest.raises(ValueError, match="SwiFT reads all 360 tokens"):
        model.forward_tokens(some)
