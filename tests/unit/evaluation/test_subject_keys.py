"""Keys of subjects: stable, and without collisions."""

from __future__ import annotations

import torch

from neuromamba.evaluation.subject_keys import subject_key


def test_subject_key_is_stable() -> None:
    """These numbers are the same on every rank, machine and Python; they may never change."""
    assert subject_key("sub-0001") == 6098651486279760173
    assert subject_key("sub-0001", 1) == 8306428413727197160
    assert subject_key("1000012_20227_2_0", 2) == 8810534395584675762


def test_subject_key_has_no_collisions() -> None:
    """Over 100,000 names, numbered, padded and nested, in several data sets."""
    names = [str(i) for i in range(40_000)] + [f"sub-{i:05d}" for i in range(40_000)]
    names += [f"1/sub-{i}" for i in range(20_000)]
    keys = {subject_key(name) for name in names} | {subject_key(n, 1) for n in names[-20_000:]}
    keys |= {subject_key(f"sub-{i}", 1) for i in range(20_000)}
    assert len(keys) == 140_000
    assert min(keys) >= 0 and max(keys) < 2**63
    torch.tensor(sorted(keys)[-1])  # fits int64
