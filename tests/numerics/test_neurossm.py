"""NeuroSSM against its formulas written out, and CPA against what it promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.batches import z_scored
from neuromamba.data.regions.scan import Scan
from neuromamba.layers.packing import pack
from neuromamba.neurossm.attribution import (
    attribute,
    calibrated,
    mean_features,
    pathway_attributions,
)
from neuromamba.neurossm.config import CPAConfig, NeuroSSMConfig
from neuromamba.neurossm.model import NeuroSSM

CONFIG = NeuroSSMConfig(
    rois=5, classes=3, scales=(1, 3), embed_dim=8, depth=2, d_state=4, headdim=8, dropout=0.0
)


def model_of(config: NeuroSSMConfig = CONFIG, seed: int = 0) -> NeuroSSM:
    torch.manual_seed(seed)
    model = NeuroSSM(config)
    for parameter in model.parameters():  # biases and norms away from 0 and 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def series_of(*frames: int, seed: int = 1, rois: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rois, t, generator=generator) for t in frames]


# ------------------------------------------------------------------------------ the model


def test_published_size() -> None:
    """NEUROSSM.md: N = 400, two classes, the defaults."""
    model = NeuroSSM(NeuroSSMConfig(rois=400, classes=2))
    assert sum(p.numel() for p in model.parameters()) == 1_665_170
    assert model.config.pathways == ("raw_1", "raw_2", "raw_4", "diff_1", "diff_2", "diff_4")


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def mamba2(x: np.ndarray, p: dict[str, np.ndarray], config: NeuroSSMConfig) -> np.ndarray:
    """[T, D], the recurrence frame after frame (Dao & Gu 2024)."""
    inner, n, head = config.expand * config.embed_dim, config.d_state, config.headdim
    z, xbc, dt = np.split(x @ p["in_proj.weight"].T, [inner, 2 * inner + 2 * n], axis=1)
    taps, out = config.d_conv, np.zeros_like(xbc)
    for t in range(len(x)):
        for k in range(taps):
            if t - taps + 1 + k >= 0:
                out[t] += xbc[t - taps + 1 + k] * p["conv1d.weight"][:, 0, k]
    values, b, c = np.split(silu(out + p["conv1d.bias"]), [inner, inner + n], axis=1)
    step = softplus(dt + p["dt_bias"])
    y = np.zeros((len(x), inner))
    for h in range(inner // head):
        state, own = np.zeros((head, n)), slice(h * head, (h + 1) * head)
        for t in range(len(x)):
            decay = np.exp(-np.exp(p["A_log"][h]) * step[t, h])
            state = decay * state + step[t, h] * np.outer(values[t, own], b[t])
            y[t, own] = state @ c[t] + p["D"][h] * values[t, own]
    return rms_norm(y * silu(z), p["norm.weight"]) @ p["out_proj.weight"].T


def logits_written_out(model: NeuroSSM, x: np.ndarray) -> np.ndarray:
    """[classes] of a scan [N, T], by NEUROSSM.md, pathway after pathway."""
    p = {name: tensor.numpy() for name, tensor in model.double().state_dict().items()}
    features = []
    for number, name in enumerate(model.config.pathways):
        signal, scale = name.split("_")
        count = x.shape[1] // int(scale)
        u = np.stack([x[:, i * int(scale) : (i + 1) * int(scale)].mean(1) for i in range(count)])
        if signal == "diff":
            u = np.concatenate([np.zeros((1, len(x))), np.diff(u, axis=0)])
        at = f"pathways.{number}."
        h = rms_norm(
            u @ p[at + "embed.weight"].T + p[at + "embed.bias"], p[at + "embed_norm.weight"]
        )
        for layer in range(model.config.depth):
            block = f"{at}layers.{layer}."
            own = {
                k.removeprefix(block + "1."): v for k, v in p.items() if k.startswith(block + "1.")
            }
            h = h + mamba2(rms_norm(h, p[block + "0.weight"]), own, model.config)
        features.append(rms_norm(h, p[at + "norm.weight"]).mean(0))
    hidden = np.concatenate(features) @ p["fusion.weight"].T + p["fusion.bias"]
    active = torch.nn.functional.gelu(torch.from_numpy(hidden)).numpy()
    return active @ p["output.weight"].T + p["output.bias"]


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_logits_are_those_of_the_formulas(backend: str) -> None:
    """Scans of several lengths, frames left over at every scale, packed together."""
    config = dataclasses.replace(CONFIG, ssd_backend=backend)
    scans = series_of(13, 8, 30)
    single = model_of(config)(pack(scans))
    model = model_of(config).double() if backend == "reference" else model_of(config)
    kind = torch.float64 if backend == "reference" else torch.float32
    found = model(pack([scan.to(kind) for scan in scans])).detach().double().numpy()
    wanted = np.stack([logits_written_out(model_of(config), s.double().numpy()) for s in scans])
    np.testing.assert_allclose(
        found, wanted, rtol=0, atol=1e-10 if backend == "reference" else 2e-5
    )
    np.testing.assert_allclose(single.detach().numpy(), wanted, rtol=0, atol=2e-5)


def test_a_scan_does_not_depend_on_its_batch_mates() -> None:
    model, scans = model_of(), series_of(13, 8, 30)
    together = model(pack(scans))
    for scan, logits in zip(scans, together, strict=True):
        torch.testing.assert_close(model(pack([scan]))[0], logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"signals": ("raw", "second")}, "--signals"),
        ({"signals": ()}, "--signals"),
        ({"scales": (1, 1)}, "--scales"),
        ({"scales": (0,)}, "--scales"),
        ({"embed_dim": 20, "headdim": 64}, "--embed_dim"),
        ({"depth": 0}, "--depth"),
        ({"dropout": 1.0}, "--dropout"),
    ],
)
def test_impossible_architectures(changes: dict, flag: str) -> None:
    with pytest.raises(UserInputError, match=f"^{flag}: got|^{flag}: 2 x"):
        NeuroSSMConfig(**({"rois": 5, "classes": 2} | changes))


# ------------------------------------------------------------------------------ CPA


def test_integrated_attributions_add_up_to_the_logit() -> None:
    """Completeness (Sundararajan et al. 2017), up to the error of eight midpoints."""
    model = model_of().double()
    inputs = model.inputs(pack([s.double() for s in series_of(16, 24)]))
    target = torch.tensor([2, 0])
    parts = pathway_attributions(model, inputs, target, "integrated")
    total = torch.zeros(2, dtype=torch.float64)
    for a, u in zip(parts, inputs, strict=True):
        total += torch.stack([piece.sum() for piece in a.split(u.lengths)])
    zero = [u._replace(frames=torch.zeros_like(u.frames)) for u in inputs]
    pick = lambda us: model.fuse(model.encode(us)).gather(1, target[:, None])[:, 0]  # noqa: E731
    gain = (pick(inputs) - pick(zero)).detach()
    assert (gain.abs() > 1e-3).all()
    torch.testing.assert_close(total, gain, rtol=0.05, atol=2e-3)


def test_single_gradient_is_activation_times_gradient() -> None:
    model = model_of().double()
    inputs = model.inputs(pack([s.double() for s in series_of(9)]))
    target = torch.tensor([1])
    found = pathway_attributions(model, inputs, target, "single")[0]
    step = 1e-6
    for place in ((0, 0), (4, 2), (8, 4)):
        ends = []
        for sign in (1, -1):
            moved = [u._replace(frames=u.frames.clone()) for u in inputs]
            moved[0].frames[place] += sign * step
            ends.append(model.fuse(model.encode(moved))[0, 1].item())
        slope = (ends[0] - ends[1]) / (2 * step)
        assert found[place].item() == pytest.approx(
            slope * inputs[0].frames[place].item(), abs=1e-7
        )


def scans_of(*frames: int) -> list[Scan]:
    return [
        Scan(f"s{i}", f"s{i}", i % 3, s.numpy(), f"s{i}") for i, s in enumerate(series_of(*frames))
    ]


@torch.no_grad()
def features_of(model: NeuroSSM, scan: Scan) -> Tensor:
    """z [1, P, D]."""
    return model.encode(model.inputs(pack([z_scored(scan.series)])))


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_ablation_and_calibration(ablation: str) -> None:
    """Drops by taking a pathway out by hand; maps, weights and the dominant pathway add up."""
    model, scans = model_of(), scans_of(20, 31, 17)
    replacement = mean_features(model, scans[:2])
    found = attribute(model, scans, replacement, CPAConfig(ablation=ablation, batch_size=2))
    for i, scan in enumerate(scans):
        z = features_of(model, scan)
        whole = model.fuse(z)[0].detach()
        target = int(whole.argmax())
        assert found.target[i] == target
        np.testing.assert_allclose(found.logits[i], whole.detach().numpy(), atol=1e-5)
        for p in range(len(CONFIG.pathways)):
            ablated = z.clone()
            ablated[0, p] = replacement[p] if ablation == "mean" else 0
            drop = float(whole[target] - model.fuse(ablated)[0, target].detach())
            assert found.drops[i, p] == pytest.approx(drop, abs=1e-5)
        gains = np.maximum(found.drops[i], 0)
        np.testing.assert_allclose(found.weights[i], gains / gains.sum(), atol=1e-6)
        np.testing.assert_allclose(found.path_maps[i].sum(1), 1, atol=1e-5)
        shares = found.weights[i][:, None] * found.path_maps[i]
        np.testing.assert_allclose(found.cpa[i], shares.sum(0), atol=1e-6)
        assert (found.dominant[i] == shares.argmax(0) + 1).all()
    means = torch.cat([features_of(model, scan) for scan in scans[:2]]).mean(0)
    torch.testing.assert_close(replacement, means, rtol=1e-4, atol=1e-5)


def test_no_pathway_that_matters() -> None:
    maps = torch.ones(1, 2, 4)
    maps[0, 1] = 0  # a pathway without positive attribution
    path_maps, _, weights, cpa, dominant = calibrated(maps, torch.tensor([[-1.0, -0.5]]))
    assert torch.equal(path_maps[0, 0], torch.full((4,), 0.25)) and not path_maps[0, 1].any()
    assert not weights.any() and not cpa.any() and not dominant.any()
