"""The model against the independent numpy program in ``tests/golden``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.losses import next_token_errors, next_token_targets
from neuromamba.fmamba.positional import grid_coordinates, nerf_features
from neuromamba.fmamba.tokenizer import PackedTokens, patchify
from neuromamba.layers.ssd import BACKENDS
from tests.golden import fmamba_numpy as golden
from tests.golden.make_golden import (
    DEPTH,
    GOLDEN_FILE,
    GRID,
    HEAD_DEPTH,
    IMG_SIZE,
    PATCH_SIZE,
    D,
    N,
    P,
    draw,
    make_case,
)

CPU_BACKENDS = sorted(n for n, b in BACKENDS.items() if b.why_not(torch.device("cpu")) is None)
# float64 differs by the order of additions only; float32 also by rounding the inputs of each layer.
BOUND = {torch.float64: 1e-10, torch.float32: 1e-4}
Case = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def case() -> Case:
    with np.load(GOLDEN_FILE) as stored:
        return dict(stored)


def config(**changes: object) -> ModelConfig:
    fields = {
        "img_size": IMG_SIZE,
        "patch_size": PATCH_SIZE,
        "embed_dim": D,
        "depth": DEPTH,
        "d_state": N,
        "headdim": P,
        **changes,
    }
    return ModelConfig(**fields)  # type: ignore[arg-type]


def load(module: torch.nn.Module, weights: golden.Weights, dtype: torch.dtype) -> torch.nn.Module:
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    module.load_state_dict(tensors, strict=True)
    return module.to(dtype).eval()


def golden_backbone(case: Case, dtype: torch.dtype, backend: str, **changes: object):
    weights = golden.part(case, "weights/")
    weights = {k: v for k, v in weights.items() if not k.startswith(("linear_", "mamba_head."))}
    model = build_model(config(**changes), ssd_backend=backend)
    # Load in float64: `load_state_dict` into float32 would be exact too, the numbers are short.
    return load(model.double(), weights, dtype)


def close(actual: torch.Tensor, expected: np.ndarray, bound: float) -> None:
    assert tuple(actual.shape) == expected.shape
    error = np.abs(actual.detach().double().numpy() - expected).max()
    assert error <= bound, f"largest difference {error:.2e}, allowed {bound:.0e}"


def test_committed_file_is_what_the_program_makes(case: Case) -> None:
    made = make_case()
    assert made.keys() == case.keys()
    assert GOLDEN_FILE.stat().st_size < 300 * 1024
    for name, value in made.items():
        drawn = name.startswith("weights/") or name == "input"
        # Results may differ in the last bits: numpy.dot adds in another order on another CPU.
        np.testing.assert_allclose(value, case[name], rtol=0, atol=0 if drawn else 1e-12)


def test_case_is_not_trivial(case: Case) -> None:
    """Different lengths, gaps in the index, tokens with background voxels inside."""
    first, second = (case[f"sample{b}/token_index"] for b in range(2))
    assert len(first) != len(second) and max(len(first), len(second)) < len(case["nerf_features"])
    assert (np.diff(first) > 1).any()
    partly = (case["sample0/tokens"] == case["input"][0].min()).mean(1)
    assert ((partly > 0) & (partly < 1)).any()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_backbone(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Tokens, index, embedding, every layer, features and prediction of a batch of two."""
    model = golden_backbone(case, dtype, backend)
    seen: dict[str, torch.Tensor] = {}
    model.embedder.register_forward_hook(lambda m, i, out: seen.update({"embedded": out}))
    for i, block in enumerate(model.mamba_layers):
        block[1].register_forward_hook(
            lambda m, i, out, name=f"block{i}.out": seen.update({name: out})
        )
        block[1].in_proj.register_forward_hook(
            lambda m, i, out, name=f"block{i}.zxbcdt": seen.update({name: out})
        )
        block[1].out_proj.register_forward_hook(
            lambda m, i, out, name=f"block{i}.gated": seen.update({name: i[0]})
        )
    out = model(torch.from_numpy(case["input"]).to(dtype))
    seen |= {"features": out.features, "prediction": out.prediction, "tokens": out.tokens}
    assert len(seen) == 4 + 3 * DEPTH
    lengths = out.lengths.tolist()
    assert lengths == [len(case[f"sample{b}/token_index"]) for b in range(2)]
    index = np.concatenate([case[f"sample{b}/token_index"] for b in range(2)])
    np.testing.assert_array_equal(out.token_index.numpy(), index)
    for name, value in seen.items():
        for b, sample in enumerate(value.split(lengths)):
            close(sample, case[f"sample{b}/{name}"], BOUND[dtype])


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["linear", "mamba"])
def test_heads(case: Case, name: str, dtype: torch.dtype, backend: str) -> None:
    model = config()
    weights = golden.part(case, f"weights/{name}_head.")
    head = build_head(HeadConfig(name=name, mamba_depth=HEAD_DEPTH), model, backend)
    head = load(head.double(), weights, dtype)
    samples = [torch.from_numpy(case[f"sample{b}/features"]).to(dtype) for b in range(2)]
    index = torch.cat([torch.from_numpy(case[f"sample{b}/token_index"]) for b in range(2)])
    lengths = (len(samples[0]), len(samples[1]))
    logits = head(torch.cat(samples), PackedTokens(torch.zeros(0), index, lengths))
    expected = np.stack([case[f"sample{b}/{name}_head"] for b in range(2)])
    close(logits, expected, BOUND[dtype] * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_next_token_loss(case: Case, dtype: torch.dtype) -> None:
    """The mean over all pairs of the batch, none of them across the two samples."""
    out = golden_backbone(case, dtype, "cpu")(torch.from_numpy(case["input"]).to(dtype))
    targets = next_token_targets(tuple(out.lengths.tolist()))
    assert len(targets) == out.lengths.sum() - 2
    errors = next_token_errors(out.prediction, out.tokens, targets, lambda rows: rows)
    loss = errors.double().mean().item()
    # The errors are summed in float32 whatever the model's type.
    assert loss == pytest.approx(case["next_token_loss"].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("background", "keep_background"), [("zero", False), ("min", True), ("min", False)]
)
def test_background_rules(case: Case, background: str, keep_background: bool) -> None:
    """Zero background with values of both signs; all tokens; a window of negative values."""
    volume = case["input"][:1].copy()
    level = volume.min()
    if background == "zero":
        volume = np.where(volume == level, 0.0, volume)
        assert (volume < 0).any() and (volume > 0).any()
    else:
        volume -= 100.0
    model = golden_backbone(
        case, torch.float64, "cpu", background=background, keep_background=keep_background
    )
    out = model(torch.from_numpy(volume))
    expected = golden.backbone(
        volume[0],
        golden.part(case, "weights/"),
        patch_size=PATCH_SIZE,
        depth=DEPTH,
        d_state=N,
        headdim=P,
        background=background,
        keep_background=keep_background,
    )
    np.testing.assert_array_equal(out.token_index.numpy(), expected["token_index"])
    close(out.tokens, expected["tokens"], 0.0)
    close(out.prediction, expected["prediction"], 1e-9)


def test_patches_of_two_channels() -> None:
    """The channel is the fastest axis inside a token."""
    volume = draw(np.random.RandomState(7), 2, *IMG_SIZE)
    tokens = patchify(torch.from_numpy(volume)[None], PATCH_SIZE)[0]
    np.testing.assert_array_equal(tokens.numpy(), golden.extract_tokens(volume, PATCH_SIZE))


@pytest.mark.parametrize("grid", [GRID, (5, 1, 3, 2)])
def test_nerf_features(grid: tuple[int, ...]) -> None:
    expected = golden.nerf_features(grid)
    assert expected.shape[1] == 84
    coordinates = grid_coordinates(grid)
    close(coordinates, expected[:, :4], 1e-7)
    close(nerf_features(torch.from_numpy(expected[:, :4])), expected, 1e-12)
    # In float32 the angle 2^9 x carries an error of 2^9 * 6e-8.
    close(nerf_features(coordinates), expected, 1e-4)
