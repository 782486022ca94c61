"""Carried state: a sequence in pieces gives what one pass over it gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.stateful import StatefulBackbone, pieces_of
from neuromamba.fmamba.stateful_heads import stateful_head
from neuromamba.fmamba.tokenizer import PackedTokens
from neuromamba.layers.mamba2 import Mamba2
from neuromamba.layers.ssd import MixerParams, initial_state, mix_piece, mixer_core
from neuromamba.layers.ssd.types import CHUNK
from tests.helpers.paths import ROOT

LENGTHS = (1, 2, 63, 64, 65, 1100)
GRID = (8, 10, 4, 12)


def mixer(seed: int = 0) -> tuple[MixerParams, int]:
    torch.manual_seed(seed)
    layer = Mamba2(16, 8, 8)
    for value in (layer.D, layer.norm.weight):
        torch.nn.init.normal_(value, 1.0, 0.3)
    torch.nn.init.uniform_(layer.A_log, -3.0, 1.0)  # some states are kept for long
    params = MixerParams(
        *(p.detach() if isinstance(p, Tensor) else p for p in layer.mixer_params())
    )
    return params, layer.in_proj.out_features


@pytest.mark.parametrize("length", LENGTHS)
def test_pieces_equal_the_recurrence(length: int) -> None:
    """Against the sequential reference in float64, around the size of a chunk and of a block."""
    params, width = mixer()
    double = params._replace(
        **{k: v.double() for k, v in params._asdict().items() if isinstance(v, Tensor)}
    )
    zxbcdt = torch.randn(length, width, generator=torch.Generator().manual_seed(length))
    expected = mixer_core(zxbcdt.double(), double, (length,), "reference")
    for piece in {1, 3, CHUNK, 100, length}:
        for given, own, bound in ((zxbcdt, params, 1e-5), (zxbcdt.double(), double, 1e-11)):
            outputs, state = [], initial_state(own)
            for rows in given.split(piece):
                before = [t.clone() for t in state]
                out, after = mix_piece(rows, own, state)
                assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))
                state = after
                outputs.append(out)
            found = torch.cat(outputs)
            assert found.dtype == given.dtype
            torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)


def test_strong_decay_and_large_steps_stay_finite() -> None:
    """Inside a chunk exp(a_i - a_j) overflows above the diagonal, where it must not count."""
    params, width = mixer()
    params = params._replace(A_log=params.A_log + 4, dt_bias=params.dt_bias + 8)
    zxbcdt = torch.randn(200, width, generator=torch.Generator().manual_seed(2))
    found, state = mix_piece(zxbcdt, params, initial_state(params))
    expected = mixer_core(zxbcdt, params, (200,), "reference")
    assert torch.isfinite(state.heads).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def backbone(**changes: Any) -> FMamba:
    torch.manual_seed(1)
    values: dict[str, Any] = {
        "img_size": GRID,
        "patch_size": (2, 2, 2, 2),
        "embed_dim": 16,
        "depth": 3,
    }
    model = FMamba(ModelConfig(**values | changes))
    for block in model.mamba_layers:
        torch.nn.init.uniform_(block[1].A_log, -3.0, 1.0)
    return model.eval()


def window(config: ModelConfig, seed: int = 5) -> PackedTokens:
    """One sample: 13 of the 40 places, all their times, in the model's order."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(40, generator=generator)[:13].sort().values
    times = config.token_grid[3]
    index = places[:, None] * times + torch.arange(times)
    if config.token_order == "space_first":
        index = index.T
    tokens = torch.randn(index.numel(), config.token_dim, generator=generator)
    anatomy = torch.randn(13, config.place_dim, generator=generator) if config.anatomy else None
    return PackedTokens(tokens, index.flatten(), (index.numel(),), anatomy)


