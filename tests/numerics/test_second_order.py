"""NeuroSSM's second-order pathway: the baseline Tangent inside the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from neuromamba.common.errors import UserInputError
from neuromamba.data.regions.batches import z_scored
from neuromamba.data.regions.scan import Scan
from neuromamba.layers.packing import pack
from neuromamba.neurossm.attribution import pathway_attributions, pathway_drops
from neuromamba.neurossm.config import NeuroSSMConfig
from neuromamba.neurossm.linear import TANGENT, LinearClassifier, fit_second_order
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.neurossm.second_order import FIXED_SHARE, MatrixLogarithm, SecondOrder

ROIS, FRAMES, TRAINED = 6, 40, 30


def scans(classes: int) -> list[Scan]:
    """Classes differ in the correlation of the first regions; the last region is constant once."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(45):
        label = number % classes
        series = rng.normal(size=(ROIS, FRAMES))
        series[1] += (label - 0.5) * series[0]
        series[3] += (label == 2) * 2 * series[2]
        if number == 4:
            series[5] = 3.0
        name = f"s{number}"
        found.append(Scan(name, name, label, series.astype(np.float32), name))
    return found


def config_of(classes: int = 2, **more: object) -> NeuroSSMConfig:
    given = {"rois": ROIS, "classes": classes, "scales": (1, 2), "embed_dim": 8, "headdim": 8}
    given |= {"depth": 1, "dropout": 0.0, "members": 2, "second_order": True}
    return NeuroSSMConfig(**{**given, **more})  # type: ignore[arg-type]


def model_of(classes: int = 2) -> NeuroSSM:
    torch.manual_seed(0)
    return NeuroSSM(config_of(classes)).eval()


def pathway_of(model: NeuroSSM) -> SecondOrder:
    found = model.pathways[-1]
    assert isinstance(found, SecondOrder)
    return found


def test_logarithm_of_a_matrix_and_its_gradient() -> None:
    rng = np.random.default_rng(1)
    root = rng.normal(size=(5, 5))
    matrix = torch.from_numpy(root @ root.T + np.eye(5))
    np.testing.assert_allclose(MatrixLogarithm.apply(matrix), scipy.linalg.logm(matrix.numpy()))

    def of_symmetric(x: torch.Tensor) -> torch.Tensor:
        return MatrixLogarithm.apply((x + x.T) / 2)

    assert torch.autograd.gradcheck(of_symmetric, matrix.clone().requires_grad_())


def test_gradient_where_all_eigenvalues_are_equal() -> None:
    """At a multiple of the identity, log C = log(a) 1 + (C - a 1) / a to first order."""
    matrix = (2 * torch.eye(4, dtype=torch.double)).requires_grad_()
    weight = torch.arange(16.0, dtype=torch.double).view(4, 4)
    weight = weight + weight.T
    (MatrixLogarithm.apply(matrix) * weight).sum().backward()
    torch.testing.assert_close(matrix.grad, weight / 2)


@pytest.mark.parametrize("classes", [2, 3])
def test_its_logits_are_those_of_the_baseline(classes: int, tmp_path: Path) -> None:
    everybody = scans(classes)
    train, test = everybody[:TRAINED], everybody[TRAINED:]
    wanted = LinearClassifier(TANGENT).fit(train, 3, tmp_path)(test)
    pathway = SecondOrder(ROIS, classes, 8)
    fit_second_order(pathway, train, 3)
    found = pathway(pack([z_scored(scan.series) for scan in test]))
    assert found.shape == (len(test), 8) and not found[:, classes:].any()
    probability = torch.softmax(found[:, :classes], 1).numpy()
    np.testing.assert_allclose(probability, wanted, atol=2e-4)
    assert np.ptp(wanted[:, 0]) > 0.3


@torch.no_grad()
def test_the_model_adds_them_to_a_share_of_the_other_logits() -> None:
    model = model_of()
    fit_second_order(pathway_of(model), scans(2)[:TRAINED], 0)
    batch = pack([z_scored(scan.series) for scan in scans(2)[TRAINED:]])
    own = pathway_of(model)(batch)[:, :2]
    for share in (FIXED_SHARE, 0.0, 0.2):
        pathway_of(model).share.fill_(share)
        torch.testing.assert_close(model(batch), own + share * model.each(batch).mean(0))
    assert model.config.pathways == ("raw_1", "raw_2", "diff_1", "diff_2", "second_order")
    assert model.encode(model.inputs(batch)).shape == (15, 5, 16)
    plain = NeuroSSM(config_of(second_order=False)).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("pathways.4.")}
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(batch), model.each(batch).mean(0))


def test_attribution_treats_it_as_a_pathway() -> None:
    """Integrated gradients of all pathways add up; without it the logit loses its part."""
    model = model_of()
    fit_second_order(pathway_of(model), scans(2)[:TRAINED], 0)
    batch = pack([z_scored(scan.series) for scan in scans(2)[TRAINED : TRAINED + 4]])
    inputs = model.inputs(batch)
    with torch.no_grad():
        z = model.encode(inputs)
        zero = model.encode([u._replace(frames=torch.zeros_like(u.frames)) for u in inputs])
        target = model.fuse(z).argmax(1)
        change = (model.fuse(z) - model.fuse(zero)).gather(1, target[:, None]).sum()
    found = pathway_attributions(model, inputs, target, "integrated")
    assert all(bool(part.isfinite().all()) for part in found)
    total = sum(part.sum() for part in found)
    torch.testing.assert_close(total, change, rtol=0.05, atol=0.02)
    drops = pathway_drops(model, z, target, torch.zeros(5, 16))
    torch.testing.assert_close(drops[:, -1], z[:, -1].gather(1, target[:, None])[:, 0])


@torch.no_grad()
def test_a_scan_of_zeros_has_the_logits_of_the_average(tmp_path: Path) -> None:
    """And scans that are scaled down go over into it, without leaving the training's range."""
    pathway = SecondOrder(ROIS, 2, 8)
    fit_second_order(pathway, scans(2)[:TRAINED], 0)
    batch = pack([z_scored(scan.series) for scan in scans(2)[:TRAINED]])
    whole = pathway(batch)[:, 1]
    for share, bound in ((0.0, 0.0), (0.5, float(whole.abs().max()) + 0.05)):
        found = pathway(batch._replace(frames=share * batch.frames))[:, 1]
        assert (found - pathway.bias[1]).abs().max() <= bound + 1e-6


def test_weights_are_random_before_the_fit() -> None:
    batch = pack([z_scored(scans(2)[0].series)])
    assert pathway_of(model_of())(batch)[0, :2].abs().min() > 0


def test_more_classes_than_features() -> None:
    with pytest.raises(UserInputError, match=r"^--second_order on: 9 classes need"):
        config_of(9, members=1)
