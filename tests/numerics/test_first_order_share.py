"""The share of the first-order logits: chosen on scans that neither side was fitted on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from neuromamba.data.regions.batches import ScanDataset, ScanLoader, z_scored
from neuromamba.data.regions.scan import Scan
from neuromamba.layers.packing import pack
from neuromamba.neurossm.classifiers import NetworkClassifier
from neuromamba.neurossm.config import FitConfig, NeuroSSMConfig
from neuromamba.neurossm.evaluate import hardware_of
from neuromamba.neurossm.first_order_share import best_share, left_out_parts, logits_of_left_out
from neuromamba.neurossm.linear import LinearClassifier, fit_second_order
from neuromamba.neurossm.model import NeuroSSM
from neuromamba.neurossm.module import ROIModule
from neuromamba.neurossm.second_order import FIXED_SHARE, SecondOrder
from neuromamba.neurossm.train import train

ROIS = 5


def scan(number: int, label: int, group: str, shift: float = 0.0) -> Scan:
    rng = np.random.default_rng(number)
    series = rng.normal(size=(ROIS, 24))
    series[1] += shift * series[0]
    name = f"s{number}"
    return Scan(name, name, label, series.astype(np.float32), group)


def two_classes(count: int, shift: float = 0.0) -> list[Scan]:
    return [scan(i, i % 2, f"g{i}", (i % 2) * shift) for i in range(count)]


def logits(labels: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """Two classes; ``strength`` 0 knows nothing."""
    rng = np.random.default_rng(seed)
    value = strength * (2 * labels - 1) + rng.normal(size=len(labels))
    return np.stack([-value, value], 1)


def test_share_is_that_of_the_cross_entropy() -> None:
    """As a logistic regression without penalty finds it, with the second order as an offset."""
    labels = np.arange(400) % 2
    second, first = logits(labels, 0.5, 0), logits(labels, 0.4, 1)
    grid = np.linspace(0, 1, 2001)
    margin = (2 * labels - 1) * (second[:, 1] - second[:, 0])
    gain = (2 * labels - 1) * (first[:, 1] - first[:, 0])
    losses = [np.logaddexp(0, -(margin + w * gain)).mean() for w in grid]
    assert best_share(second, first, labels) == pytest.approx(grid[np.argmin(losses)], abs=2e-3)
    both = np.stack([margin, gain], 1) * (2 * labels - 1)[:, None]
    free = LogisticRegression(C=1e9).fit(both, labels).coef_[0]
    assert free[1] > 0  # it does help


def test_noise_has_no_share_and_the_whole_is_the_most() -> None:
    labels = np.arange(300) % 2
    known = logits(labels, 1.0, 0)
    assert best_share(known, -logits(labels, 0.5, 1), labels) == 0.0
    assert best_share(np.zeros((300, 2)), 0.1 * known, labels) == pytest.approx(1.0, abs=2e-3)


def test_three_classes() -> None:
    labels = np.arange(300) % 3
    rng = np.random.default_rng(0)
    first = np.eye(3)[labels] + rng.normal(size=(300, 3))
    assert 0.1 < best_share(rng.normal(size=(300, 3)), first, labels) <= 1.0


def test_parts_keep_groups_together_and_hold_every_class() -> None:
    scans = [scan(i, (i // 2) % 2, f"g{i // 2}") for i in range(40)]  # two scans of each subject
    parts = left_out_parts(scans, 5, 0)
    assert parts is not None and sorted(set(parts)) == [0, 1, 2, 3, 4]
    for part in range(5):
        inside = {s.group for s, p in zip(scans, parts, strict=True) if p == part}
        outside = {s.group for s, p in zip(scans, parts, strict=True) if p != part}
        assert not inside & outside
        assert {s.label for s, p in zip(scans, parts, strict=True) if p != part} == {0, 1}
    again = left_out_parts(scans, 5, 0)
    assert again is not None and (again == parts).all()


def test_without_enough_subjects_nothing_is_left_out() -> None:
    assert left_out_parts(two_classes(12), 1, 0) is None
    assert left_out_parts([scan(0, 0, "a"), scan(1, 1, "b"), scan(2, 1, "c")], 5, 0) is None
    few = left_out_parts([*two_classes(6), scan(7, 0, "x")], 5, 0)
    assert few is not None and set(few) == {0, 1, 2}


def config() -> NeuroSSMConfig:
    return NeuroSSMConfig(
        rois=ROIS,
        classes=2,
        signals=("raw",),
        scales=(1,),
        embed_dim=8,
        headdim=8,
        depth=1,
        dropout=0.0,
        members=2,
        second_order=True,
    )


def test_a_member_does_not_see_what_it_leaves_out(tmp_path: Path) -> None:
    """Other values of a part change the other member only."""
    fit = FitConfig(crop=24, epochs=1, batch_size=4)
    scans = two_classes(12)
    parts = left_out_parts(scans, 2, 0)
    assert parts is not None
    other = [
        scan(100 + i, s.label, s.group) if p == 0 else s
        for i, (s, p) in enumerate(zip(scans, parts, strict=True))
    ]
    found: list[dict[str, Any]] = []
    for number, those in enumerate((scans, other)):
        model = train(
            build=lambda: NeuroSSM(config()),
            scans=those,
            fit=fit,
            hardware=hardware_of("cpu"),
            seed=0,
            folder=tmp_path / str(number),
            parts=parts,
        )
        found.append(model.state_dict())
    first = ("fusion.weight", "output.weight", "pathways.0.embed.weight")
    second = (
        "others.0.fusion.weight",
        "others.0.output.weight",
        "pathways.0.others.0.embed.weight",
    )
    for name in first:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-7)
    assert all(not torch.allclose(found[0][n], found[1][n], atol=1e-5) for n in second)


@torch.no_grad()
def test_logits_are_those_of_the_member_that_left_the_scan_out() -> None:
    torch.manual_seed(0)
    model = NeuroSSM(config())
    scans = two_classes(8)
    parts = np.array([0, 1, 1, 0, 0, 0, 1, 1])
    found = logits_of_left_out(model, scans, parts, 3, torch.device("cpu"))
    each = model.each(pack([z_scored(s.series) for s in scans])).numpy()
    for row, part in enumerate(parts):
        np.testing.assert_allclose(found[row], each[part, row], atol=1e-5)


def test_logits_of_the_second_order_are_out_of_part(tmp_path: Path) -> None:
    """Labels of a part do not reach its own logits (but for the penalty, the same here)."""
    scans = two_classes(40, shift=1.5)
    parts = left_out_parts(scans, 2, 0)
    assert parts is not None
    own = fit_second_order(SecondOrder(ROIS, 2, 8), scans, 0, parts)
    assert own is not None and own.shape == (40, 2)
    np.testing.assert_allclose(own.sum(1), 0, atol=1e-9)
    labels = np.array([s.label for s in scans])
    known = LinearClassifier("Tangent").fit(scans, 0, tmp_path)(scans)
    correct = (own.argmax(1) == labels).mean()
    assert 0.55 < correct <= (known.argmax(1) == labels).mean()
    assert fit_second_order(SecondOrder(ROIS, 2, 8), scans, 0) is None


def test_weights_of_before_the_share_was_chosen() -> None:
    model = NeuroSSM(config())
    state = {k: v for k, v in model.state_dict().items() if not k.endswith(".share")}
    other = NeuroSSM(config())
    assert other.second_order is not None
    other.second_order.share.fill_(0.1)
    other.load_state_dict(state)
    assert float(other.second_order.share) == FIXED_SHARE


def test_loss_without_parts_is_that_of_all_members() -> None:
    torch.manual_seed(0)
    model = NeuroSSM(config()).eval()
    batch = next(iter(_loader(two_classes(6))))
    module = ROIModule(model, FitConfig(crop=24), 1)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    whole = module.training_step(batch, 0)
    nobody = ROIModule(model, FitConfig(crop=24), 1, np.full(6, 7))
    nobody.log = lambda *_, **__: None  # type: ignore[method-assign]
    torch.testing.assert_close(nobody.training_step(batch, 0), whole)


def _loader(scans: list[Scan]) -> ScanLoader:
    return ScanLoader(ScanDataset(scans), len(scans))


def test_a_fit_chooses_and_keeps_the_share(tmp_path: Path) -> None:
    """Means of regions are z-scored away, so the members know nothing: the fit says so."""
    fit = FitConfig(crop=24, epochs=1, batch_size=8)
    scans = two_classes(60, shift=1.5)
    train_scans, test_scans = scans[:40], scans[40:]
    network = NetworkClassifier("NeuroSSM", config(), fit, hardware_of("cpu"))
    found = network.fit(train_scans, 0, tmp_path)(test_scans)
    model = network.load(tmp_path)
    assert isinstance(model, NeuroSSM) and model.second_order is not None
    share = model.first_order_share
    assert share is not None and 0 <= share <= 1 and share != FIXED_SHARE
    packed = pack([z_scored(s.series) for s in test_scans])
    with torch.no_grad():
        own = model.second_order(packed)[:, :2] + share * model.each(packed).mean(0)
    np.testing.assert_allclose(found, torch.softmax(own, 1).numpy(), atol=1e-4)
    alone = LinearClassifier("Tangent").fit(train_scans, 0, tmp_path)(test_scans)
    model.second_order.share.zero_()
    with torch.no_grad():
        without = torch.softmax(model(packed), 1).numpy()
    np.testing.assert_allclose(without, alone, atol=2e-4)


def test_settings_say_that_the_share_is_chosen() -> None:
    """Results of before, with a fixed share, are not continued with a chosen one."""
    fit, hardware = FitConfig(crop=24), hardware_of("cpu")
    robust = NetworkClassifier("NeuroSSM", config(), fit, hardware).settings()
    plain = dataclasses.replace(config(), second_order=False)
    assert "first_order_share" in robust["training"]
    for name in ("NeuroSSM", "GRU"):
        other = NetworkClassifier(name, plain, fit, hardware).settings()
        assert "first_order_share" not in other["training"]


def test_the_share_of_values_has_the_least_squared_error() -> None:
    rng = np.random.default_rng(5)
    values = rng.standard_normal(300)
    second, first = (values + rng.normal(scale=s, size=300) for s in (1.0, 1.5))
    grid = np.linspace(0, 1, 1001)
    errors = [np.square((second + w * first) / (1 + w) - values).mean() for w in grid]
    found = best_share(second[:, None], first[:, None], values)
    assert found == pytest.approx(grid[np.argmin(errors)], abs=2e-3) and 0.1 < found < 0.9
    assert best_share(values[:, None], -values[:, None], values) == 0.0
    assert best_share(-values[:, None], values[:, None], values) == 1.0


def test_parts_hold_every_quarter_of_the_values() -> None:
    values = np.random.default_rng(6).standard_normal(40)
    scans = [Scan(f"{i}", f"{i}", v, np.zeros((2, 2)), f"{i}") for i, v in enumerate(values)]
    parts = left_out_parts(scans, 5, 0)
    assert parts is not None
    quarter = np.searchsorted(np.quantile(values, (0.25, 0.5, 0.75)), values)
    for part in range(5):
        assert np.bincount(quarter[parts == part], minlength=4).tolist() == [2, 2, 2, 2]
