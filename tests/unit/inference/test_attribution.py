"""Attribution of windows against slow versions on dense volumes, for every head and task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from neuromamba.common.seeds import seed_run
from neuromamba.config.model import HeadConfig, ModelConfig
from neuromamba.config.names import HEAD_NAMES, POOL_NAMES
from neuromamba.data.store.voxel_scaling import ANATOMY_STEP
from neuromamba.fmamba.tokenizer import pack_dense
from neuromamba.inference.attribution import (
    Network,
    Objective,
    TokenWindow,
    cells_of,
    explain_window,
    gradient_times_input,
    integrated_gradients,
    occlusion,
    randomised_network,
    token_window,
)

GRID, FRAMES = (12, 12, 18), 8
CPU = torch.device("cpu")
GAIN, SHIFT, BACKGROUND = 0.01, 0.2, -1.5


def model_config(**changes: Any) -> ModelConfig:
    fields = {
        "img_size": (*GRID, FRAMES),
        "patch_size": (6, 6, 6, 2),
        "embed_dim": 16,
        "depth": 2,
        "headdim": 16,
    }
    return ModelConfig(**(fields | changes))


def window_item(anatomy: bool = False) -> dict[str, Any]:
    """A window of a brain that fills 9 of the 12 patches, one of them by a single voxel."""
    rng = np.random.default_rng(3)
    x, y, z = np.indices(GRID)
    brain = ((x < 6) | (y < 6)) & ~((x > 8) & (z > 14))
    brain[6:, :6, 6:12] = False
    brain[7, 2, 8] = True
    vox = np.flatnonzero(brain).astype(np.int32)
    item = {
        "bold": torch.from_numpy(rng.integers(-200, 200, (FRAMES, vox.size)).astype(np.int16)),
        "vox": torch.from_numpy(vox),
        "gain": GAIN,
        "shift": SHIFT,
        "background": BACKGROUND,
        "subject": "sub-1",
        "sample_id": "sub-1",
        "window": 0,
        "dataset": 0,
    }
    if anatomy:
        values = rng.integers(-2000, 2000, vox.size).astype(np.int16)
        item["anatomy"] = torch.from_numpy(values)
    return item


def network_of(config: ModelConfig, head: HeadConfig | None = None) -> Network:
    return randomised_network(config, head or HeadConfig(), 7, CPU)


def dense_window(item: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The window as (1, 1, X, Y, Z, T) in scaled units, and its mask (1, X, Y, Z)."""
    volume = torch.full((*GRID, FRAMES), BACKGROUND)
    scaled = item["bold"].float().T * GAIN + SHIFT
    volume.view(-1, FRAMES)[item["vox"].long()] = scaled
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask.view(-1)[item["vox"].long()] = True
    return volume[None, None], mask[None]


def slow_score(
    network: Network, objective: Objective, fmri: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    packed = pack_dense(fmri, network.backbone.config, mask)
    return objective(network.head(network.backbone.forward_tokens(packed).features, packed))[0]


@pytest.mark.parametrize("token_order", ["raster", "space_first"])
def test_gradients_and_occlusion_equal_slow_versions(token_order: str) -> None:
    config = model_config(token_order=token_order)
    network, objective, item = network_of(config), Objective(target=1), window_item()
    window, vox = token_window(item, config, CPU, 0.3), item["vox"].long()
    fmri, mask = dense_window(item)
    base = torch.where(mask[:, None, ..., None], 0.3, fmri)

    fmri_in = fmri.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(slow_score(network, objective, fmri_in, mask), fmri_in)
    expected = (gradient * (fmri - base)).sum(-1).flatten()[vox]
    got = gradient_times_input(network.score(objective), window)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)

    total = torch.zeros_like(fmri)
    for k in range(200):  # the midpoint rule, another quadrature
        at = (base + (k + 0.5) / 200 * (fmri - base)).requires_grad_()
        total += torch.autograd.grad(slow_score(network, objective, at, mask), at)[0] / 200
    expected = (total * (fmri - base)).sum(-1).flatten()[vox]
    got = integrated_gradients(network.score(objective), window, 24)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-5)

    with torch.no_grad():
        full = slow_score(network, objective, fmri, mask)
        expected = torch.zeros(GRID, dtype=torch.float64)
        for x, y, z in np.ndindex(2, 2, 3):
            cube = np.s_[6 * x : 6 * x + 6, 6 * y : 6 * y + 6, 6 * z : 6 * z + 6]
            hidden = fmri.clone()
            hidden[0, 0][cube] = base[0, 0][cube]
            drop = full - slow_score(network, objective, hidden, mask)
            expected[cube] = drop / max(1, int(mask[0][cube].sum()))
    for tokens_at_once in (1, 120):  # one copy at a time, and several
        got = occlusion(network.score(objective), window, config, tokens_at_once=tokens_at_once)
        np.testing.assert_allclose(got, expected.flatten()[vox], atol=1e-6)


