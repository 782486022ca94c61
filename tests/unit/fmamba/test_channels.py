"""The embedding of the mean image beside that of the signal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.config.data import DataConfig
from neuromamba.config.model import ModelConfig
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.optimizer import layers_from_head
from neuromamba.fmamba.raw_features import raw_config
from neuromamba.fmamba.tokenizer import PackedTokens

LENGTHS = (6, 3)  # tokens: two places of three, and one


def backbone(seed: int = 0, **changes: Any) -> FMamba:
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "img_size": (6, 6, 6, 6),
        "patch_size": (3, 3, 2, 2),
        "embed_dim": 16,
        "depth": 2,
    }
    return FMamba(ModelConfig(**values | changes), ssd_backend="reference").eval()


def packed(anatomy: Tensor | None) -> PackedTokens:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(sum(LENGTHS), 36, generator=generator)
    return PackedTokens(tokens, torch.arange(sum(LENGTHS)), LENGTHS, anatomy)


def images() -> Tensor:
    return torch.randn(3, 18, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("order", "place_of"),
    [("raster", (0, 0, 0, 1, 1, 1, 2, 2, 2)), ("space_first", (0, 1, 0, 1, 0, 1, 2, 2, 2))],
)
def test_every_token_of_a_place_gets_its_anatomy(order: str, place_of: tuple[int, ...]) -> None:
    """Token by token; the first sample has two places of three tokens each, the second one."""
    model = backbone(anatomy=True, token_order=order)
    tokens, index = packed(None).tokens, torch.arange(9)
    with torch.no_grad():
        found = model.embedder(tokens, index, images(), LENGTHS)
        alone = model.embedder._embed(tokens, index)
        for token, place in enumerate(place_of):
            added = images()[place] @ model.embedder.anatomy
            torch.testing.assert_close(found[token], alone[token] + added)


def test_without_weights_it_is_the_model_of_one_channel() -> None:
    """And with weights it is another one, which also trains them."""
    plain, both = backbone(), backbone(anatomy=True)
    missing = both.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["embedder.anatomy"] and not missing.unexpected_keys
    assert both.embedder.anatomy is not None
    alone = plain.forward_tokens(packed(None))
    seen = both.forward_tokens(packed(images()))
    assert (seen.features - alone.features).abs().max() > 1e-3
    assert seen.prediction is not None and seen.prediction.shape == (9, 36)
    seen.prediction.square().sum().backward()
    assert both.embedder.anatomy.grad is not None and both.embedder.anatomy.grad.abs().min() > 0
    torch.nn.init.zeros_(both.embedder.anatomy)
    assert torch.equal(both.forward_tokens(packed(images())).features, alone.features)


def test_hidden_tokens_keep_their_anatomy() -> None:
    """Masked-token reconstruction hides the signal only."""
    model, hidden = backbone(anatomy=True), torch.zeros(9, dtype=torch.bool)
    hidden[4] = True
    with torch.no_grad():
        one = model.encode(packed(images()), hidden)
        other = model.encode(packed(images() + 1), hidden)
    assert (one[4] - other[4]).abs().max() > 1e-3


def test_tokens_without_anatomy_are_refused() -> None:
    model = backbone(anatomy=True)
    for call in (
        lambda: model.forward_tokens(packed(None)),
        lambda: model(torch.randn(1, 1, 6, 6, 6, 6)),
    ):
        with pytest.raises(ValueError, match=r"needs PackedTokens\.anatomy"):
            call()


def test_the_weights_of_a_one_channel_model_do_not_change() -> None:
    """The same seed draws the same weights as before there was a second channel."""
    plain, both = backbone(5).state_dict(), backbone(5, anatomy=True).state_dict()
    assert torch.equal(plain["embedder.projection"], both["embedder.projection"])
    assert "embedder.anatomy" not in plain and both["embedder.anatomy"].shape == (18, 16)
    assert layers_from_head("model.embedder.anatomy", 2) == 3


def data(*channels: str, scaling: str = "voxelnorm_zeroback") -> DataConfig:
    return DataConfig(image_path=("store",), input_scaling_method=scaling, channels=channels)


def test_names_of_channels() -> None:
    assert data("dynamics", "anatomy").channels == ("anatomy", "dynamics")
    assert data("dynamics", "anatomy").anatomy and not data("dynamics").anatomy
    assert raw_config(data("anatomy", "dynamics")).channels == ("dynamics",)
    for channels in (("anatomy",), ("dynamics", "dynamics"), ()):
        with pytest.raises(UserInputError, match=r"--channels: got .* expected 'dynamics' or"):
            data(*channels)
    with pytest.raises(UserInputError, match=r"--channels.*Did you mean 'anatomy'"):
        data("anatomi", "dynamics")
    with pytest.raises(UserInputError, match="anatomy needs --input_scaling_method voxelnorm"):
        data("anatomy", "dynamics", scaling="znorm_minback")