@pytest.mark.parametrize("order", ["raster", "space_first"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"anatomy": True}, {"mamba_pe_method": "none"}, {"d_conv": 1}],
    ids=["plain", "anatomy", "no positions", "no convolution"],
)
@pytest.mark.parametrize("piece", [1, 7, 20, 4096])
def test_backbone_in_pieces_equals_one_pass(
    order: str, changes: dict[str, Any], piece: int
) -> None:
    model = backbone(token_order=order, **changes)
    packed = window(model.config)
    with torch.no_grad():
        expected = model.forward_tokens(packed)
    stateful = StatefulBackbone(model)
    stateful.extend(packed.tokens[:3], packed.token_index[:3], _anatomy(model, packed))
    stateful.restart()  # forgets
    parts = [
        stateful.extend(rows.tokens, rows.token_index, rows.anatomy)
        for rows in pieces_of(packed, model, piece)
    ]
    assert stateful.seen == len(packed.tokens)
    features = torch.cat([part.features for part in parts])
    prediction = torch.cat([part.prediction for part in parts if part.prediction is not None])
    torch.testing.assert_close(features, expected.features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prediction, expected.prediction, rtol=1e-5, atol=1e-5)


def _anatomy(model: FMamba, packed: PackedTokens) -> Tensor | None:
    return next(pieces_of(packed, model, 3)).anatomy


def test_anatomy_and_evaluation_mode_are_asked_for() -> None:
    model = backbone(anatomy=True)
    packed = window(model.config)
    with pytest.raises(ValueError, match="needs the mean image"):
        StatefulBackbone(model).extend(packed.tokens, packed.token_index)
    with pytest.raises(ValueError, match="evaluation mode"):
        StatefulBackbone(model.train())


HEADS = [
    *({"pool": pool} for pool in ("mean", "mean_sd", "regions", "attention")),
    {"norm": "batch"},
    {"name": "mamba", "mamba_depth": 2},
]


@pytest.mark.parametrize("order", ["raster", "space_first"])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: " ".join(map(str, head.values())))
def test_heads_in_pieces_equal_one_pass(head: dict[str, Any], order: str) -> None:
    model = backbone(token_order=order)
    packed = window(model.config)
    torch.manual_seed(2)
    built = build_head(HeadConfig(out_features=3, **head), model.config).eval()
    if head.get("pool") == "attention":
        torch.nn.init.normal_(built.score.weight)
    if head.get("norm") == "batch":
        built.norm.mean.normal_()
        built.norm.variance.uniform_(0.5, 2)
    with torch.no_grad():
        expected = built(model.forward_tokens(packed).features, packed)
    stateful, pooled = StatefulBackbone(model), stateful_head(built)
    for rows in pieces_of(packed, model, 7):
        features = stateful.extend(rows.tokens, rows.token_index, predict=False).features
        pooled.extend(features, rows.token_index)
    torch.testing.assert_close(pooled.logits(), expected, rtol=1e-5, atol=1e-5)


_LONG = """
import json, resource, sys
import torch
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.fmamba.backbone import FMamba
from neuromamba.fmamba.heads import build_head
from neuromamba.fmamba.stateful import StatefulBackbone
from neuromamba.fmamba.stateful_heads import stateful_head

torch.manual_seed(0)
torch.set_num_threads(1)
config = ModelConfig(img_size=(8, 8, 8, 2000), patch_size=(4, 4, 4, 2), embed_dim=32, depth=2,
                     mamba_pe_method="none", token_order="space_first")
model = FMamba(config).eval()
head = stateful_head(build_head(HeadConfig(pool="mean_sd"), config).eval())
backbone, peaks = StatefulBackbone(model), {}
place = torch.arange(8) * 1000
for time in range(1000):
    if time in (50, 999):
        peaks[time] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = backbone.extend(torch.randn(8, config.token_dim), place + time)
    head.extend(out.features, place + time)
print(json.dumps({"peaks": list(peaks.values()), "logits": head.logits().tolist()}))
"""


def test_memory_of_a_long_run_is_flat() -> None:
    """Twenty times as many frames, the same peak of the process but for 4 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _LONG],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "project"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        cwd=Path("/"),
    )
    early, late = json.loads(done.stdout)["peaks"]
    assert late - early < 4 * 1024  # ru_maxrss is in KiB