HEADS = [
    *(HeadConfig(name="linear", pool=pool, norm="batch") for pool in POOL_NAMES),
    HeadConfig(name="mamba"),
    HeadConfig(name="mamba", out_features=3),
    HeadConfig(name="linear", out_features=1),
]


@pytest.mark.parametrize(
    "head", HEADS, ids=lambda head: f"{head.name}-{head.pool}-{head.out_features}"
)
@pytest.mark.parametrize("anatomy", [False, True], ids=["", "anatomy"])
def test_integrated_gradients_add_up(head: HeadConfig, anatomy: bool) -> None:
    config = model_config(anatomy=anatomy)
    network = network_of(config, head)
    if head.pool == "attention":  # starts as the mean, which would be the same test again
        torch.nn.init.normal_(network.head.score.weight)
    target = None if head.out_features == 1 else head.out_features - 1
    objective = Objective(target=target, center=40.0, scale=12.0)
    window = token_window(window_item(anatomy), config, CPU, 0.0)
    found = explain_window(network, objective, window, "ig", steps=32)
    change = found.score - found.baseline_score
    assert abs(change) > 1e-3
    assert abs(found.completeness_error) < 0.01 * abs(change)
    # The parts also add up over the voxels of a coarser occlusion: one cell holds all of them.
    whole = explain_window(network, objective, window, "occlusion", edge=3)
    np.testing.assert_allclose(whole.values.sum(), change, rtol=1e-5)
    assert np.ptp(whole.values) < 1e-12
    assert all(p.requires_grad for part in network for p in part.parameters())


def test_every_head_and_pool_is_tested() -> None:
    assert {head.name for head in HEADS} == set(HEAD_NAMES)
    assert {head.pool for head in HEADS if head.name == "linear"} == set(POOL_NAMES)


def test_the_score_is_what_speaks_for_a_class() -> None:
    logits = torch.tensor([[1.0, 4.0, 0.0], [0.0, 0.0, 3.0]])
    assert Objective(target=1)(logits).tolist() == [3.5, -1.5]
    two = torch.tensor([[0.3, 1.1]])
    assert float(Objective(target=1)(two)) == -float(Objective(target=0)(two))
    value = Objective(target=None, center=50.0, scale=10.0)(torch.tensor([[0.5]]))
    assert value.tolist() == [55.0]


def test_the_mean_image_has_its_part() -> None:
    config = model_config(anatomy=True)
    network, objective, item = network_of(config), Objective(target=0), window_item(True)
    score = network.score(objective)
    window = token_window(item, config, CPU, 0.0)
    still = window.baseline.tokens
    only = window._replace(packed=window.packed._replace(tokens=still))
    values = integrated_gradients(score, only, 16)
    assert np.abs(values).max() > 1e-4
    scaled = item["anatomy"].numpy() * ANATOMY_STEP
    assert (values[np.abs(scaled) < 1e-9] == 0).all()
    with torch.no_grad():
        change = float(score(only.packed) - score(only.baseline))
    np.testing.assert_allclose(values.sum(), change, rtol=1e-2)


def test_cells_hold_neighbouring_places() -> None:
    config = model_config(img_size=(24, 12, 12, 8), patch_size=(3, 3, 3, 2))
    item = window_item()
    item["vox"] = torch.arange(24 * 12 * 12, dtype=torch.int32)
    item["bold"] = torch.zeros(FRAMES, len(item["vox"]), dtype=torch.int16)
    window: TokenWindow = token_window(item, config, CPU, 0.0)
    cell = cells_of(window, config, 2).view(8, 4, 4)
    assert cell.max() == 15
    for x, y, z in np.ndindex(4, 2, 2):
        block = cell[2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2]
        assert (block == (x * 2 + y) * 2 + z).all()


def test_random_networks_depend_on_their_seed_only() -> None:
    config, head = model_config(), HeadConfig()
    seed_run(5)
    before = torch.get_rng_state()
    one, same, other = (randomised_network(config, head, seed, CPU) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for part in (0, 1):
        weights = [dict(net[part].named_parameters()) for net in (one, same, other)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        drawn = "embedder.projection" if part == 0 else "classifier.weight"
        assert not torch.equal(weights[0][drawn], weights[2][drawn])
