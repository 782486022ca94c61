"""Numbers below the smallest normal one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from neuromamba.common.denormals import denormals_as_zeros


def fail() -> None:
    assert are_zero()
    raise ValueError


def are_zero() -> bool:
    return bool(torch.tensor(2e-38) * torch.tensor(0.1) == 0)


@pytest.fixture(autouse=True)
def _as_a_process_begins() -> Iterator[None]:
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


def test_inside_only_and_also_when_it_fails() -> None:
    assert not are_zero()
    with pytest.raises(ValueError), denormals_as_zeros():
        fail()
    assert not are_zero()


def test_what_held_before_holds_after() -> None:
    torch.set_flush_denormal(True)
    with denormals_as_zeros():
        assert are_zero()
    assert are_zero()


def test_a_decorated_function_does_it_at_every_call() -> None:
    decorated = denormals_as_zeros()(are_zero)
    assert [decorated(), are_zero(), decorated()] == [True, False, True]
