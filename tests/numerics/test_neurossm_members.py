"""NeuroSSM of several members: independent models, whose logits are averaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from neuromamba.layers.packing import pack
from neuromamba.neurossm.attribution import pathway_attributions
from neuromamba.neurossm.config import FitConfig, NeuroSSMConfig
from neuromamba.neurossm.model import NeuroSSM, RegionDropout
from neuromamba.neurossm.module import ROIModule

MEMBERS, WIDTH, CLASSES = 3, 8, 2
CONFIG = NeuroSSMConfig(
    rois=5,
    classes=CLASSES,
    scales=(1, 2),
    embed_dim=WIDTH,
    depth=1,
    headdim=8,
    d_state=4,
    dropout=0.0,
    members=MEMBERS,
)


def model_of(config: NeuroSSMConfig = CONFIG) -> NeuroSSM:
    torch.manual_seed(0)
    return NeuroSSM(config).eval()


def scans() -> Any:
    generator = torch.Generator().manual_seed(1)
    return pack([torch.randn(5, frames, generator=generator) for frames in (12, 9, 20)])


def alone(model: NeuroSSM, number: int) -> NeuroSSM:
    """A member as a model of its own, from the names of its weights."""
    state = {}
    for name, tensor in model.state_dict().items():
        words = name.split(".")
        owner = int(words[words.index("others") + 1]) + 1 if "others" in words else 0
        if owner == number:
            if "others" in words:
                del words[words.index("others") : words.index("others") + 2]
            state[".".join(words)] = tensor
    found = NeuroSSM(replace(CONFIG, members=1)).eval()
    found.load_state_dict(state)
    return found


@torch.no_grad()
def test_logits_are_the_mean_of_those_of_the_members() -> None:
    model, batch = model_of(), scans()
    members = torch.stack([alone(model, number)(batch) for number in range(MEMBERS)])
    torch.testing.assert_close(model.each(batch), members)
    torch.testing.assert_close(model(batch), members.mean(0))
    assert members.std(0).min() > 1e-3  # members differ
    z = model.encode(model.inputs(batch))
    assert z.shape == (3, 4, MEMBERS * WIDTH) and model.config.features == MEMBERS * WIDTH


@torch.no_grad()
def test_one_member_has_the_weights_of_the_first() -> None:
    """Files of a single model keep their names; the same seed gives the same first pathway."""
    names = NeuroSSM(replace(CONFIG, members=1)).state_dict().keys()
    assert not [name for name in names if "others" in name]
    assert set(names) < set(model_of().state_dict())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_each_member_learns_from_its_own_loss(smoothing: float) -> None:
    """The gradient of a member is that of training it alone, over the number of members."""
    model = model_of()
    batch = {"frames": scans().frames, "lengths": scans().lengths}
    batch["label"] = torch.tensor([0, 1, 1])
    fit = FitConfig(crop=8, label_smoothing=smoothing)
    module = ROIModule(model, fit, 10)
    module.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    module.training_step(batch, 0).backward()
    for number in range(MEMBERS):
        one = alone(model, number)
        torch.nn.functional.cross_entropy(
            one(scans()), batch["label"], label_smoothing=smoothing
        ).backward()
        fusion = model.fusion if number == 0 else model.others[number - 1].fusion
        pathway = model.pathways[1] if number == 0 else model.pathways[1].others[number - 1]
        for own, single in (
            (fusion.weight, one.fusion.weight),
            (pathway.embed.weight, one.pathways[1].embed.weight),
        ):
            torch.testing.assert_close(own.grad * MEMBERS, single.grad)


def test_attributions_of_members_add_up_to_the_logit() -> None:
    model, batch = model_of(), scans()
    target = torch.tensor([0, 1, 0])
    inputs = model.inputs(batch)
    found = pathway_attributions(model, inputs, target, "integrated")
    total = sum(part.sum() for part in found)
    zero = [u._replace(frames=torch.zeros_like(u.frames)) for u in inputs]
    with torch.no_grad():
        change = model.fuse(model.encode(inputs)) - model.fuse(model.encode(zero))
    expected = change.gather(1, target[:, None]).sum()
    torch.testing.assert_close(total, expected, rtol=0.05, atol=5e-3)


def test_region_dropout_hides_whole_regions_in_training_only() -> None:
    frames = torch.ones(6, 1000)
    layer = RegionDropout(0.25)
    torch.manual_seed(0)
    found = layer.train()(frames)
    hidden = found[0] == 0
    assert torch.equal(found == 0, hidden.expand(6, -1))
    assert 0.2 < hidden.float().mean() < 0.3
    torch.testing.assert_close(found[:, ~hidden], torch.full((6, int((~hidden).sum())), 4 / 3))
    assert layer.eval()(frames) is frames
    assert RegionDropout(0.0).train()(frames) is frames
    torch.testing.assert_close(found.mean(), torch.tensor(1.0), atol=0.05, rtol=0)
