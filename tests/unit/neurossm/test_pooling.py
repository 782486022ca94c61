"""Averages over frames: scans of one length, which take one operation, and of several."""

from __future__ import annotations

import pytest
import torch

from neuromamba.layers.packing import Packed
from neuromamba.neurossm.model import mean_over_scans, pooled


@pytest.mark.parametrize("scale", [1, 2, 3, 8])
def test_scans_of_one_length_give_what_they_give_beside_a_longer_one(scale: int) -> None:
    frames = torch.randn(3 * 7 + 9, 5)
    alike, mixed = Packed(frames[:21], (7, 7, 7)), Packed(frames, (7, 7, 7, 9))
    one, other = pooled(alike, scale), pooled(mixed, scale)
    assert one.lengths == other.lengths[:3] == (7 // scale,) * 3
    assert torch.equal(one.frames, other.frames[: 3 * (7 // scale)])


def test_means_are_those_of_each_scan() -> None:
    frames = torch.randn(3 * 7 + 9, 5)
    by_hand = [frames[at : at + 7].mean(0) for at in (0, 7, 14)] + [frames[21:].mean(0)]
    assert torch.equal(mean_over_scans(Packed(frames[:21], (7, 7, 7))), torch.stack(by_hand[:3]))
    assert torch.equal(mean_over_scans(Packed(frames, (7, 7, 7, 9))), torch.stack(by_hand))
