"""What an output may depend on: the earlier kept tokens of its own sample, and all of them."""

from __future__ import annotations

import pytest
import torch

from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.build import build_model
from neuromamba.fmamba.tokenizer import PackedTokens, pack_dense
from neuromamba.layers.ssd import BACKENDS

CPU_BACKENDS = sorted(n for n, b in BACKENDS.items() if b.why_not(torch.device("cpu")) is None)
CONFIG = ModelConfig(
    img_size=(12, 12, 12, 8), patch_size=(3, 3, 3, 2), embed_dim=16, depth=2, background="zero"
)
UNION = ModelConfig(
    img_size=(12, 12, 12, 8),
    patch_size=(3, 3, 3, 2),
    embed_dim=16,
    depth=2,
    background="zero",
    union_mask=True,
)


def model(backend: str, dtype: torch.dtype, config: ModelConfig = CONFIG) -> FMamba:
    torch.manual_seed(3)
    built = build_model(config, ssd_backend=backend).to(dtype).eval()
    for name, parameter in built.named_parameters():
        # Slow decays, so that an early token still shows in the last output.
        if name.endswith("A_log"):
            torch.nn.init.constant_(parameter, -2.0)
    return built


def volumes(dtype: torch.dtype, samples: int = 3) -> torch.Tensor:
    """Windows (B, 1, 12, 12, 12, 8) of noise, each with its own empty part."""
    generator = torch.Generator().manual_seed(1)
    fmri = torch.randn(samples, 1, 12, 12, 12, 8, generator=generator, dtype=torch.float64)
    for i in range(samples):
        fmri[i, :, : 3 * (i + 1)] = 0.0
        fmri[i, :, :, 6:9, : 3 * i + 3] = 0.0
    return fmri.to(dtype)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("position", [0, 1, 63, 64, 100])
def test_token_changes_only_itself_and_later_outputs(backend: str, position: int) -> None:
    """In the second of two packed samples; chunk borders (64) included."""
    backbone = model(backend, torch.float64)
    packed = pack_dense(volumes(torch.float64, 2), CONFIG)
    start, length = packed.lengths[0], packed.lengths[1]
    assert position < length - 1
    changed = packed.tokens.clone()
    changed[start + position] += 1.0
    with torch.no_grad():
        before = backbone.forward_tokens(packed)
        after = backbone.forward_tokens(packed._replace(tokens=changed))
    assert before.prediction is not None and after.prediction is not None
    for one, other in (
        (before.features, after.features),
        (before.prediction, after.prediction),
    ):
        difference = (one - other).abs().amax(1)
        assert difference[: start + position].max() == 0.0
        # The token itself and every later one see the change, down to the last.
        assert difference[start + position :].min() > 1e-9


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_gradient_reaches_all_earlier_tokens_and_no_other(backend: str) -> None:
    backbone = model(backend, torch.float64)
    packed = pack_dense(volumes(torch.float64), CONFIG)
    tokens = packed.tokens.clone().requires_grad_()
    out = backbone.forward_tokens(packed._replace(tokens=tokens))
    first = packed.lengths[0]  # first token of the second sample
    target = first + packed.lengths[1] - 5
    out.features[target].square().sum().backward()
    assert tokens.grad is not None
    reach = tokens.grad.abs().amax(1)
    assert reach[:first].max() == 0.0 and reach[target + 1 :].max() == 0.0
    assert reach[first : target + 1].min() > 0.0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_output_does_not_depend_on_batch_mates(backend: str) -> None:
    """Each sample alone, with mates, and with mates in another order: equal within 1e-6."""
    backbone = model(backend, torch.float32)
    fmri = volumes(torch.float32)
    order = [2, 0, 1]
    with torch.no_grad():
        batch, reordered = backbone(fmri), backbone(fmri[order])
        lengths = batch.lengths.tolist()
        assert len(set(lengths)) == 3
        assert reordered.lengths.tolist() == [lengths[i] for i in order]
        shuffled = reordered.features.split(reordered.lengths.tolist())
        for i, features in enumerate(batch.features.split(lengths)):
            alone = backbone(fmri[i : i + 1])
            assert torch.equal(alone.token_index, batch.token_index.split(lengths)[i])
            torch.testing.assert_close(alone.features, features, rtol=0, atol=1e-6)
            torch.testing.assert_close(shuffled[order.index(i)], features, rtol=0, atol=1e-6)


def test_union_mask_depends_on_batch_mates() -> None:
    """The reference's option does what the test above forbids: all samples keep the same tokens."""
    own = pack_dense(volumes(torch.float32), CONFIG)
    union = pack_dense(volumes(torch.float32), UNION)
    assert len(set(own.lengths)) == 3 and len(set(union.lengths)) == 1
    kept = [set(index.tolist()) for index in own.token_index.split(own.lengths)]
    for index in union.token_index.split(union.lengths):
        assert set(index.tolist()) == set.union(*kept)


def test_mask_overrules_intensity() -> None:
    """With a brain mask its tokens are kept, whatever their values; (B, X, Y, Z) per sample."""
    fmri = torch.zeros(2, 1, 12, 12, 12, 8)
    mask = torch.zeros(2, 12, 12, 12, dtype=torch.bool)
    mask[0, 0, 0, 0] = True  # first patch of the grid
    mask[1, 11, 11, 11] = True  # last patch
    packed: PackedTokens = pack_dense(fmri, CONFIG, mask)
    assert packed.lengths == (4, 4)  # 8 frames in patches of 2
    assert packed.token_index.tolist() == [0, 1, 2, 3, 252, 253, 254, 255]
