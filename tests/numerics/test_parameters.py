"""Sizes, names and layout that released checkpoints fix: nothing here may drift."""

from __future__ import annotations

import io
import itertools

import pytest
import torch

from neuromamba.config.model import VARIANTS, ModelConfig
from neuromamba.fmamba.build import build_model, load_model_config
from neuromamba.fmamba.positional import grid_coordinates, nerf_features
from neuromamba.fmamba.tokenizer import pack_dense, patchify, unpatchify

# Variant: (parameters, MiB of the saved state dict). Parameters of the released sizes; Large
# follows from its published count. The 42 MB of the README is Base with its stored encoding.
PUBLISHED = {
    "small": (1_416_056, 25.4),
    "base": (3_082_296, 41.8),
    "medium": (5_387_512, 60.6),
    "large": (11_914_872, 105.5),
}
TOKENS, VALUES, HEADS, DEPTH, TAPS = 40_960, 432, 2, 12, 4


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def variant(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module]:
    path = f"configs/neuromamba_{request.param}.yaml"
    return request.param, build_model(load_model_config(path))


def expected_shapes(d: int) -> dict[str, tuple[int, ...]]:
    n, inner = d // 4, 2 * d
    shapes = {
        "embedder.projection": (VALUES, d),
        "embedder.pos": (1, TOKENS, d),
        "norm.weight": (d,),
        "output_layer.weight": (VALUES, d),
        "output_layer.bias": (VALUES,),
    }
    for i in range(DEPTH):
        shapes[f"mamba_layers.{i}.0.weight"] = (d,)
        for name, shape in {
            "in_proj.weight": (2 * inner + 2 * n + HEADS, d),
            "conv1d.weight": (inner + 2 * n, 1, TAPS),
            "conv1d.bias": (inner + 2 * n,),
            "dt_bias": (HEADS,),
            "A_log": (HEADS,),
            "D": (HEADS,),
            "norm.weight": (inner,),
            "out_proj.weight": (d, inner),
        }.items():
            shapes[f"mamba_layers.{i}.1.{name}"] = shape
    return shapes


def test_published_sizes(variant: tuple[str, torch.nn.Module]) -> None:
    name, model = variant
    parameters, mebibytes = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = model.state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert len(shapes) == 113
    assert shapes == expected_shapes(VARIANTS[name])
    assert {value.dtype for value in state.values()} == {torch.float32}
    file = io.BytesIO()
    torch.save({f"_forward_module.model.{k}": v for k, v in state.items()}, file)
    assert abs(file.tell() / 2**20 - mebibytes) < 0.1


def test_position_is_a_stored_buffer(variant: tuple[str, torch.nn.Module]) -> None:
    _, model = variant
    assert "embedder.pos" in dict(model.named_buffers())
    assert "embedder.pos" not in dict(model.named_parameters())
    assert "embedder.pos" in model.state_dict()


def test_backbone_without_output_layer_has_111_keys() -> None:
    config = load_model_config("configs/neuromamba_small.yaml")
    keys = set(build_model(config, output_layer=False).state_dict())
    assert keys == set(expected_shapes(128)) - {"output_layer.weight", "output_layer.bias"}


def test_position_is_a_projection_of_the_nerf_features() -> None:
    """pos = features [G, 84] times one matrix ~ N(0, 1), the same in every process and seed."""
    config = ModelConfig(img_size=(24, 18, 24, 8), embed_dim=128, depth=1)
    torch.manual_seed(0)
    pos = build_model(config).embedder.pos
    torch.manual_seed(1)
    again = build_model(config).embedder.pos
    assert pos is not None and again is not None and torch.equal(pos, again)
    features = nerf_features(grid_coordinates(config.token_grid)).double()
    matrix = torch.linalg.pinv(features, rtol=1e-6) @ pos[0].double()
    torch.testing.assert_close(features @ matrix, pos[0].double(), rtol=0, atol=1e-4)
    # E[pos^2] = |features|^2 for a standard normal matrix; 128 columns give it to 12 %.
    ratio = pos[0].double().square().mean(1) / features.square().sum(1)
    assert (ratio - 1).abs().max() < 0.6 and abs(ratio.mean().item() - 1) < 0.2


def test_token_order_is_proven_by_coordinates() -> None:
    """A volume whose values spell their own coordinates, on a grid with four different axes."""
    img_size, patch_size = (12, 24, 18, 10), (6, 4, 3, 2)
    grid = [s // p for s, p in zip(img_size, patch_size, strict=True)]
    x, y, z, t = torch.meshgrid(*map(torch.arange, img_size), indexing="ij")
    volume = (((x * 100 + y) * 100 + z) * 100 + t).double()[None, None]
    tokens = patchify(volume, patch_size)[0]
    for index, place in enumerate(itertools.product(*map(range, grid))):
        if index % 37:  # a sample of the 360 tokens, every axis in it
            continue
        for voxel, inner in enumerate(itertools.product(*map(range, patch_size))):
            at = [g * p + i for g, p, i in zip(place, patch_size, inner, strict=True)]
            expected = ((at[0] * 100 + at[1]) * 100 + at[2]) * 100 + at[3]
            assert tokens[index, voxel].item() == expected, (index, voxel)
    config = ModelConfig(img_size=img_size, patch_size=patch_size, embed_dim=16, depth=1)
    assert torch.equal(unpatchify(tokens[None], config), volume)


def test_position_follows_the_token() -> None:
    """A kept token carries the encoding of its place in the full grid, not of its rank."""
    config = ModelConfig(
        img_size=(12, 12, 12, 4), embed_dim=16, depth=1, background="zero", dropout=0.0
    )
    fmri = torch.zeros(1, 1, 12, 12, 12, 4)
    fmri[0, 0, 7, 1, 8, 2] = 1.0  # patch (1, 0, 1), second pair of frames
    packed = pack_dense(fmri, config)
    index = ((1 * 2 + 0) * 2 + 1) * 2 + 1
    assert packed.token_index.tolist() == [index]
    value = ((1 * 6 + 1) * 6 + 2) * 2 + 0  # voxel (1, 1, 2, 0) inside the patch
    assert packed.tokens[0].nonzero().flatten().tolist() == [value]
    embedder = build_model(config).embedder
    assert embedder.pos is not None
    embedded = embedder(packed.tokens, packed.token_index)[0]
    expected = embedder.projection[value] + embedder.pos[0, index]
    torch.testing.assert_close(embedded, expected)
